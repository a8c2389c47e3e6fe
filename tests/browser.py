"""A headless Chromium with a profile of its own."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from selenium.webdriver import Chrome, ChromeOptions, ChromeService


@contextmanager
def chromium(width: int, height: int, logs: bool = False) -> Iterator[Chrome]:
    """A browser with a window of this size in pixels; with ``logs`` its console can be read."""
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    assert program and driver, "chromium and its driver are not here; run: make test-servers"
    options = ChromeOptions()
    options.binary_location = program
    if logs:
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with tempfile.TemporaryDirectory() as profile:
        for switch in (
            *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"),
            *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
            *(f"--user-data-dir={profile}", f"--window-size={width},{height}"),
        ):
            options.add_argument(switch)
        with Chrome(options, ChromeService(driver)) as chrome:
            yield chrome
