"""A person promotes in MLflow's own pages, in a real browser."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium.webdriver import Chrome, ChromeOptions, ChromeService, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support import expected_conditions as seen
from selenium.webdriver.support.ui import WebDriverWait

from tests.servers.conftest import Portraits, portraits_on
from tests.servers.governed import EDITOR, PASSWORD, Server

PICTURES = "TRIPTYCH_SCREENSHOTS"
"""Set it to a folder, such as docs/images, to keep what the browser showed."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Chrome]:
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    assert program and driver, "chromium and its driver are not here; run: make test-servers"
    options = ChromeOptions()
    options.binary_location = program
    with tempfile.TemporaryDirectory() as profile:
        for switch in (
            *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"),
            *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
            *(f"--user-data-dir={profile}", "--window-size=1400,1000"),
        ):
            options.add_argument(switch)
        with Chrome(options, ChromeService(driver)) as chrome:
            yield chrome


@pytest.fixture(scope="module")
def shown(basic_server: Server) -> Portraits:
    return portraits_on(basic_server, "portrait-avatars")


def wait_for(browser: Chrome, xpath: str) -> WebElement:
    return WebDriverWait(browser, 60).until(seen.element_to_be_clickable((By.XPATH, xpath)))


def set_champion(browser: Chrome, server: Server, model: str, version: str) -> None:
    """Open a version's page as the editor, and give it the alias as a person would."""
    signed = server.url.replace("://", f"://{EDITOR}:{PASSWORD.replace(' ', '%20')}@")
    browser.get(f"{signed}/#/models/{model}/versions/{version}")
    browser.save_screenshot("/tmp/ui-0.png")
    wait_for(browser, "//button[contains(@aria-label, 'aliases') or contains(., 'Add') and contains(., 'alias')]").click()
    browser.save_screenshot("/tmp/ui-1.png")


def test_setting_champion_on_an_approved_version(browser: Chrome, shown: Portraits) -> None:
    import time
    try:
        set_champion(browser, shown.server, shown.model, shown.next.number)
    finally:
        time.sleep(2)
        browser.save_screenshot("/tmp/ui-2.png")
        Path("/tmp/ui.html").write_text(browser.page_source)
