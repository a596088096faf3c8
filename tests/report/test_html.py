"""html.py: one file that loads nothing, reads well in light and dark, and escapes what it is told."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import msgspec
import pytest
from report import fake_run
from report.test_facts_floor import floor

from harness.report.facts import RunReport
from harness.report.html import html
from harness.slo.verdict import State


def in_window(low: float, high: float, rule: str) -> RunReport:
    report = fake_run.report(State.FAIL)
    window = {"window_s": (low, high), "window_rule": rule}
    return msgspec.structs.replace(report, summary=msgspec.structs.replace(report.summary, **window))


FROM_MSER5 = "from MSER-5's cut, 95 of 300 requests after the start, to the end of the arrivals"


@pytest.mark.parametrize(
    ("window", "rule", "where"),
    [
        ((6.0, 24.0), "fixed by hand: 6 s to 24 s", "before 6.00 s and from 24.0 s on"),
        ((9.5, 99.0), FROM_MSER5, "before 9.50 s"),
        ((0.0, 15.0), "from the start to the end of the arrivals", "from 15.0 s on"),
        ((0.0, 0.0), "from the warm-up of 9 s to the end of the arrivals", "from 0 s on"),
    ],
)
def test_the_page_says_what_is_shaded_and_why(window, rule, where):
    content = html(in_window(*window, rule)).replace("&#39;", "'")
    said = f"Shaded is what lies {where}: requests due then are not judged. The window is {rule}. "
    assert f"The whole run by the clock. {said}" in content
    assert "What is shaded above is shaded here." in content


def test_where_all_is_judged_the_page_says_that_nothing_is_shaded():
    content = html(in_window(0.0, 99.0, "from the start to the end of the arrivals"))
    assert "The whole run by the clock. Nothing is shaded: all of it is judged. " in content
    assert "shaded here" not in content


def test_the_figures_at_the_top_bear_the_mark_too():
    marked = html(msgspec.structs.replace(fake_run.report(State.PASS), floor=floor(10.0)))
    top = marked[: marked.index('id="objectives"')]
    assert "requests, not resolvable</small>" in top
    assert "not resolvable" not in html(fake_run.report(State.PASS))


VOID = {"meta", "br", "hr", "img", "link", "input"}


class Page(HTMLParser):
    """The elements of a page, and whether they nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[int]] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.rows.append([])
        elif tag == "tr":
            self.rows[-1].append(0)
        elif tag in {"td", "th"}:
            self.rows[-1][-1] += 1

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def text() -> str:
    return html(fake_run.report(State.FAIL))


@pytest.fixture(scope="module")
def page(text: str) -> Page:
    return Page(text)


def test_the_elements_nest_and_all_are_closed(page):
    assert page.open == []


def test_it_loads_nothing_and_runs_nothing(text, page):
    assert {tag for tag, _ in page.tags} & {
        "script",
        "link",
        "img",
        "iframe",
        "object",
        "base",
        "form",
    } == set()
    for _, attributes in page.tags:
        assert all((attributes.get(name) or "#").startswith("#") for name in ("href", "src", "xlink:href"))
        assert not any(name.startswith("on") for name in attributes)
    assert "url(" not in text
    assert "@import" not in text
    assert "default-src 'none'" in text


def test_every_link_goes_somewhere(page):
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    links = {attributes["href"] for tag, attributes in page.tags if tag == "a"}
    assert len(ids) == len(set(ids))
    assert links == {f"#{each}" for each in ids}


def test_every_row_has_as_many_cells_as_its_header(page):
    assert len(page.rows) >= 8
    for table in page.rows:
        assert len(set(table)) == 1, table


@pytest.mark.parametrize("state", list(State))
def test_the_verdict_comes_first(state):
    content = html(fake_run.report(state))
    body = content[content.index("<body>") :]
    assert body.index(f'class="word">{state}<') < body.index("<h2")


def test_what_the_run_says_is_escaped():
    content = html(fake_run.hostile())
    assert "<script" not in content
    assert "&lt;script&gt;" in content
    assert Page(content).open == []


def test_a_run_without_records_has_a_page():
    content = html(fake_run.assemble([]))
    assert Page(content).open == []
    assert "INVALID" in content
    assert "<svg" in content


def test_it_is_small_and_stays_so(text):
    assert len(text) < 300_000
    assert len(html(fake_run.report(State.FAIL, rate=40))) > 0.5 * len(text)


def themes(text: str) -> list[dict[str, str]]:
    return [
        dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block))
        for block in re.findall(r":root \{(.*?)\}", text, re.DOTALL)
    ]


def luminance(colour: str) -> float:
    channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_text_and_lines_stand_out_in_both_themes(text):
    light, dark = themes(text)
    for theme in (light, dark):
        for ground in ("page", "card"):
            for name in ("text", "muted", "good", "bad", "unsure", "broken"):
                assert contrast(theme[name], theme[ground]) >= 4.5, name
        for name in ("c1", "c2", "c3", "c4", "c5", "c6"):
            assert contrast(theme[name], theme["page"]) >= 3, name


def test_every_colour_used_is_defined_in_both_themes(text):
    light, dark = themes(text)
    used = set(re.findall(r"var\(--([\w-]+)\)", text)) - {"state"}
    assert light.keys() == dark.keys()
    assert used <= light.keys()
