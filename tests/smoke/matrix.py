"""The smoke matrix: recipe × variant × framework × cards × sets of features, each cell allowed or refused.

Four tables say all there is, and a new variant, framework, feature or recipe is one row in one of them. Nothing here
knows what combines with what: `plan()` is asked for each cell, on the machine that the cell stands for, and a refused
cell stays in the table with the plan's own reason.

A row is a set of settings, spelt as on the command line, so that one row gives both the config that is planned here and
the words that the cell's run is started with. Two features that give one setting different values cannot be said
together, so no cell has both; a feature that adds nothing to another (`lora` beside `dora`) makes no second cell.

Sets of features are every one of up to FEATURES_TOGETHER_MAX; larger ones are cells where `covering.py` chose them.

Standard library only: the matrix is looked at far more often than a model is trained.
"""

import itertools
import json
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from typing import Any, get_args, get_type_hints

from tests.support.chats import asked_sums, labelled_sums, preferred_sums, sums
from tests.support.tolerances import (
    SMOKE_CURVE_8_BITS_RELATIVE,
    SMOKE_CURVE_BF16_RELATIVE,
    SMOKE_CURVE_LIGER_RELATIVE,
    SMOKE_CURVE_RELATIVE,
)
from training.config import DpoConfig, GrpoConfig, KtoConfig, PpoConfig, RewardConfig, SftConfig
from training.plan import Machine, Plan, Refusal, plan

FEATURES_TOGETHER_MAX = 3
"""Sets of features double with each row, and 20 rows would make a million: no night is as long. Three on one framework
and one number of cards are already five choices that meet."""

Settings = Mapping[str, Any]
"""Full names of settings and their values: {"parallel.offload": True}."""


@dataclass(frozen=True)
class Variant:
    """Hardware of one kind."""

    accelerator: str
    """Its word in tools/bazel/accelerators.bzl."""
    device: str
    """What torch, and so `run.device`, calls it."""
    cards: tuple[int, ...]
    """Numbers of ranks that cells have, one for each card; on the CPU, processes."""
    machine: Machine
    """The machine that its cells stand for."""


@dataclass(frozen=True)
class Feature:
    """Something a person may switch on."""

    settings: Settings
    decides_numbers: bool = False
    """True if another loss curve is expected: cells that differ in other features alone must agree numerically."""
    tolerance: float = SMOKE_CURVE_RELATIVE
    """How far a curve with it may be from the golden one."""
    is_slow: bool = False
    """True if a cell takes minutes with it, and may. None has it beside another feature then, or blocks a change."""


@dataclass(frozen=True)
class Framework:
    """What processes share a step by."""

    settings: Settings
    shards: bool = False
    """Whether each rank holds a part of the weights alone."""
    preload: str = ""
    """Module that its processes import, or a function in one that does so for a device, as module:function."""


GOLDEN = "curve_is_golden"

TRAINS = (
    "ends_well",
    "plan_is_the_cells",
    "world_is_as_asked",
    "weights_are_shared_out",
    "loss_falls",
    "resume_is_exact",
    "checkpoint_is_committed",
    "export_reloads",
    GOLDEN,
    "nothing_leaks",
    "memory_is_in_budget",
    "cost_is_in_budget",
    "hardware_is_known",
)
"""The claims of a recipe that trains one model; `claims.py` has how each is looked at."""

DRAWS = (*(name for name in TRAINS if name != "loss_falls"), "losses_are_finite", "completions_are_whole")
"""Those of one that learns from what it draws: its loss is of advantages, which never fall."""


@dataclass(frozen=True)
class Recipe:
    """A way to learn, as its cells run it."""

    settings: Settings
    config: type[SftConfig] = SftConfig
    """What the settings come to."""
    samples: Callable[[int], list[dict[str, Any]]] = sums
    """Makes so many samples to learn from."""
    claims: tuple[str, ...] = TRAINS
    """Names of what must be true of a run."""
    has_value_head: bool = False
    """Whether what is trained and exported says one value of a text, and no next words."""
    has_critic: bool = False
    """Whether a second head learns beside the model, and is not exported."""
    num_features_max: int = 1
    """Features that a cell of it has at most, but for those that `covering.py` chose. What features do to each other is
    no matter of a recipe, so the first alone has many."""
    meets: tuple[str, ...] = ()
    """Features that it must be proven with before a change is merged: those whose code knows of what it adds. The first
    recipe meets all of them."""
    loss_falls_to: float = 0.8
    """Share of the first loss that the last one must be below, where a loss falls at all."""
    varies_with: tuple[str, ...] = ()
    """Features with which its curve depends on the framework and the cards: cells with them follow no golden one, and
    none of them blocks a change."""
    loss_least: float = 0.0
    """What a difference of losses is relative to at least, since one that passes through zero is at times rounding."""


@dataclass(frozen=True)
class Tables:
    """All there is to combine."""

    variants: Mapping[str, Variant]
    frameworks: Mapping[str, Framework]
    features: Mapping[str, Feature]
    recipes: Mapping[str, Recipe]
    """The first is proven with each single feature on each framework, the others with each framework."""


# Three times five steps with a checkpoint after each five, on 8 samples a step: two for each of four ranks, and more
# tokens than fit one microbatch of a single one.
ABBREVIATED: Settings = {
    "model.path": "base",
    "data.path": "data.jsonl",
    "data.validation_fraction": 0.1,
    "batch.samples_per_step": 8,
    "batch.tokens_per_rank_max": 192,
    "optimizer.learning_rate_peak": 0.004,
    "checkpoint.steps_between": 5,
    "run.num_steps": 15,
    "run.num_threads": 1,
    "run.out": "out",
}

# Rollouts of four completions of each of two prompts, for two steps each: the checkpoint after five is in the middle of
# one. Nothing is held out, for a completion that nobody drew has no loss.
REWARDED: Settings = {
    **{name: value for name, value in ABBREVIATED.items() if name != "data.validation_fraction"},
    "rl.rewards": ("rewards.py:share",),
    "rl.steps_per_rollout": 2,
    "rl.completion_tokens_max": 8,
    "rl.kl_coefficient": 0.05,
}

COARSE = ("bf16", "adamw_8bit", "muon", "liger")
"""What rounds so coarsely that another number of ranks would now and then draw another token, and from there on learn
from other completions: no curve would be the one to follow. Killed, each still goes on bit for bit."""

PACKAGES = ("bitsandbytes", "liger_kernel", "triton")
"""What the machines of all variants have installed of what only some settings need."""

TABLES = Tables(
    variants={
        "cpu": Variant("cpu", "cpu", (1, 2, 4), Machine(2, packages=PACKAGES, compiles_cpp=True)),
        "nvidia": Variant("gpu-nvidia", "cuda", (1, 4), Machine(16, ("cuda",), 4, packages=PACKAGES, compiles_c=True)),
        "amd": Variant("gpu-amd", "cuda", (1, 4), Machine(16, ("cuda",), 4, packages=PACKAGES, compiles_c=True)),
        "intel": Variant("gpu-intel", "xpu", (1, 4), Machine(16, ("xpu",), 4, packages=PACKAGES, compiles_c=True)),
    },
    frameworks={
        "single": Framework({"parallel.backend": "single"}),
        "ddp": Framework({"parallel.backend": "ddp"}),
        "fsdp": Framework({"parallel.backend": "fsdp"}, shards=True, preload="training.parallel.fsdp"),
        "deepspeed": Framework(
            {"parallel.backend": "deepspeed"}, shards=True, preload="training.parallel.deepspeed:preload"
        ),
    },
    features={
        "lora": Feature({"lora.rank": 4}, decides_numbers=True),
        "dora": Feature({"lora.rank": 4, "lora.dora": True}, decides_numbers=True),
        "rslora": Feature({"lora.rank": 4, "lora.rank_stabilized": True}, decides_numbers=True),
        "qlora": Feature({"lora.rank": 4, "model.quantization": "nf4"}, decides_numbers=True),
        "bf16": Feature({"model.precision": "bf16"}, decides_numbers=True, tolerance=SMOKE_CURVE_BF16_RELATIVE),
        "adamw_8bit": Feature(
            {"optimizer.kind": "adamw_8bit"}, decides_numbers=True, tolerance=SMOKE_CURVE_8_BITS_RELATIVE
        ),
        "muon": Feature(
            {"optimizer.kind": "muon", "optimizer.learning_rate_peak": 0.01},
            decides_numbers=True,
            tolerance=SMOKE_CURVE_BF16_RELATIVE,
        ),
        "unpacked": Feature({"batch.packing": False}),
        "chunked_loss": Feature({"model.loss_chunk_tokens": 64}),
        "liger": Feature({"model.liger": True}, tolerance=SMOKE_CURVE_LIGER_RELATIVE),
        "zero1": Feature({"parallel.zero_stage": 1}),
        "zero3": Feature({"parallel.zero_stage": 3}),
        "cpu_offload": Feature({"parallel.offload": True}),
        "hybrid": Feature({"parallel.shard_ranks": 2}),
        "keep_gathered": Feature({"parallel.keep_gathered": True}),
        "activation_checkpointing": Feature({"model.activation_checkpointing": True}),
        # tests/subsystem:compile_test has it with other features, and before every change.
        "compile": Feature({"model.compile": True}, is_slow=True),
        "synchronous": Feature({"checkpoint.asynchronous": False}),
    },
    recipes={
        "sft": Recipe(ABBREVIATED, num_features_max=FEATURES_TOGETHER_MAX),
        # A pair travels in one pack, and is compared with what the model said before, or without its adapter.
        "dpo": Recipe(
            ABBREVIATED,
            DpoConfig,
            preferred_sums,
            num_features_max=2,
            meets=("lora", "bf16", "unpacked", "chunked_loss", "activation_checkpointing"),
        ),
        "kto": Recipe(ABBREVIATED, KtoConfig, labelled_sums, meets=("lora", "unpacked"), loss_falls_to=0.95),
        # Another head, which learns beside an adapter too. Faster, pairs are told apart so well that rounding decides.
        "reward": Recipe(
            ABBREVIATED | {"optimizer.learning_rate_peak": 0.001},
            RewardConfig,
            preferred_sums,
            has_value_head=True,
            meets=("lora", "unpacked", "zero3"),
        ),
        # Weights are gathered for drawing, and compared with a second model, or with the one under the adapter.
        "grpo": Recipe(
            REWARDED | {"rl.group_size": 4},
            GrpoConfig,
            asked_sums,
            DRAWS,
            meets=("lora", "zero3", "chunked_loss", "keep_gathered"),
            varies_with=COARSE,
            loss_least=0.05,
        ),
        "ppo": Recipe(
            REWARDED,
            PpoConfig,
            asked_sums,
            DRAWS,
            has_critic=True,
            meets=("lora", "zero3", "cpu_offload"),
            varies_with=COARSE,
            loss_least=0.05,
        ),
    },
)


@dataclass(frozen=True)
class Cell:
    """One row of the matrix."""

    recipe: str
    variant: str
    framework: str
    cards: int
    features: tuple[str, ...] = ()
    """In the order of the table."""
    tables: Tables = field(default=TABLES, repr=False, compare=False)

    @property
    def stem(self) -> str:
        """What it is called among the cells of its variant: sft_lora_fsdp_x2."""
        return "_".join([self.recipe, *self.features, self.framework, f"x{self.cards}"])

    @property
    def name(self) -> str:
        """What it is called among all cells: sft_lora_fsdp_x2 on the CPU, sft_lora_fsdp_x2.gpu-nvidia elsewhere."""
        return self.stem if self.accelerator == "cpu" else f"{self.stem}.{self.accelerator}"

    @property
    def accelerator(self) -> str:
        """Its variant's word in tools/bazel/accelerators.bzl."""
        return self.tables.variants[self.variant].accelerator

    @property
    def target(self) -> str:
        """The label of its Bazel target."""
        return f"//tests/smoke:smoke.{self.name}"

    @property
    def curve(self) -> str:
        """The name of the loss curve that it must follow, shared by all cells that must agree numerically."""
        return "_".join([self.recipe, *(each for each in self.features if self.tables.features[each].decides_numbers)])

    @property
    def tolerance(self) -> float:
        """How far from that curve it may be, relative to it."""
        return max([SMOKE_CURVE_RELATIVE, *(self.tables.features[each].tolerance for each in self.features)])

    @property
    def claims(self) -> tuple[str, ...]:
        """Names of what must be true of its run, each of which its verdict has."""
        row = self.tables.recipes[self.recipe]
        varies = not {*self.features}.isdisjoint(row.varies_with)
        return tuple(name for name in row.claims if not (varies and name == GOLDEN))

    @property
    def is_slow(self) -> bool:
        """Whether one of its features is."""
        return any(self.tables.features[each].is_slow for each in self.features)

    @property
    def machine(self) -> Machine:
        """The machine that it stands for."""
        return self.tables.variants[self.variant].machine

    @property
    def settings(self) -> Settings:
        """Every setting that it gives; features last."""
        given = dict(self.tables.recipes[self.recipe].settings)
        given["run.device"] = self.tables.variants[self.variant].device
        given |= {**self.tables.frameworks[self.framework].settings, "parallel.ranks": self.cards}
        for each in self.features:
            given |= self.tables.features[each].settings
        return given

    @property
    def config(self) -> SftConfig:
        """Its settings as the config that they come to."""
        sections: dict[str, dict[str, Any]] = {}
        for name, value in self.settings.items():
            section, _, setting = name.partition(".")
            sections.setdefault(section, {})[setting] = value
        made = self.tables.recipes[self.recipe].config
        return made(**{name: _sections(made)[name](**values) for name, values in sections.items()})

    @property
    def words(self) -> list[str]:
        """Its settings as words of the command line."""
        types = get_type_hints(self.tables.recipes[self.recipe].config)
        optional = {name for name, hint in types.items() if type(None) in get_args(hint)}
        switched_on = sorted({name.partition(".")[0] for name in self.settings} & optional)
        said = [f"--{name}={{}}" for name in switched_on]
        return said + [f"--{name}={_word(value)}" for name, value in self.settings.items()]

    def answer(self) -> Plan | Refusal:
        """What the plan says to it."""
        return plan(self.config, self.machine)


@cache
def _sections(made: type[SftConfig]) -> dict[str, Any]:
    """The dataclass of each section of a config, also of one that may be None."""
    return {
        name: next(each for each in (hint, *get_args(hint)) if each is not type(None) and isinstance(each, type))
        for name, hint in get_type_hints(made).items()
    }


def _word(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def cells(tables: Tables = TABLES) -> Iterator[Cell]:
    """Every cell with as many features as its recipe may have, by recipe, variant, framework, cards and number."""
    subsets = list(_subsets(tables.features))
    for (recipe, says), (variant, row) in itertools.product(tables.recipes.items(), tables.variants.items()):
        few = [each for each in subsets if len(each) <= says.num_features_max]
        for framework, cards, features in itertools.product(tables.frameworks, row.cards, few):
            yield Cell(recipe, variant, framework, cards, features, tables)


def _subsets(features: Mapping[str, Feature]) -> Iterator[tuple[str, ...]]:
    for size in range(min(FEATURES_TOGETHER_MAX, len(features)) + 1):
        yield from (each for each in itertools.combinations(features, size) if can_be_said(each, features))


def can_be_said(chosen: Collection[str], features: Mapping[str, Feature]) -> bool:
    """False if two of them give a setting different values, one none that the others do not, or one is slow."""
    if len(chosen) > 1 and any(features[each].is_slow for each in chosen):
        return False
    pairs = [set(_items(features[each].settings)) for each in chosen]
    times = Counter(pair for each in pairs for pair in each)
    if len({name for name, _ in times}) < len(times):
        return False
    return all(any(times[pair] == 1 for pair in each) for each in pairs)


def _items(settings: Settings) -> Iterator[tuple[str, str]]:
    return ((name, _word(value)) for name, value in settings.items())


def cell_named(name: str, tables: Tables = TABLES) -> Cell:
    """The cell that has this name.

    Raises:
        KeyError: there is none.
    """
    stem, _, accelerator = name.partition(".")
    variants = [each for each, row in tables.variants.items() if row.accelerator == (accelerator or "cpu")]
    for variant, recipe, framework in itertools.product(variants, tables.recipes, tables.frameworks):
        for cards in tables.variants[variant].cards:
            start, end = f"{recipe}_", f"{framework}_x{cards}"
            if not (stem.startswith(start) and stem.endswith(end)):
                continue
            rest, features = stem.removeprefix(start).removesuffix(end), []
            for feature in tables.features:
                if rest.startswith(f"{feature}_"):
                    rest = rest.removeprefix(f"{feature}_")
                    features.append(feature)
            if not rest:
                return Cell(recipe, variant, framework, cards, tuple(features), tables)
    raise KeyError(f"there is no cell {name}")


@dataclass(frozen=True)
class Matrix:
    """Every cell with what the plan says to it."""

    tables: Tables = TABLES

    @cached_property
    def refused(self) -> dict[Cell, Refusal]:
        """The cells that the plan refuses, with its reason."""
        return {cell: answer for cell, answer in self._answers.items() if answer is not None}

    @cached_property
    def allowed(self) -> list[Cell]:
        """The cells that must be proven wherever their variant's hardware is."""
        return [cell for cell, answer in self._answers.items() if answer is None]

    @cached_property
    def _answers(self) -> dict[Cell, Refusal | None]:
        asked = ((cell, cell.answer()) for cell in cells(self.tables))
        return {cell: answer if isinstance(answer, Refusal) else None for cell, answer in asked}


def with_row(tables: Tables, table: str, name: str, row: Any) -> Tables:
    """The tables with one row more."""
    return replace(tables, **{table: {**getattr(tables, table), name: row}})
