from dataclasses import replace
from pathlib import Path

import pytest

from tests.smoke import settings
from tests.smoke.covering import depths
from tests.smoke.matrix import TABLES, Cell, Feature, Matrix, with_row
from tests.smoke.support_table import BEGIN, END, README, REFRESH, table, with_table

MATRIX = Matrix()
DEPTHS = depths(MATRIX)
WRITTEN = table(MATRIX, DEPTHS)


def rows(text: str) -> dict[str, list[str]]:
    """Of the first table."""
    text = text.partition("\n\n")[0]
    cells = [[each.strip() for each in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    return {first: rest for first, *rest in cells[2:]}


def test_the_readme_shows_the_table_of_today() -> None:
    readme = Path(README).read_text()
    assert with_table(readme, WRITTEN) == readme, f"{README} is stale; refresh it: {REFRESH}"


def test_each_entry_names_a_cell_that_blocks_a_change() -> None:
    named = 0
    for feature, entries in rows(WRITTEN).items():
        features = (feature,) if feature in TABLES.features else ()
        for framework, entry in zip(TABLES.frameworks, entries[:-1], strict=True):
            depth = "full" if entry.startswith("at night ") else "blocking"
            for cards in (each for each in entry.split() if each.startswith("×")):
                assert DEPTHS[Cell("sft", "cpu", framework, int(cards[1:]), features)] == depth
                named += 1
    assert named > len(TABLES.features)


def test_every_feature_and_framework_has_an_answer_and_every_refusal_its_reason() -> None:
    answers = rows(WRITTEN)
    assert list(answers)[1:] == list(TABLES.features)
    for *entries, reason in answers.values():
        assert all(each in ("refused", "unproven") or each.startswith(("×", "at night ×")) for each in entries)
        assert bool(reason) == ("refused" in entries)
    assert answers["compile"][:3] == ["at night ×1", "at night ×1 ×2 ×4", "at night ×1 ×2 ×4"]
    assert answers["zero1"] == ["refused", "refused", "refused", "×2", "`parallel.zero_stage` needs deepspeed"]


def test_settings_that_are_no_features_are_there_too() -> None:
    assert WRITTEN.endswith("\n\n" + settings.table())


def test_what_only_accelerators_may_run_is_unproven() -> None:
    assert rows(WRITTEN)["liger"][0] == "unproven"


def test_a_new_feature_is_a_new_row() -> None:
    few = replace(TABLES, variants={"cpu": TABLES.variants["cpu"]})
    matrix = Matrix(with_row(few, "features", "clipless", Feature({"optimizer.gradient_norm_max": None})))
    assert rows(table(matrix, depths(matrix)))["clipless"][0] == "×1"


def test_a_readme_without_the_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="once each"):
        with_table(f"{BEGIN}\n", WRITTEN)
    assert with_table(f"a\n{BEGIN}\nold\n{END}\nb\n", "new") == f"a\n{BEGIN}\nnew\n{END}\nb\n"
