"""No setting is unsaid: each is given by a cell, or is in the README with the test that proves it, or as unproven."""

from typing import get_args, get_type_hints

from tests.smoke.matrix import TABLES
from tests.smoke.settings import ELSEWHERE, UNPROVEN, of_cells, settings_of, table
from training.config import CONFIGS, Attention, ModelConfig

KNOWN = {name: hint for made in CONFIGS.values() for name, hint in settings_of(made)}
NAMED = [name for names in ELSEWHERE.values() for name in names]


def test_every_setting_of_every_recipe_is_of_a_cell_or_proven_elsewhere() -> None:
    elsewhere = {name.partition("=")[0] for name in NAMED}
    assert len(KNOWN) > 80
    assert of_cells(TABLES) | elsewhere == KNOWN.keys()
    assert not of_cells(TABLES) & elsewhere, "a cell proves it: take it out of the list"


def test_a_setting_is_named_once_and_one_of_which_values_are_named_with_all_of_them() -> None:
    assert len(set(NAMED)) == len(NAMED)
    values: dict[str, list[str]] = {}
    for name, _, said in (each.partition("=") for each in NAMED):
        values.setdefault(name, []).extend(said.split(",") if said else [])
    chosen = {name: those for name, those in values.items() if those}
    # The default is that of every cell.
    default = ModelConfig("m").attention
    assert {name: sorted([*those, default]) for name, those in chosen.items()} == {
        "model.attention": sorted(get_args(Attention))
    }
    assert get_type_hints(ModelConfig)["attention"] == KNOWN["model.attention"]


def test_the_table_has_a_row_for_each_test_and_says_what_is_unproven() -> None:
    rows = [line for line in table().splitlines() if line.startswith("| `")]
    assert len(rows) == len(ELSEWHERE)
    assert f"| `model.attention=flex`, `flash` | {UNPROVEN} |" in rows
    assert "| `checkpoint.elastic` | `//tests/subsystem:ranks_elastic_test` |" in rows
