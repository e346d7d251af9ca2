import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.tools.ci.browser import Browser
from tests.unit.tools.ci.whole_run import green_run, red_run
from tools.ci.last_run import read_run
from tools.ci.page import render

PROGRAM = str(Path(os.environ["PLUMBLINE_CHROMIUM"]).absolute()) if "PLUMBLINE_CHROMIUM" in os.environ else "chromium"

PHONE, DESK = 360, 1200

#: A small matrix: a browser is slow, and more of the same shows nothing new.
FEATURES = ("activation_checkpointing", "cpu_offload", "lora", "packing")

OPEN_ALL = "document.querySelectorAll('details').forEach((each) => { each.open = true; })"

#: Every piece of text that is to be seen and whose colour is too near to what is behind it, as WCAG 2 measures it.
FAINT = """(() => {
  const channels = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((each) => each / 255)
    .map((each) => each <= 0.04045 ? each / 12.92 : ((each + 0.055) / 1.055) ** 2.4)
    .reduce((sum, each, at) => sum + each * [0.2126, 0.7152, 0.0722][at], 0);
  const behind = (element) => {
    for (; element; element = element.parentElement) {
      const colour = channels(getComputedStyle(element).backgroundColor);
      if (colour.length < 4 || colour[3] > 0) return colour;
    }
    return [255, 255, 255];
  };
  const faint = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.textContent.trim() || !element.checkVisibility()) continue;
    if (element.closest('.vh, script')) continue;
    const style = getComputedStyle(element);
    const [a, b] = [light(channels(style.color)), light(behind(element))].sort((x, y) => y - x);
    const large = parseFloat(style.fontSize) >= 24;
    if ((a + 0.05) / (b + 0.05) < (large ? 3 : 4.5)) faint.push(walker.currentNode.textContent.trim().slice(0, 40));
  }
  for (const glyph of document.querySelectorAll('svg.g')) {
    const [a, b] = [light(channels(getComputedStyle(glyph).color)), light(behind(glyph))].sort((x, y) => y - x);
    if ((a + 0.05) / (b + 0.05) < 3) faint.push(glyph.className.baseVal);
  }
  return faint;
})()"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(PROGRAM, tmp_path_factory.mktemp("browser") / "profile") as started:
        yield started


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("red")
    path = folder / "index.html"
    path.write_text(render(read_run(red_run(folder, FEATURES)), {"commit": "0123456789ab", "subject": "What it did"}))
    return path


@pytest.fixture(scope="module")
def green_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("green")
    path = folder / "index.html"
    path.write_text(render(read_run(green_run(folder)), {}))
    return path


@pytest.mark.parametrize("width", [320, PHONE, 768, DESK])
def test_nothing_is_wider_than_the_screen_even_with_everything_open(browser: Browser, page: Path, width: int) -> None:
    browser.open(page, width=width)
    browser.evaluate(OPEN_ALL)
    wider = f"""[...document.querySelectorAll('body *')].filter((each) => !each.closest('.vh, pre')
      && each.getBoundingClientRect().right > {width} + 0.5).map((each) => each.tagName + '.' + each.className)"""
    assert browser.evaluate(wider) == []
    assert browser.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("width", [320, PHONE, DESK])
def test_a_link_to_a_section_shows_its_heading_below_the_links(browser: Browser, page: Path, width: int) -> None:
    browser.open(page, width=width)
    hidden = browser.evaluate("""(() => {
      document.documentElement.style.scrollBehavior = 'auto';
      const links = [...document.querySelectorAll('nav a')];
      return links.filter((each) => {
        each.click();
        const heading = document.querySelector(`${each.hash} h2`).getBoundingClientRect();
        return heading.top < document.querySelector('nav').getBoundingClientRect().bottom - 0.5;
      }).map((each) => each.hash);
    })()""")
    assert hidden == []


@pytest.mark.parametrize("dark", [False, True])
def test_every_word_and_sign_stands_out_from_what_is_behind_it(browser: Browser, page: Path, dark: bool) -> None:
    browser.open(page, width=DESK, dark=dark)
    browser.evaluate(OPEN_ALL)
    assert browser.evaluate("matchMedia('(prefers-color-scheme: dark)').matches") is dark
    assert browser.evaluate(FAINT) == []


def test_the_check_of_contrast_can_fail(browser: Browser, page: Path) -> None:
    browser.open(page, width=DESK)
    browser.evaluate("document.querySelector('.lead').style.color = '#999'")
    assert len(browser.evaluate(FAINT)) == 1


@pytest.mark.parametrize("width", [PHONE, DESK])
def test_every_cell_that_says_more_can_be_reached_and_hit(browser: Browser, page: Path, width: int) -> None:
    browser.open(page, width=width)
    browser.evaluate(OPEN_ALL)
    cells = browser.evaluate("""[...document.querySelectorAll('.grid a')].map((each) => {
      each.focus();
      const box = each.getBoundingClientRect();
      return [document.activeElement === each, Math.min(box.width, box.height), each.textContent.trim()];
    })""")
    assert len(cells) > 100
    assert all(focused and size >= 24 and words for focused, size, words in cells), min(size for _, size, _ in cells)


def test_tab_walks_from_the_skip_link_through_the_sections_into_the_page(browser: Browser, page: Path) -> None:
    browser.open(page, width=DESK)
    walked = []
    for _ in range(60):
        browser.press("Tab")
        walked.append(browser.evaluate("document.activeElement.textContent.trim().split('\\n')[0]"))
    assert walked[:3] == ["Skip to the results", "Picture", "Failures"]
    assert "proven" in walked
    assert "failed" in walked


def test_a_cell_opens_beside_the_matrix_and_gives_the_focus_back(browser: Browser, page: Path) -> None:
    browser.open(page, width=DESK)
    inside = "document.querySelector('dialog .inside').textContent"
    browser.evaluate("document.querySelector('.grid a[href=\"#cell-cpu-sft_single_x1\"]').focus()")
    browser.press("Enter")
    assert browser.evaluate("document.querySelector('dialog').open")
    assert browser.evaluate("document.getElementById('shown-title').textContent") == "sft_single_x1"
    assert "step 3 differs" in browser.evaluate(inside)
    browser.press("Escape")
    assert not browser.evaluate("document.querySelector('dialog').open")
    assert browser.evaluate(inside) == ""
    assert browser.evaluate("document.activeElement.hash") == "#cell-cpu-sft_single_x1"
    assert "step 3 differs" in browser.evaluate("document.getElementById('cell-cpu-sft_single_x1').textContent")


def test_arrow_keys_move_between_cells(browser: Browser, page: Path) -> None:
    browser.open(page, width=DESK)
    where = "document.activeElement.closest('a').title.split(':')[0]"
    browser.evaluate("document.querySelector('.grid a').focus()")
    start = browser.evaluate(where)
    browser.press("ArrowDown")
    below = browser.evaluate(where)
    browser.press("ArrowRight")
    browser.press("ArrowUp")
    browser.press("ArrowLeft")
    assert (start, below, browser.evaluate(where)) == ("sft_single_x1", "sft_activation_checkpointing_single_x1", start)


def test_without_its_script_a_link_still_opens_the_details_of_a_cell(browser: Browser, page: Path) -> None:
    browser.open(page, width=DESK, script=False)
    assert not browser.evaluate("document.querySelector('.cell').open")
    browser.evaluate("document.querySelector('.grid a[href=\"#cell-cpu-sft_single_x1\"]').focus()")
    browser.press("Enter")
    assert not browser.evaluate("document.querySelector('dialog').open")
    assert browser.evaluate("document.getElementById('cell-cpu-sft_single_x1').parentElement.open")


def named(tree: list[dict[str, Any]], *roles: str) -> list[str]:
    """The names that a screen reader says of everything with these roles."""
    return [
        node.get("name", {}).get("value", "").strip()
        for node in tree
        if not node["ignored"] and node.get("role", {}).get("value") in roles
    ]


def test_a_screen_reader_hears_a_name_for_everything_it_can_use(browser: Browser, page: Path) -> None:
    browser.open(page, width=DESK)
    browser.call("Accessibility.enable")
    tree = browser.call("Accessibility.getFullAXTree")["nodes"]
    used = named(tree, "link", "button", "DisclosureTriangle", "image", "region", "table", "columnheader", "rowheader")
    assert len(used) > 100
    assert all(used)
    assert {"The matrix", "What failed", "Loss curves"} <= set(named(tree, "region"))
    assert named(tree, "main", "banner", "contentinfo", "navigation") == ["", "Sections", "", ""]
    assert {"sft lora + packing", "sft no feature", "ppo no feature"} <= set(named(tree, "rowheader"))


def test_the_page_asks_for_nothing_and_complains_of_nothing(browser: Browser, page: Path, green_page: Path) -> None:
    browser.call("Log.enable")
    for path in (page, green_page):
        browser.open(path, width=DESK)
        asked = [
            each["params"]["request"]["url"] for each in browser.events if each["method"] == "Network.requestWillBeSent"
        ]
        assert asked == [path.as_uri()]
        complaints = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")
        assert [each for each in browser.events if each["method"] in complaints] == []


def test_what_it_looks_like_is_kept_for_whoever_looks(browser: Browser, page: Path, green_page: Path) -> None:
    folder = Path(os.environ.get("TEST_UNDECLARED_OUTPUTS_DIR", page.parent))
    for name, path, width, dark in (
        ("desk", page, DESK, False),
        ("desk dark", page, DESK, True),
        ("phone", page, PHONE, False),
        ("green", green_page, DESK, False),
    ):
        browser.open(path, width=width, dark=dark)
        browser.screenshot(folder / f"{name}.png")
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
