"""A person promotes in MLflow's own pages, in a real browser."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from selenium.webdriver import Chrome, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support import expected_conditions as seen
from selenium.webdriver.support.ui import WebDriverWait

from tests.browser import chromium
from tests.servers.conftest import Portraits, portraits_on
from tests.servers.governed import EDITOR, PASSWORD, Server

PICTURES = "TRIPTYCH_SCREENSHOTS"
"""Set it to a folder, such as docs/images, to keep what the browser showed."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Chrome]:
    with chromium(width=1400, height=1000) as chrome:
        yield chrome


@pytest.fixture(scope="module")
def shown(basic_server: Server) -> Portraits:
    return portraits_on(basic_server, "portrait-avatars")


def wait_for(browser: Chrome, xpath: str) -> WebElement:
    return WebDriverWait(browser, 60).until(seen.element_to_be_clickable((By.XPATH, xpath)))


def open_version(browser: Chrome, server: Server, model: str, version: str) -> None:
    """Sign in as the editor and open a version's page."""
    # Once with the password in the address: MLflow's pages do not load under such an address, but the browser keeps it.
    browser.get(server.url.replace("://", f"://{EDITOR}:{quote(PASSWORD)}@"))
    browser.get(f"{server.url}/#/models/{model}/versions/{version}")
    wait_for(browser, "//button[@title='Add aliases']")
    for panel in browser.find_elements(By.XPATH, "//button[@aria-label='Close']"):
        panel.click()


def set_champion(browser: Chrome) -> None:
    """Give the open version the alias, as a person would."""
    wait_for(browser, "//button[@title='Add aliases']").click()
    wait_for(browser, "//*[@role='dialog']//input").send_keys("champion", Keys.ENTER)
    wait_for(browser, "//button[.='Save aliases']").click()


def keep(browser: Chrome, name: str) -> None:
    if os.environ.get(PICTURES):
        browser.save_screenshot(str(Path(os.environ[PICTURES]) / name))


def test_setting_champion_on_a_rejected_version(browser: Chrome, shown: Portraits) -> None:
    server, before = shown.server, shown.server.ledger().state.size
    open_version(browser, server, shown.model, shown.rejected.number)
    set_champion(browser)
    reason = wait_for(browser, "//*[@role='dialog']//*[contains(text(), 'is reject, not promote')]")
    keep(browser, "ui-promotion-refused.png")
    assert reason.is_displayed()
    assert server.champion(shown.model) == shown.champion.number
    assert server.ledger().state.size == before


def test_setting_champion_on_an_approved_version(browser: Chrome, shown: Portraits) -> None:
    server = shown.server
    open_version(browser, server, shown.model, shown.next.number)
    set_champion(browser)
    wait_for(browser, "//*[@role='status' and @title='champion']")
    WebDriverWait(browser, 60).until(seen.invisibility_of_element_located((By.XPATH, "//*[@role='dialog']")))
    keep(browser, "ui-promotion-allowed.png")
    assert server.champion(shown.model) == shown.next.number
    made = server.moves(shown.model)[-1]
    assert (made.action, made.user, made.version) == ("promote", EDITOR, shown.next.number)
    assert made.previous_version == shown.champion.number
