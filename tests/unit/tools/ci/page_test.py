import itertools
import re
from collections import Counter
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tests.unit.tools.ci import smoke_files
from tests.unit.tools.ci.runs import Smoke
from tests.unit.tools.ci.whole_run import HOSTILE, green_run, red_run
from tools.ci import page
from tools.ci.last_run import read_run
from tools.ci.views import SMOKE_SECONDS_MAX

#: Elements without an end tag, and those that HTML takes from SVG with a closing slash.
VOID = {"meta", "br", "wbr", "img", "link", "input", "hr"}


class Parsed(HTMLParser):
    """A page as a list of elements, with what is wrong in how it is put together."""

    def __init__(self, html: str) -> None:
        """Reads the whole of it."""
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.problems: list[str] = []
        self.elements: list[tuple[str, dict[str, str], tuple[str, ...]]] = []
        self.text: list[tuple[tuple[str, ...], str]] = []
        self.feed(html)
        self.close()
        self.problems += [f"<{name}> is never closed" for name in self.open]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """An element begins."""
        if len(dict(attrs)) != len(attrs):
            self.problems.append(f"<{tag}> has an attribute twice")
        if tag in ("p", "h1", "h2", "h3") and "p" in self.open:
            self.problems.append(f"<{tag}> inside <p>")
        self.elements.append((tag, {name: value or "" for name, value in attrs}, tuple(self.open)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """An element of SVG that holds nothing."""
        self.elements.append((tag, {name: value or "" for name, value in attrs}, tuple(self.open)))

    def handle_endtag(self, tag: str) -> None:
        """An element ends, which must be the one that began last."""
        if not self.open or self.open.pop() != tag:
            self.problems.append(f"</{tag}> at line {self.getpos()[0]} closes something else")

    def handle_data(self, data: str) -> None:
        """Words."""
        self.text.append((tuple(self.open), data))

    def all(self, *tags: str) -> list[dict[str, str]]:
        """The attributes of every element of these kinds."""
        return [attributes for tag, attributes, _ in self.elements if tag in tags]


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> str:
    run = read_run(red_run(tmp_path_factory.mktemp("red")))
    return page.render(run, {"commit": "0123456789ab"})


@pytest.fixture(scope="module")
def parsed(html: str) -> Parsed:
    return Parsed(html)


def test_every_element_is_closed_where_it_should_be(parsed: Parsed) -> None:
    assert parsed.problems == []


def test_the_check_of_elements_can_fail() -> None:
    assert Parsed("<p><b></p></b>").problems == [
        "</p> at line 1 closes something else",
        "</b> at line 1 closes something else",
    ]
    assert Parsed("<main><p><h2></h2></p>").problems == ["<h2> inside <p>", "<main> is never closed"]


def test_names_are_used_once_and_every_link_leads_somewhere(parsed: Parsed) -> None:
    names = [attributes["id"] for _, attributes, _ in parsed.elements if "id" in attributes]
    assert len(names) == len(set(names))
    wanted = [each["href"] for each in parsed.all("a", "use")]
    wanted += [f"#{each['aria-labelledby']}" for _, each, _ in parsed.elements if "aria-labelledby" in each]
    assert {name.removeprefix("#") for name in wanted} <= set(names)
    assert all(name.startswith("#") for name in wanted)


def test_nothing_is_loaded_from_anywhere(html: str, parsed: Parsed) -> None:
    assert not parsed.all("img", "link", "iframe", "object", "embed", "base", "form")
    assert [each for each in parsed.all("script", "image", "source") if "src" in each] == []
    assert "url(" not in html
    assert "@import" not in html
    policy = next(each["content"] for each in parsed.all("meta") if each.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-")


def test_what_a_test_says_stays_words(parsed: Parsed) -> None:
    assert len(parsed.all("script")) == 1
    said = [text for path, text in parsed.text if HOSTILE[:20] in text]
    assert any("pre" in path for path, text in parsed.text if HOSTILE[:20] in text)
    assert len(said) > 3
    assert not any("\x1b" in text or "\x00" in text for text in said)


def test_a_screen_reader_finds_its_way(parsed: Parsed) -> None:
    assert parsed.all("html") == [{"lang": "en"}]
    assert [len(parsed.all(tag)) for tag in ("title", "h1", "main", "header", "nav", "footer")] == [1] * 6
    levels = [int(tag[1]) for tag, _, path in parsed.elements if re.fullmatch("h[1-6]", tag) and "dialog" not in path]
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    for tag, attributes, path in parsed.elements:
        if tag == "section":
            assert attributes["aria-labelledby"].startswith("h-")
        if tag == "th":
            assert attributes.get("scope") in ("row", "col", "colgroup")
        if tag == "svg":
            assert attributes.get("aria-hidden") == "true" or attributes.get("aria-label"), path
    assert len(parsed.all("table")) == len(parsed.all("caption"))
    assert len(parsed.all("details")) == len(parsed.all("summary"))


def test_a_state_is_said_in_words_and_shape_and_not_only_in_colour(html: str) -> None:
    cells = re.findall(
        r'<(?:a|span) class="k"[^>]*title="([^"]*)"[^>]*><svg class="g ([\w-]+)"[^>]*>'
        r'<use href="#g-([\w-]+)"/></svg><span class="vh">([^<]*)</span>',
        html,
    )
    assert len(cells) == html.count('class="k"') > 300
    for title, colour, shape, words in cells:
        assert colour == shape == words.replace(" ", "-")
        assert f": {words}" in title
    assert {words for *_, words in cells} == {
        "failed",
        "missing",
        "proven",
        "cached",
        "unproven",
        "left out",
        "refused",
    }


def test_every_blocking_cell_of_the_matrix_is_linked_once(html: str) -> None:
    names = Counter(re.findall(r'<a class="k" href="#[^"]+" title="([^":]+): ', html))
    blocking = [cell["name"] for cell in smoke_files.matrix()["cells"] if cell["depth"] == "blocking"]
    assert len(blocking) > 200
    assert {name: names[name] for name in blocking} == dict.fromkeys(blocking, 1)


def test_a_row_and_a_panel_say_their_recipe(html: str) -> None:
    rows = re.findall(r'role="rowheader"><b>(\w+)</b> ([^<]+)', html)
    assert ("sft", "no feature") in rows
    assert ("ppo", "no feature") in rows
    assert {"<b>sft, no feature</b> cpu", "<b>ppo, lora</b> cpu"} <= set(re.findall(r"<b>\w+, [^<]+</b> cpu", html))
    distances = html.split("How far from golden")[1].split("</table>")[0]
    assert re.findall(r'<th scope="row"><b>(\w+)</b> lora</th>', distances) == ["sft", "ppo"]


def test_a_refused_cell_leads_to_the_reason_that_it_shares(html: str, parsed: Parsed) -> None:
    (where,) = re.findall(r'href="#(refused-\d+)" title="sft_single_x2: refused: backend: single on 2 cards', html)
    reason = html.split(f'id="{where}"')[1].split("</li>")[0]
    assert "backend: expected one card" in reason
    assert "choose ddp or fsdp" in reason


def test_a_cell_that_ran_shows_claims_curve_times_and_the_command_that_repeats_it(html: str) -> None:
    cell = html.split('id="cell-cpu-sft_single_x1">')[1].split('class="cell"')[0]
    for said in ("step 3 differs", "equals golden", "0.3", "resume", "5.2 s", "20 s", "1.2 MB", "torch 2.13.0+cpu"):
        assert said in cell
    assert "./bazelw test //tests/smoke:smoke.sft_single_x1 --test_env=PLUMBLINE_SEED=7" in cell
    assert 'class="golden"' in cell
    assert re.search(r"… \d+ lines before", cell)


def test_a_green_cell_shows_the_end_of_its_log(html: str) -> None:
    cell = html.split('id="cell-cpu-ppo_lora_fsdp_x2">')[1].split('class="cell"')[0]
    assert re.search(
        r'<pre [^>]*aria-label="Log of ppo_lora_fsdp_x2">… 78 lines before\n(ppo_lora_fsdp_x2\n){11}', cell
    )


def test_all_logs_together_are_bounded_and_those_of_what_is_red_come_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "LOGS_CHARACTERS", 40_000)
    html = page.render(read_run(red_run(tmp_path, ("lora", "packing"))), {})
    logs = re.findall(r'<pre [^>]*aria-label="Log of [^"]*">(.*?)</pre>', html, re.DOTALL)
    left_out = [each for each in logs if each.startswith("It is left out")]
    assert len(logs) > len(left_out) > 2
    assert sum(len(unescape(each)) for each in logs if each not in left_out) < 40_000 + page.TAIL_CHARACTERS
    failed = html.split('id="cell-cpu-sft_single_x1">')[1].split('class="cell"')[0]
    assert "It is left out" not in failed


def test_the_document_says_how_much_of_logs_is_on_a_page() -> None:
    text = " ".join(Path("docs/testing.md").read_text().split())
    green = f"the last {page.GREEN_LINES} lines of its log, at most {page.GREEN_CHARACTERS:,} characters"
    red = f"a red one {page.TAIL_LINES} lines, at most {page.TAIL_CHARACTERS:,}"
    assert f"{green}; {red}." in text
    assert f"All logs of a page come to {page.LOGS_CHARACTERS // 10**6} million characters" in text
    cpu, cards = (SMOKE_SECONDS_MAX[each] / 60 for each in ("cpu", "gpu"))
    assert f"may take {cpu:.0f} minutes of two cores on the CPU, and {cards:.0f} on a machine with cards" in text


def test_what_a_cell_drew_is_shown_with_its_rewards(html: str) -> None:
    cell = html.split('id="cell-cpu-ppo_single_x1">')[1].split('class="cell"')[0]
    assert "Completions of the last step" in cell
    drawn = cell.split('<ul class="drawn">')[1].split("</ul>")[0]
    assert "<q>What is 1 + 1?</q><q><b>&lt;/script&gt;" in drawn
    assert "share 0.25, length -1.5" in drawn
    assert "share not a number" in drawn
    assert len(drawn) < 2 * page.COMPLETION_CHARACTERS
    plain = html.split('id="cell-cpu-sft_lora_fsdp_x2">')[1].split('class="cell"')[0]
    assert "Completions" not in plain


def test_the_seconds_of_smoke_tests_stand_beside_their_budget(tmp_path: Path) -> None:
    cell = smoke_files.cell("cpu", "single", 1, ())
    run = Smoke(tmp_path, cell)
    run.cell(cell, seconds=1_000.0)
    run.events[-2]["testResult"]["testAttemptStartMillisEpoch"] = "1795792437106"
    html = " ".join(page.render(read_run(run.write()), {}).split())
    assert 'block a change, cpu: <b class="bad">16m 40s</b> of 15m 00s, over its budget; 1 ran, 0 cached.' in html


def test_infrastructure_is_apart_from_what_tests_said(html: str) -> None:
    tests, infrastructure = html.split("<h3>Tests that failed</h3>")[1].split("<h3>Infrastructure</h3>")
    assert "test_<wbr>three" in tests
    assert "//tests/subsystem:<wbr>c_<wbr>test" not in tests
    assert "remote failure, without a failed case" in infrastructure.split("</section>")[0]


def test_ten_thousand_refusals_leave_the_page_usable(html: str) -> None:
    assert len(html) < 2_000_000
    assert len(re.findall(r'<li id="refused-', html)) < 20


def test_a_green_run_without_cells_is_a_short_page(tmp_path: Path) -> None:
    html = page.render(read_run(green_run(tmp_path)), {})
    assert Parsed(html).problems == []
    assert '<h1 class="good">' in html
    assert "Nothing failed." in html
    for absent in ("failures", "matrix", "curves", "cells"):
        assert f'id="{absent}"' not in html
    assert "no buildifier here" in html


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0, "0 s"), (0.25, "250 ms"), (2.345, "2.3 s"), (42, "42 s"), (125, "2m 05s"), (7500, "2h 5m")],
)
def test_durations_are_short(seconds: float, said: str) -> None:
    assert page.took(seconds) == said


@pytest.mark.parametrize(
    ("number", "said"), [(4.8e-7, "4.8e-7"), (0.25, "0.25"), (float("inf"), "infinite"), (float("nan"), "not a number")]
)
def test_small_numbers_are_short(number: float, said: str) -> None:
    assert page.figure(number) == said


@pytest.mark.parametrize(
    ("thing", "said"),
    [
        (2.4e-7, "2.4e-7"),
        (1e10, "1e10"),
        (4, "4"),
        (True, "true"),
        (None, "null"),
        ("as it is", "as it is"),
        ([1, "é"], "1, é"),
        ([[1, 2], []], "(1, 2), (none)"),
        (
            {"exit codes": [-9, 0], "merged": {"difference": 0.0}, "left": []},
            "exit codes -9, 0; merged (difference 0); left none",
        ),
        ({}, "nothing"),
    ],
)
def test_what_was_measured_is_said_as_it_is(thing: Any, said: str) -> None:
    assert page.value(thing) == said


def test_sizes_have_units() -> None:
    assert [page.num_bytes(number) for number in (0, 999, 1_204_224, 7.5e12)] == ["0 B", "999 B", "1.2 MB", "7500.0 GB"]


def test_the_end_of_a_log_is_kept_and_says_what_was_left_out() -> None:
    text = "\n".join(str(line) for line in range(1000))
    assert page.tail(text).splitlines()[:2] == ["… 800 lines before", "800"]
    assert page.tail("\x1b[1mred\x1b[0m\x07") == "red"
    assert len(page.tail("x" * 99_999)) < page.TAIL_CHARACTERS + 50


def test_a_log_that_is_gone_is_said_to_be(tmp_path: Path) -> None:
    assert page.Logs()(tmp_path / "test.log").startswith("It cannot be read: ")
