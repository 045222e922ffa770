"""A real browser, with a keyboard and a mouse. Oracle: the rows the page was made of, sorted and filtered in Python."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.leaderboard.factory import board, record
from tests.pages.browser import Browser, needs_chromium
from vlbench.leaderboard.published import load_published
from vlbench.leaderboard.rows import Row, rows, rows_of
from vlbench.pages.board import page

pytestmark = needs_chromium

EVIL = "<script>window.evil = 1</script><img src=x onerror='window.evil = 1'>"


def other_board() -> list[Any]:
    """A second task whose names want to be HTML, with a second model."""
    changed = [r.model_copy(update={"task": "nlvr2", "cell": "n" + r.cell}) for r in board()]
    evil = [r.model_copy(update={"model": EVIL, "flags": [EVIL], "cell": "e" + r.cell}) for r in changed]
    return [*changed, *evil]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    tab = Browser()
    yield tab
    tab.close()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("page") / "index.html"
    path.write_text(page("mini", rows_of([*board(), *other_board()]), load_published()), encoding="utf-8")
    return path


@pytest.fixture
def tab(browser: Browser, file: Path) -> Iterator[Browser]:
    """The page at the board of VQAv2, in a wide light window."""
    browser.window(1280)
    browser.scheme("light")
    browser.open("about:blank")
    browser.open(f"{file.as_uri()}#vqav2%2Fblip-mini")
    yield browser
    assert browser.errors == []


def ours() -> list[Row]:
    return rows(board())


def column(tab: Browser, number: int) -> list[str]:
    """The cells of a column, from the top."""
    found: list[str] = tab.run(f"[...document.querySelectorAll('tr.row')].map(r => r.children[{number}].textContent)")
    return found


def choose(tab: Browser, name: str, value: str) -> None:
    tab.run(
        f"(() => {{ const e = document.getElementById({name!r}); e.value = {json.dumps(value)};"
        "e.dispatchEvent(new Event('input', {bubbles: true})); })()"
    )


def test_every_row_is_there_and_nothing_is_fetched(tab: Browser, file: Path) -> None:
    assert len(column(tab, 0)) == len(ours())
    assert [address.split("#")[0] for address in tab.requests] == [file.as_uri()]
    assert tab.run("document.querySelectorAll('#table thead th').length") == 10


def test_a_header_sorts_up_down_and_back(tab: Browser) -> None:
    choose(tab, "group", "")
    values = [f"{row.value:.2f}" for row in ours()]

    def shown() -> list[str]:
        return [cell.split(" ")[0] for cell in column(tab, 5)]

    assert shown() == values
    tab.click("thead th:nth-child(6) button")
    assert shown() == sorted(values, key=float, reverse=True), "the best first"
    assert tab.run("document.querySelector('thead th:nth-child(6)').ariaSort") == "descending"
    tab.click("thead th:nth-child(6) button")
    assert shown() == sorted(values, key=float)
    tab.click("thead th:nth-child(6) button")
    assert shown() == values
    assert tab.run("document.querySelector('thead th:nth-child(6)').ariaSort") == "none"


def test_numbers_are_sorted_as_numbers_and_nothing_comes_last(tab: Browser) -> None:
    choose(tab, "group", "")
    tab.click("thead th:nth-child(7) button")  # vs dense, which the dense model has not
    deltas = [row.delta for row in ours() if row.delta is not None]
    assert [float(cell.split(" ")[0]) for cell in column(tab, 6)[:-1]] == [round(d, 2) for d in sorted(deltas)[::-1]]
    assert column(tab, 6)[-1] == ""
    tab.click("thead th:nth-child(7) button")
    assert column(tab, 6)[-1] == ""


def test_filters_leave_what_they_say(tab: Browser) -> None:
    choose(tab, "pattern", "structured")
    assert column(tab, 0) == [row.method for row in ours() if row.pattern == "structured"]
    choose(tab, "search", "UPOP")
    assert column(tab, 0) == ["upop"]
    assert tab.run("document.getElementById('count').textContent") == f"1 of {len(ours())} rows"
    choose(tab, "search", "no such method")
    assert column(tab, 0) == []
    choose(tab, "search", "")
    choose(tab, "pattern", "")
    choose(tab, "training", "untrained")
    assert len(column(tab, 0)) == sum(not row.trained for row in ours())


def test_rows_are_grouped_with_their_numbers(tab: Browser) -> None:
    def headings() -> list[str]:
        found: list[str] = tab.run("[...document.querySelectorAll('th[scope=rowgroup]')].map(e => e.textContent)")
        return found

    sections = [row.section for row in ours()]
    assert headings() == [f"{name} ({sections.count(name)})" for name in dict.fromkeys(sections)]
    choose(tab, "group", "training")
    assert headings() == ["untrained (5)", "trained (3)"]
    choose(tab, "group", "")
    assert headings() == []


def test_everything_can_be_done_by_keyboard(tab: Browser) -> None:
    tab.run("document.querySelector('thead button').focus()")
    for _ in range(5):
        tab.press("Tab")
    assert tab.run("document.activeElement.textContent") == "accuracy"
    tab.press("Enter")
    assert tab.run("document.activeElement.closest('th').ariaSort") == "descending"  # the focus stays where it was
    tab.press(" ")
    assert tab.run("document.activeElement.closest('th').ariaSort") == "ascending"
    for _ in range(5):
        tab.press("Tab")
    assert tab.run("document.activeElement.ariaExpanded") == "false"
    tab.press("Enter")
    assert tab.run("document.activeElement.ariaExpanded") == "true"
    assert "removed of each tower" in tab.run("document.querySelector('tr.more').textContent")
    tab.press("Enter")
    assert tab.run("document.querySelector('tr.more')") is None
    tab.run("document.querySelector('input[name=task]:checked').focus()")
    tab.press("ArrowRight")
    assert tab.run("document.getElementById('subject').textContent").startswith("nlvr2")


def test_what_can_be_operated_shows_its_focus_and_has_a_name(tab: Browser) -> None:
    names = tab.run(
        "[...document.querySelectorAll('button, select, input')].filter(e => e.offsetParent !== null)"
        ".map(e => (e.textContent || e.closest('label')?.textContent || '').trim())"
    )
    assert all(names)
    tab.run("document.querySelector('thead button').focus()")
    tab.press("Tab")
    assert tab.run("getComputedStyle(document.activeElement).outlineStyle") == "solid"


def test_an_opened_row_tells_the_rest(tab: Browser) -> None:
    choose(tab, "search", "upop")
    tab.click("tr.row button")
    told = tab.run(
        "Object.fromEntries([...document.querySelectorAll('tr.more dl div')]"
        ".map(line => [...line.children].map(part => part.textContent)))"
    )
    row = next(row for row in ours() if row.method == "upop")
    assert told["config"] == row.config
    assert told["steps"] == str(row.steps)
    assert tab.run("document.querySelector('tr.more meter').value") == row.sparsity
    seeds = [f"{r.interval.value:.2f} (seed {r.seed})" for r in board() if r.method == "upop"]
    assert ", ".join(seeds) in tab.run("document.querySelector('tr.more').textContent")


def test_the_answer_is_in_sight_at_every_width(tab: Browser) -> None:
    """Method, sparsity and the metric with its interval without scrolling sideways; what left is told by the row."""
    for width, left in ((1280, []), (1024, ["pattern", "samples seen"]), (390, ["pattern", "parameters", "seeds"])):
        tab.window(width)
        inside = tab.run("document.querySelector('.scroll').getBoundingClientRect().right")
        assert tab.run("document.querySelector('tr.row td:nth-child(6)').getBoundingClientRect().right") <= inside
        heads = tab.run(
            "[...document.querySelectorAll('#table thead th')].filter(e => e.offsetParent).map(e => e.textContent)"
        )
        assert not set(left) & set(heads)
        tab.click("tr.row button")
        told = tab.run(
            "[...document.querySelectorAll('tr.more dt')].filter(e => e.offsetParent).map(e => e.textContent)"
        )
        assert set(left) <= set(told)
        tab.click("tr.row button")


def test_a_row_in_focus_lights_its_points(tab: Browser) -> None:
    tab.run("document.querySelectorAll('tr.row button')[2].focus()")
    assert tab.run("document.querySelectorAll('#charts .point.lit').length") == 2
    tab.run("document.activeElement.blur()")
    assert tab.run("document.querySelectorAll('#charts .point.lit').length") == 0


def test_the_front_is_what_no_other_row_beats(tab: Browser) -> None:
    points = [(row.nonzero / 1.95e6 * 100, row.value / ours()[0].value * 100) for row in ours()]
    wanted = sorted((x, y) for x, y in points if not any(a <= x and b >= y and (a, b) != (x, y) for a, b in points))
    found = tab.run("document.querySelector('#charts .front').getAttribute('d')")
    assert found.count("V") == len(wanted) - 1
    heights = [float(part.split("V")[1]) for part in found.split("H")[1:]]
    assert all(a > b for a, b in pairwise(heights))  # up: better with every step to the right
    assert tab.run("document.querySelectorAll('#charts svg:first-child .point').length") == len(points)


def test_published_results_are_crosses_that_can_be_left_out(tab: Browser) -> None:
    crosses = "document.querySelectorAll('#charts .published').length"
    assert tab.run(crosses) > 0
    assert "no ranking" in tab.run("document.getElementById('chart-note').textContent")
    tab.click("#published")
    assert tab.run(crosses) == 0
    tab.click("#published")
    choose(tab, "scale", "size")
    assert tab.run(crosses) == 0  # a tiny model and a published one share no axis
    assert "shares of the dense model only" in tab.run("document.getElementById('chart-note').textContent")


def test_a_point_leads_to_its_row(tab: Browser) -> None:
    tab.run("document.querySelectorAll('#charts svg:first-child .point')[0].dispatchEvent(new MouseEvent('click'))")
    assert tab.run("document.querySelector('tr.lit th').textContent") == "dense"
    assert tab.run("document.activeElement.textContent") == "dense"


def test_names_are_texts_and_never_run(tab: Browser) -> None:
    tab.click("label:has(input[value=nlvr2])")
    assert tab.run("document.querySelectorAll('#model option').length") == 2
    tab.run(
        "(() => { const e = document.getElementById('model'); const texts = [...e.options].map(o => o.text);"
        "e.selectedIndex = texts.findIndex(text => text.includes('<')); e.dispatchEvent(new Event('change')); })()"
    )
    assert EVIL in tab.run("document.getElementById('subject').textContent")
    assert EVIL in column(tab, 9)
    assert tab.run("window.evil === undefined")
    assert tab.run("document.querySelectorAll('main img, main script').length") == 0


@pytest.mark.parametrize("width", [320, 390, 800])
def test_a_narrow_window_shows_all_without_scrolling_the_page(tab: Browser, width: int) -> None:
    tab.window(width)
    assert tab.run("document.documentElement.scrollWidth") <= width
    box = tab.run(
        "(() => { const r = document.querySelector('.charts svg').getBoundingClientRect(); return [r.x, r.right]; })()"
    )
    assert box[0] >= 0
    assert box[1] <= width
    tab.click("tr.row button")
    assert tab.run("document.querySelector('tr.more dl').getBoundingClientRect().right") <= width


def test_a_reader_of_the_dark_gets_light_letters(tab: Browser) -> None:
    def contrast(selector: str) -> float:
        """WCAG's ratio of an element's colour to that of the page behind it."""
        told: list[str] = tab.run(
            f"(() => {{ const e = document.querySelector({selector!r}); const look = getComputedStyle;"
            "let b = e; while (b && look(b).backgroundColor === 'rgba(0, 0, 0, 0)') b = b.parentElement;"
            "return [look(e)[e.closest('svg') ? 'fill' : 'color'], look(b || document.body).backgroundColor]; })()"
        )
        light, dark = sorted((luminance(colour) for colour in told), reverse=True)
        return (light + 0.05) / (dark + 0.05)

    places = (
        "h1",
        "#facts",
        "td.bad",
        "thead button",
        "th[scope=rowgroup]",
        ".legend li",
        "#charts text",
        "#chart-note",
    )
    for scheme in ("light", "dark"):
        tab.scheme(scheme)
        assert {place: contrast(place) >= 4.5 for place in places} == dict.fromkeys(places, True), scheme
    assert luminance(tab.run("getComputedStyle(document.body).backgroundColor")) < 0.05


def luminance(colour: str) -> float:
    parts = [int(part) / 255 for part in colour.partition("(")[2].rstrip(")").split(",")[:3]]
    linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_a_long_board_opens_and_sorts(browser: Browser, tmp_path: Path) -> None:
    """How long 2,000 rows take is measured by tests/benchmarks/pages.py."""
    first, *_ = board()
    many = [
        record(
            "magnitude", sparsity=0.5, pattern="unstructured", values=[1.0, 0.0] * 50, options={"n": n}, vs_dense=None
        )
        for n in range(300)
    ]
    path = tmp_path / "index.html"
    path.write_text(page("mini", rows_of([first, *many]), ()), encoding="utf-8")
    browser.open(path)
    assert len(column(browser, 0)) == 301
    browser.click("thead th:nth-child(1) button")
    assert browser.errors == []
    assert browser.run("document.querySelector('.scroll').classList.contains('long')")
