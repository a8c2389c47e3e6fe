"""The page, in a real browser, with the keyboard."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium.webdriver import ActionChains, Chrome, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from tests.browser import chromium
from tests.serving.backends import Painter, Portraits
from tests.serving.world import Running, World, serving

pytestmark = pytest.mark.servers

PICTURES = "TRIPTYCH_SCREENSHOTS"
"""Set it to a folder, such as docs/images, to keep what the browser showed."""
BASE = Path("examples/avatars/models/base")
SAMPLING = {"num_inference_steps": 10, "guidance_scale": 3.0, "max_sequence_length": 1, "height": 64, "width": 64}


@pytest.fixture(scope="module")
def browser() -> Iterator[Chrome]:
    with chromium(width=1000, height=1400, logs=True) as chrome:
        yield chrome


@pytest.fixture(scope="module")
def avatars(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Two versions of the avatars' model, of which the first one draws at a tenth of the steps."""
    world = World(tmp_path_factory.mktemp("avatars"))
    world.promote("1", bundle=BASE, sampling=SAMPLING | {"num_inference_steps": 2})
    with serving(world.settings(), Portraits()) as server:
        server.wait(version="1")
        world.promote("2", bundle=BASE, sampling=SAMPLING)
        server.wait(version="2")
        yield server


def text(browser: Chrome, selector: str) -> str:
    return str(browser.find_element(By.CSS_SELECTOR, selector).text)


def wait(browser: Chrome, selector: str, wanted: str) -> None:
    WebDriverWait(browser, 180).until(lambda seen: wanted in text(seen, selector))


def test_champion_beside_previous_by_keyboard_alone(browser: Chrome, avatars: Running) -> None:
    browser.get(f"{avatars.url}/")
    wait(browser, "#standing", "version 2: ready")
    wait(browser, "#panels", "alignment")
    ActionChains(browser).send_keys(Keys.TAB, Keys.ENTER).perform()  # the link that skips to the prompt
    assert browser.switch_to.active_element.get_attribute("id") == "prompt"
    prompt = "a portrait, short black hair, blue shirt"
    keys = ActionChains(browser).key_down(Keys.CONTROL).send_keys("a").key_up(Keys.CONTROL).send_keys(prompt)
    keys.send_keys(Keys.TAB, "7", Keys.TAB, Keys.TAB, Keys.SPACE, Keys.TAB, Keys.ENTER).perform()
    wait(browser, "#standing", "Done: version 2, seed 7")
    figures = browser.find_elements(By.CSS_SELECTOR, "#pictures figure")
    told = [figure.text for figure in figures]
    assert "Champion" in told[0] and "version 2, seed 7" in told[0] and "tree-sha256:" in told[0]
    assert "Previous champion" in told[1] and "version 1, seed 7" in told[1]
    images = [figure.find_element(By.TAG_NAME, "img") for figure in figures]
    assert [image.get_attribute("alt") for image in images] == [f"Drawn for: {prompt}"] * 2
    assert [browser.execute_script("return arguments[0].naturalWidth", image) for image in images] == [64, 64]
    assert images[0].get_attribute("src") != images[1].get_attribute("src")
    assert text(browser, "#said") == ""
    assert not [line for line in browser.get_log("browser") if line["level"] == "SEVERE"]
    if os.environ.get(PICTURES):
        browser.save_screenshot(str(Path(os.environ[PICTURES]) / "serving-page.png"))


def test_previews_are_shown_and_stop_stops(browser: Chrome, world: World) -> None:
    class Slower(Painter):
        seconds = 0.25

    world.promote("1")
    with serving(world.settings(), Slower()) as server:
        server.wait(version="1")
        browser.get(f"{server.url}/")
        wait(browser, "#standing", "ready")
        browser.find_element(By.ID, "steps").send_keys("90")
        browser.find_element(By.ID, "draw").click()
        shown = WebDriverWait(browser, 180).until(
            lambda seen: seen.find_element(By.CSS_SELECTOR, "#pictures img[alt^='Preview']")
        )
        assert str(shown.get_attribute("src")).startswith("data:image/png")
        browser.find_element(By.ID, "stop").click()
        wait(browser, "#said", "Stopped.")
        WebDriverWait(browser, 180).until(lambda _: server.backend.active == 0)


def test_what_is_wrong_is_told(browser: Chrome, world: World) -> None:
    world.promote("1")
    with serving(world.settings()) as server:
        server.wait(version="1")
        browser.get(f"{server.url}/")
        wait(browser, "#standing", "ready")
        prompt = browser.find_element(By.ID, "prompt")
        browser.execute_script("arguments[0].value = 'x'.repeat(5000)", prompt)
        browser.find_element(By.ID, "draw").click()
        wait(browser, "#said", "at most 4000")
        world.withdraw("1")
        server.wait(version=None)
        browser.refresh()
        wait(browser, "#standing", "No champion is loaded")


def test_a_key_is_asked_for_where_one_is_needed(browser: Chrome, world: World, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("0123456789abcdef")
    world.promote("1")
    with serving(world.settings(api_key=tmp_path / "key")) as server:
        server.wait(version="1")
        browser.get(f"{server.url}/")
        field = browser.find_element(By.ID, "key")
        WebDriverWait(browser, 180).until(lambda _: field.is_displayed())
        field.send_keys("0123456789abcdef", Keys.TAB)
        wait(browser, "#panels", "alignment")
        browser.find_element(By.ID, "draw").click()
        wait(browser, "#standing", "Done: version 1")


def test_the_page_runs_no_script_but_its_own_and_names_all_it_asks_for(browser: Chrome, running: Running) -> None:
    browser.get(f"{running.url}/")
    wait(browser, "#standing", "ready")
    browser.execute_script(
        "const made = document.createElement('script'); made.textContent = 'window.ran = 1'; document.body.append(made)"
    )
    assert browser.execute_script("return window.ran") is None
    asked = browser.execute_script("return performance.getEntriesByType('resource').map((one) => one.name)")
    assert asked
    assert all(name.startswith(running.url) for name in asked)
    unnamed = browser.execute_script(
        "return [...document.querySelectorAll('input, textarea, button')].filter((one) => !one.labels?.length"
        " && !one.textContent.trim()).map((one) => one.id)"
    )
    assert unnamed == []
    policy = running.get("/").headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy
