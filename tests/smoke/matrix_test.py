"""The matrix: nothing is missing from it, one row adds to it, and what is checked in is what it says."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import pytest

from tests.smoke.covering import alone, blocking, depths, pairs
from tests.smoke.generate import REFRESH, as_json, bzl
from tests.smoke.goldens import FILE, curves_of, golden_of
from tests.smoke.goldens import REFRESH as REFRESH_GOLDENS
from tests.smoke.listed import ACCELERATORS, BZL, listed, names_of
from tests.smoke.matrix import (
    GOLDEN,
    PACKAGES,
    TABLES,
    Cell,
    Feature,
    Framework,
    Matrix,
    Variant,
    cell_named,
    cells,
    with_row,
)
from tools.pypi.lock import LOCKS, names, normalised
from training.config import CONFIGS, BackendKind
from training.plan import Machine, Plan

MATRIX = Matrix()
DEPTHS = depths(MATRIX)


def test_every_accelerator_that_bazel_knows_is_a_variant_with_the_same_device() -> None:
    known = names_of(ACCELERATORS)["ACCELERATORS"]
    assert {row.accelerator: row.device for row in TABLES.variants.values()} == {
        word: row.device for word, row in known.items()
    }
    for row in TABLES.variants.values():
        if row.accelerator != "cpu":
            assert list(row.cards) == known[row.accelerator].cards, "cells of other numbers would have no pool"


def test_what_cells_of_cards_take_for_granted_is_in_a_lock_and_comes_with_models_or_torch() -> None:
    """The plan would refuse whatever needs a package that does not come along."""
    granted = {normalised(package) for package in PACKAGES}
    cpu, kernels, cuda = (names(Path(LOCKS[lock].lock).read_text()) for lock in ("cpu", "kernels", "cuda"))
    assert granted <= cpu | kernels | cuda
    with_models = re.findall(r'"@pypi\w*//(\w+)"', Path("training/models/BUILD.bazel").read_text())
    assert granted <= {normalised(name) for name in with_models} | cuda


def test_every_backend_of_the_config_is_a_framework() -> None:
    assert set(TABLES.frameworks) == set(get_args(BackendKind)) - {"auto"}
    for name, row in TABLES.frameworks.items():
        assert row.settings == {"parallel.backend": name}


def test_every_recipe_of_the_config_is_a_recipe() -> None:
    assert {name: row.config for name, row in TABLES.recipes.items()} == CONFIGS


@pytest.mark.parametrize("feature", TABLES.features)
def test_every_feature_has_a_live_cell_that_blocks_changes_unless_it_is_slow(feature: str) -> None:
    wanted = "full" if TABLES.features[feature].is_slow else "blocking"
    live = [cell for cell, depth in DEPTHS.items() if feature in cell.features and depth == wanted]
    assert live, f"{feature} is refused everywhere: remove its row, or have the plan allow it"


def test_every_feature_changes_the_plan() -> None:
    for name in TABLES.features:
        cell = next(cell for cell in MATRIX.allowed if cell.features == (name,))
        plain = Cell(cell.recipe, cell.variant, cell.framework, cell.cards).answer()
        assert isinstance(plain, Plan)
        assert cell.answer() != plain, name


def test_names_tell_cells_apart_and_lead_back_to_them() -> None:
    everything = list(dict.fromkeys([*cells(), *DEPTHS]))
    assert len({cell.name for cell in everything}) == len(everything) > 100
    assert [cell_named(cell.name) for cell in everything] == everything
    for unknown in ("sft_fsdp_x3", "sft_lora_lora_ddp_x2", "other_fsdp_x2", "sft_magic_ddp_x2", "sft_ddp_x4.gpu-other"):
        with pytest.raises(KeyError, match=f"there is no cell {unknown}"):
            cell_named(unknown)


def test_cells_that_must_agree_share_a_curve() -> None:
    assert Cell("sft", "cpu", "fsdp", 4, ("cpu_offload", "activation_checkpointing")).curve == "sft"
    assert Cell("sft", "nvidia", "single", 1, ("lora", "activation_checkpointing")).curve == "sft_lora"


ROWS: dict[str, tuple[str, Any]] = {
    "variants": ("tpu", Variant("tpu", "cuda", (1, 8), Machine(4, ("cuda",), 8))),
    "frameworks": ("other", Framework({"parallel.backend": "ddp"})),
    "features": ("clip", Feature({"optimizer.gradient_norm_max": 0.5}, decides_numbers=True)),
    "recipes": ("again", TABLES.recipes["sft"]),
}


@pytest.mark.parametrize("table", ROWS)
def test_one_row_in_one_table_makes_cells(table: str) -> None:
    name, row = ROWS[table]
    before = replace(TABLES, variants={"cpu": TABLES.variants["cpu"]})
    more = Matrix(with_row(before, table, name, row))
    new = {cell for cell in more.allowed if name in (cell.variant, cell.framework, cell.recipe, *cell.features)}
    assert new
    assert len(more.allowed) == len(Matrix(before).allowed) + len(new)
    assert new.intersection(blocking(more))


def test_features_that_exclude_each_other_meet_in_no_cell() -> None:
    tables = with_row(TABLES, "features", "wide", Feature({"lora.rank": 8}))
    tables = with_row(tables, "features", "scaled", Feature({"lora.rank": 8, "lora.alpha": 4.0}))
    together = {cell.features for cell in cells(tables)}
    assert ("wide",) in together
    assert ("activation_checkpointing", "scaled") in together
    assert not [each for each in together if {"lora", "wide"} <= {*each}], "two ranks of an adapter"
    assert not [each for each in together if {"wide", "scaled"} <= {*each}], "the second says all of the first"


MORE = {
    "parallel.collective_seconds_max": 60,
    "optimizer.beta1": 0.5,
    "optimizer.fused": False,
}


@dataclass(frozen=True)
class Covered:
    """A matrix and what of it blocks changes."""

    matrix: Matrix
    chosen: list[Cell]

    def by_variant(self) -> Iterator[tuple[list[Cell], list[Cell]]]:
        for variant in self.matrix.tables.variants:
            of_variant = [
                [cell for cell in each if cell.variant == variant] for each in (self.matrix.allowed, self.chosen)
            ]
            yield of_variant[0], of_variant[1]


@pytest.fixture(scope="module", params=["checked in", "with more features"])
def covered(request: pytest.FixtureRequest) -> Covered:
    """The matrix, and one with more to choose from."""
    tables = TABLES
    if request.param != "checked in":
        tables = replace(tables, variants={"cpu": tables.variants["cpu"]})
        for number, (name, value) in enumerate(MORE.items()):
            tables = with_row(tables, "features", f"feature{number}", Feature({name: value}))
    matrix = Matrix(tables)
    return Covered(matrix, blocking(matrix))


def test_blocking_cells_cover_every_pair_that_is_allowed(covered: Covered) -> None:
    for allowed, chosen in covered.by_variant():
        assert {pair for cell in chosen for pair in pairs(cell)} == {pair for cell in allowed for pair in pairs(cell)}


def test_blocking_cells_have_every_single_feature_alone_on_every_framework(covered: Covered) -> None:
    for allowed, chosen in covered.by_variant():
        alone_in = [
            {
                (cell.framework, cell.features)
                for cell in each
                if len(cell.features) <= 1 and cell.recipe == "sft" and not cell.is_slow
            }
            for each in (allowed, chosen)
        ]
        assert alone_in[0] == alone_in[1]


def test_blocking_cells_have_each_recipe_with_what_it_meets(covered: Covered) -> None:
    """On each framework, with each number of cards, and with each feature of its row that is allowed at all."""
    for allowed, chosen in covered.by_variant():
        for name, row in covered.matrix.tables.recipes.items():
            ours, theirs = ([cell for cell in each if cell.recipe == name] for each in (chosen, allowed))
            assert {cell.framework for cell in ours} == {cell.framework for cell in theirs}
            assert {cell.cards for cell in ours} == {cell.cards for cell in theirs}
            met = {feature for cell in theirs for feature in cell.features} & {*row.meets}
            assert met <= {feature for cell in ours for feature in cell.features}


@pytest.mark.parametrize("recipe", TABLES.recipes)
def test_a_recipe_names_features_that_are_there(recipe: str) -> None:
    row = TABLES.recipes[recipe]
    assert {*row.meets, *row.varies_with} <= TABLES.features.keys()
    assert not {*row.meets} & {*row.varies_with}
    live = {feature for cell in DEPTHS if cell.recipe == recipe for feature in cell.features}
    assert {*row.meets, *row.varies_with} <= live, "it is refused with some of what it names"


def test_cells_whose_curve_varies_owe_every_other_claim_and_block_no_change() -> None:
    varying = {cell for cell in DEPTHS if {*cell.features} & {*TABLES.recipes[cell.recipe].varies_with}}
    assert {(cell.recipe, *cell.features) for cell in varying if cell.variant == "cpu"} >= {
        ("grpo", "bf16"),
        ("ppo", "muon"),
    }
    for cell in varying:
        assert {*TABLES.recipes[cell.recipe].claims} - {*cell.claims} == {GOLDEN}
        assert DEPTHS[cell] == "full"
        assert golden_of(cell) is None
    assert all(GOLDEN in cell.claims for cell in DEPTHS if cell not in varying)


def test_every_golden_curve_is_there_and_followed_by_some_cell() -> None:
    followed = {cell.curve for cell in DEPTHS if GOLDEN in cell.claims}
    assert curves_of(FILE).keys() == followed, f"bring them up to date: {REFRESH_GOLDENS} -- missing"


def test_a_slow_feature_is_alone_and_blocks_no_change() -> None:
    slow = {name for name, row in TABLES.features.items() if row.is_slow}
    assert "compile" in slow
    assert {cell.features for cell in DEPTHS if slow & {*cell.features}} == {(each,) for each in slow}
    assert {depth for cell, depth in DEPTHS.items() if cell.is_slow} == {"full"}


def test_blocking_cells_are_allowed(covered: Covered) -> None:
    for cell in covered.chosen:
        assert isinstance(cell.answer(), Plan), cell.name


def test_blocking_cells_are_few(covered: Covered) -> None:
    for allowed, chosen in covered.by_variant():
        num_others = len(covered.matrix.tables.recipes) - 1
        assert len(chosen) == len(set(chosen)) <= len(list(alone(allowed))) + 16 + 2 * num_others


def test_checked_in_cells_are_those_of_the_matrix() -> None:
    assert Path(BZL).read_text() == bzl(DEPTHS), f"{BZL} is stale; refresh it: {REFRESH}"


def test_checked_in_cells_are_read_back_by_accelerator_and_depth() -> None:
    read = [each for row in TABLES.variants.values() for each in listed(row.accelerator).items()]
    assert len(read) == len(DEPTHS)
    assert dict(read) == DEPTHS


def test_json_has_every_cell_once_with_a_target_or_a_reason() -> None:
    rows = as_json(MATRIX)["cells"]
    everything = {*cells(), *DEPTHS}
    assert len(rows) == len(everything)
    assert {row["name"] for row in rows} == {cell.name for cell in everything}
    for row in rows:
        assert (
            bool(row["claims"])
            == (row["refusal"] is None)
            == (row["target"] is not None)
            == (row["depth"] in ("blocking", "full"))
        )
    by_name = {row["name"]: row for row in rows}
    assert by_name["sft_lora_fsdp_x2"] == {
        "name": "sft_lora_fsdp_x2",
        "recipe": "sft",
        "variant": "cpu",
        "framework": "fsdp",
        "cards": 2,
        "features": ["lora"],
        "depth": "blocking",
        "target": "//tests/smoke:smoke.sft_lora_fsdp_x2",
        "claims": list(TABLES.recipes["sft"].claims),
        "refusal": None,
    }
    assert by_name["sft_cpu_offload_ddp_x4.gpu-nvidia"]["refusal"] == {
        "field": "parallel.offload",
        "got": "true, with ddp",
        "expected": "fsdp or deepspeed",
        "hint": "add --backend fsdp, or leave the setting out",
    }
