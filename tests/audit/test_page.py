"""The HTML page: it needs nothing beside it, and nothing in the evidence can do anything in it."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from pipelines.audit import write_page
from tests.audit.world import HOSTILE, REASON, World, changed

ALLOWED = {"html", "head", "meta", "title", "style", "body", "h1", "h2", "h3", "p", "div", "span", "ul", "li", "img"}
ALLOWED |= {"dl", "dt", "dd", "code", "table", "tr", "th", "td", "details", "summary", "b"}
ALLOWED |= {"svg", "defs", "marker", "path", "g", "rect", "text"}


class Tags(HTMLParser):
    """All tags and attributes of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


@pytest.fixture(scope="module")
def page(world: World) -> str:
    return write_page(world.audit("1"))


def test_it_needs_nothing_beside_it(world: World) -> None:
    for what in ("1", "2", "4", "run-3", str(world.picture(1))):
        for tag, attributes in Tags(write_page(world.audit(what))).tags:
            assert tag in ALLOWED, tag
            assert not [name for name in attributes if name.startswith("on") or name in ("href", "srcset")]
            assert (attributes.get("src") or "data:").startswith("data:")


def test_hostile_captions_and_reasons_are_only_shown(world: World) -> None:
    page = write_page(world.audit("2")) + write_page(world.audit("1"))
    assert "<script" not in page and "<img src=x" not in page
    assert "&lt;script&gt;alert(" in page and "&lt;img src=x onerror=alert(1)&gt; consent taken back" in page
    assert HOSTILE not in page and REASON not in page


def test_a_hostile_question_is_only_shown(world: World) -> None:
    report = world.audit("1").model_copy(update={"what": "<b onclick=x>", "found": "</style><script>"})
    assert "<script" not in write_page(report) and "<b onclick" not in write_page(report)


def test_it_draws_the_graph_and_shows_the_pictures(world: World) -> None:
    page = write_page(world.audit("2"))
    boxes = re.findall(r'<text class="title"[^>]*>([^<]*)<', page)
    assert boxes == [
        *("Trained on", "Refused", "Features", "Candidate", "Evaluated on", "Verdict: promote", "Judged against"),
        *("Version 2", "Trained from", "Promoted", "Version 3", "Version 4", "Version 5"),
    ]
    assert len(re.findall(r"<img ", page)) == 4 + 2, "training images, the three axes, the samples"


def test_what_does_not_hold_is_red_in_the_graph_and_not_shown(world: World) -> None:
    with changed(world.evidence("2") / "scores" / "grid.png", b"\x89PNG\r\n\x1a\nanother"):
        page = write_page(world.audit("2"))
    assert 'alt="samples"' not in page
    with changed(world.weights("2") / "model_index.json", b"{}"):
        page = write_page(world.audit("2"))
    assert re.search(r'<g class="does-not-hold">\s*<rect[^>]*/>\s*<text class="title"[^>]*>Candidate<', page)
    assert "NOT everything holds" in page


def test_something_else_than_a_picture_is_left_out(world: World) -> None:
    report = world.audit("2")
    images = {"grid": b"<svg onload=alert(1)>", "training/1.png": b"no picture"}
    assert "<img " not in write_page(report.model_copy(update={"images": images}))
