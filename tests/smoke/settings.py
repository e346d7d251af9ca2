"""Settings that are no features of the matrix, with the test that proves each: what it leaves out is not unsaid.

A feature is a setting that should combine with every other on every framework. These either change nothing of what
ranks tell each other, so that a test of the module that reads them is proof, or need a test of their own.
"""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any, get_args, get_type_hints

from tests.smoke.matrix import Tables
from training.config import SftConfig

UNPROVEN = "unproven"

ELSEWHERE = {
    "//tests/unit/training/models:forward_test": ("model.attention=sdpa,eager", "batch.share_prompts"),
    UNPROVEN: ("model.attention=flex,flash",),
    # Its noise is drawn by each rank for itself, so that no curve is shared.
    "//tests/unit/training/models:neftune_test": ("model.neftune_alpha",),
    "//tests/unit/training/recipes:sft_test": (
        "data.kind",
        "data.validation_path",
        "run.num_epochs",
        "run.validation_steps_between",
        "run.patience",
        "run.improvement_min",
    ),
    "//tests/unit/training/data:render_test": ("data.on_bad_sample",),
    "//tests/unit/training/data:loader_test": ("data.on_long_sample", "data.tokens_per_sample_max", "run.seed"),
    "//tests/unit/training:optimizer_test": (
        "optimizer.weight_decay",
        "optimizer.beta1",
        "optimizer.beta2",
        "optimizer.epsilon",
        "optimizer.momentum",
        "optimizer.fused",
    ),
    "//tests/unit/training:step_test": ("optimizer.gradient_norm_max",),
    "//tests/unit/training:schedule_test": (
        "schedule.shape",
        "schedule.warmup_fraction",
        "schedule.decay_fraction",
        "schedule.floor_fraction",
    ),
    "//tests/unit/training/models:lora_test": ("lora.alpha", "lora.target_modules"),
    "//tests/subsystem:resume_test": ("lora.dropout", "checkpoint.resume", "run.steps_this_session_max"),
    "//tests/unit/training/checkpoint:save_test": ("checkpoint.num_kept", "checkpoint.num_best_kept"),
    "//tests/subsystem:ranks_elastic_test": ("checkpoint.elastic",),
    "//tests/unit/training/checkpoint:export_test": ("checkpoint.export",),
    "//tests/unit/training/metrics:progress_test": ("run.progress_steps_between",),
    "//tests/subsystem:ranks_test": ("parallel.collective_seconds_max",),
    "//tests/unit/training/algorithms:preference_test": (
        "preference.loss",
        "preference.beta",
        "preference.beta_end",
        "preference.label_smoothing",
        "preference.length_normalized",
        "preference.target_margin",
        "preference.odds_weight",
        "kto.beta",
        "kto.desirable_weight",
        "kto.undesirable_weight",
    ),
    "//tests/subsystem:preference_test": ("preference.reference", "kto.reference"),
    "//tests/unit/training/algorithms:grpo_test": (
        "rl.advantage",
        "rl.divide_by_std",
        "rl.length_normalization",
        "rl.clip_low",
        "rl.clip_high",
        "rl.kl_estimator",
        "rl.importance_max",
    ),
    "//tests/unit/training/rollout:ppo_test": (
        "rl.gae_decay",
        "rl.discount",
        "rl.whiten_advantages",
        "rl.value_coefficient",
        "rl.value_clip",
    ),
    "//tests/unit/training/rollout:generate_test": ("rl.temperature", "rl.top_p"),
    "//tests/subsystem:rl_test": (
        "rl.on_reward_error",
        "rl.epochs_per_rollout",
        "rl.sequences_per_call",
        "rl.overlong_tokens",
        "rl.redraws_max",
        "rl.environment",
        "rl.turns_max",
        "rl.engine",
        "rl.engine_sync",
    ),
}
"""Where settings are proven instead; of some a few values alone, after an =."""


def settings_of(made: type[SftConfig]) -> Iterator[tuple[str, Any]]:
    """The full name of every setting of a config, with its type."""
    for section, hint in get_type_hints(made).items():
        config = next(each for each in (hint, *get_args(hint)) if is_dataclass(each))
        types = get_type_hints(config)
        yield from ((f"{section}.{each.name}", types[each.name]) for each in fields(config))


def of_cells(tables: Tables) -> set[str]:
    """The settings that some cell gives, by its recipe, framework, number of cards or features."""
    rows = [*tables.recipes.values(), *tables.frameworks.values(), *tables.features.values()]
    return {"parallel.ranks", "run.device", *(name for row in rows for name in row.settings)}


def table() -> str:
    """A row for each test, with the settings that it proves; folded, for it is to look things up in."""
    lines = [
        "<details><summary>Settings that are no features of the matrix, and what proves each</summary>",
        "",
        "| settings | proven by |",
        "|---|---|",
    ]
    for test, names in ELSEWHERE.items():
        said = ", ".join(f"`{name.replace(',', '`, `')}`" for name in names)
        lines.append(f"| {said} | {test if test == UNPROVEN else f'`{test}`'} |")
    return "\n".join([*lines, "", "</details>"])
