"""What a model owner sees in MLflow's own pages after two runs, in a real browser."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient
from selenium.common.exceptions import WebDriverException
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from tests.browser import chromium
from tests.runs import TRIPTYCH, cut_down, some_portraits, triptych
from tests.servers.test_ui import keep
from training.launch.processes import python_environment

WORK = "TRIPTYCH_PAGES_OF"
"""Set it to a work folder to see, and keep, the pages of its runs instead of two short ones."""
MODEL = "portrait-avatars"


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A work folder with a run that was promoted and one that was not."""
    if os.environ.get(WORK):
        return Path(os.environ[WORK])
    folder = tmp_path_factory.mktemp("work")
    for split in ("new", "shuffled"):
        place = folder / split
        pictures = some_portraits(split, place / "data" / split)
        config = cut_down(place, pictures, training={"steps": 40, "selection": {"selection_set": None}})
        done = triptych("retrain", "--config", config, "--work-dir", folder / "work")
        assert done.returncode == 0, done.stdout + done.stderr
    return folder / "work"


@pytest.fixture(scope="module")
def address(work: Path) -> Iterator[str]:
    """Where `triptych ui` says that the runs are."""
    command = [str(TRIPTYCH), "ui", "--work-dir", str(work), "--port", "5077"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=python_environment(1)) as server:
        assert server.stdout is not None
        found = re.search(r"http://\S+", server.stdout.readline())
        assert found is not None
        yield found[0].rstrip(";")
        server.terminate()


@pytest.fixture(scope="module")
def browser(address: str) -> Iterator[Chrome]:
    with chromium(width=1500, height=1000) as chrome:
        chrome.set_page_load_timeout(30)
        until = time.monotonic() + 120
        while True:
            try:
                chrome.get(address)
                break
            except WebDriverException:
                assert time.monotonic() < until, "the server never answered"
                time.sleep(1)
        yield chrome


def shows(browser: Chrome, *texts: str) -> str:
    """Wait until the page has all of these texts; gives all of its text."""

    def all_there(page: Chrome) -> str | bool:
        for panel in page.find_elements(By.XPATH, "//button[@aria-label='Close']"):
            panel.click()
        text = str(page.find_element(By.TAG_NAME, "body").text)
        return text if all(wanted in text for wanted in texts) else False

    return str(WebDriverWait(browser, 90, ignored_exceptions=[WebDriverException]).until(all_there))


def test_the_experiment_opens_on_runs_with_verdict_axes_and_settings(browser: Chrome, address: str) -> None:
    browser.get("about:blank")
    browser.get(address)
    text = shows(browser, "Runs", "promote", "gate/align")
    assert "matching runs" in text and "Traces\n0" not in text
    assert "gate/real" in text and "gate/aesth" in text and "data.source" in text
    keep(browser, "mlflow-runs.png")


def test_a_run_shows_settings_source_and_verdict(browser: Chrome, address: str, work: Path) -> None:
    client = MlflowClient(f"sqlite:///{work / 'mlflow.db'}")
    experiment = client.get_experiment_by_name(MODEL)
    runs = client.search_runs([experiment.experiment_id], order_by=["attributes.start_time ASC"])
    server = address.partition("/#/")[0]
    browser.get(f"{server}/#/experiments/{experiment.experiment_id}/runs/{runs[0].info.run_id}")
    text = shows(browser, "About this run", "Parameters (", "triptych.decision")
    assert int(re.search(r"Parameters \((\d+)\)", text)[1]) > 10  # type: ignore[index]
    assert "triptych retrain" in text and "promote" in text
    keep(browser, "mlflow-run.png")
    chosen = ",".join(f'"{run.info.run_id}"' for run in runs[:2])
    browser.get(f'{server}/#/compare-runs?runs=[{chosen}]&experiments=["{experiment.experiment_id}"]')
    shows(browser, "Comparing 2 Runs", "Show diff only")
    keep(browser, "mlflow-compare.png")


def test_the_model_shows_who_is_champion_and_why_another_is_not(browser: Chrome, address: str) -> None:
    browser.get(f"{address.partition('/#/')[0]}/#/models/{MODEL}")
    text = shows(browser, "Version 1", "Version 2", "@ champion")
    second, first = text[text.index("Version 2") : text.index("Version 1")], text[text.index("Version 1") :]
    assert "triptych.decision" in first and "@ champion" in first and "promote: gain" in first
    assert re.search(r"(reject|hold): ", second) and "@ champion" not in second
    keep(browser, "mlflow-model.png")
