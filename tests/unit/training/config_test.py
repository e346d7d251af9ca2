"""Each setting is documented, and each impossible value is refused by name."""

import math
from dataclasses import FrozenInstanceError, fields, is_dataclass
from typing import Any, get_args, get_type_hints

import pytest

from training.config import (
    CONFIGS,
    BatchConfig,
    CheckpointConfig,
    DataConfig,
    KtoSettings,
    LoraConfig,
    ModelConfig,
    OptimizerConfig,
    PpoSettings,
    PreferenceConfig,
    RlConfig,
    RunConfig,
    ScheduleConfig,
    SftConfig,
)
from training.errors import ConfigError

REQUIRED: dict[type, dict[str, str]] = {
    ModelConfig: {"path": "m"},
    DataConfig: {"path": "d"},
    RunConfig: {"out": "o"},
}

REFUSED: list[tuple[type, str, Any, str]] = [
    (
        RlConfig,
        "rewards",
        (),
        "rl.rewards: no reward; expected at least one function. hint: name functions as module:function or "
        "file.py:function",
    ),
    (
        RlConfig,
        "group_size",
        1,
        "rl.group_size: 1; expected a finite number of at least 2. hint: a completion is compared with "
        "others of its group",
    ),
    (
        RlConfig,
        "clip_low",
        1.0,
        "rl.clip_low: 1.0; expected a fraction, 0 or more and below 1. hint: 0.2 is usual",
    ),
    (
        RlConfig,
        "clip_high",
        0.0,
        "rl.clip_high: 0.0; expected a finite number above 0.0. hint: 0.2 is usual, 0.28 in DAPO",
    ),
    (
        RlConfig,
        "kl_coefficient",
        -1.0,
        "rl.kl_coefficient: -1.0; expected a finite number of at least 0.0. hint: 0.001 to 0.04 is usual; 0 "
        "leaves the term out",
    ),
    (
        RlConfig,
        "importance_max",
        0.0,
        "rl.importance_max: 0.0; expected a finite number above 0.0. hint: 2 is usual; leave it out for no correction",
    ),
    (
        RlConfig,
        "steps_per_rollout",
        0,
        "rl.steps_per_rollout: 0; expected a finite number of at least 1. hint: it is a count",
    ),
    (
        RlConfig,
        "temperature",
        0.0,
        "rl.temperature: 0.0; expected a finite number above 0.0. hint: 1 is usual: at 0 all completions of "
        "a group are the same",
    ),
    (
        RlConfig,
        "top_p",
        0.0,
        "rl.top_p: 0.0; expected above 0 and at most 1. hint: 1 draws from all tokens",
    ),
    (
        RlConfig,
        "overlong_tokens",
        0,
        "rl.overlong_tokens: 0; expected a finite number of at least 1. hint: leave it out for no penalty",
    ),
    (
        RlConfig,
        "turns_max",
        0,
        "rl.turns_max: 0; expected a finite number of at least 1. hint: leave it out for the default",
    ),
    (
        RlConfig,
        "redraws_max",
        0,
        "rl.redraws_max: 0; expected a finite number of at least 1. hint: leave it out to learn from what is drawn "
        "first",
    ),
    (PpoSettings, "gae_decay", 1.5, "rl.gae_decay: 1.5; expected 0 to 1. hint: leave it out for the default"),
    (PpoSettings, "discount", -0.1, "rl.discount: -0.1; expected 0 to 1. hint: leave it out for the default"),
    (
        PpoSettings,
        "value_coefficient",
        0.0,
        "rl.value_coefficient: 0.0; expected a finite number above 0.0. hint: 0.1 is usual; without a critic there is "
        "grpo",
    ),
    (
        PpoSettings,
        "value_clip",
        0.0,
        "rl.value_clip: 0.0; expected a finite number above 0.0. hint: 0.2 is usual for rewards of about 1; null never "
        "clips",
    ),
    (KtoSettings, "beta", 0.0, "kto.beta: 0.0; expected a finite number above 0.0. hint: 0.1 is usual"),
    (
        KtoSettings,
        "desirable_weight",
        0.0,
        "kto.desirable_weight: 0.0; expected a finite number above 0.0. hint: 1 is usual",
    ),
    (
        KtoSettings,
        "undesirable_weight",
        -1.0,
        "kto.undesirable_weight: -1.0; expected a finite number above 0.0. hint: 1 is usual",
    ),
    (
        KtoSettings,
        "reference",
        "",
        "kto.reference: nothing; expected a path. hint: initial, adapter, or a model directory",
    ),
    (
        PreferenceConfig,
        "beta",
        0.0,
        "preference.beta: 0.0; expected a finite number above 0.0. hint: 0.1 is usual, 2 for simpo",
    ),
    (
        PreferenceConfig,
        "beta_end",
        0.0,
        "preference.beta_end: 0.0; expected a finite number above 0.0. hint: leave it out for a beta that stays",
    ),
    (
        PreferenceConfig,
        "label_smoothing",
        0.5,
        "preference.label_smoothing: 0.5; expected 0 or more and below 0.5. hint: at 0.5 labels say nothing; 0.1 is "
        "usual",
    ),
    (
        PreferenceConfig,
        "target_margin",
        -1.0,
        "preference.target_margin: -1.0; expected a finite number of at least 0.0. hint: half of beta is usual",
    ),
    (
        PreferenceConfig,
        "odds_weight",
        0.0,
        "preference.odds_weight: 0.0; expected a finite number above 0.0. hint: 0.1 is usual",
    ),
    (
        PreferenceConfig,
        "reference",
        "",
        "preference.reference: nothing; expected a path. hint: initial, adapter, or a model directory",
    ),
    (ModelConfig, "path", "", "model.path: nothing; expected a path. hint: name a model directory with --model DIR"),
    (
        ModelConfig,
        "neftune_alpha",
        0.0,
        "model.neftune_alpha: 0.0; expected a finite number above 0.0. hint: 5 is usual; leave it out for no noise",
    ),
    (
        ModelConfig,
        "loss_chunk_tokens",
        0,
        "model.loss_chunk_tokens: 0; expected a finite number of at least 1. hint: 512 is usual; leave it out for no "
        "chunks",
    ),
    (DataConfig, "path", "", "data.path: nothing; expected a path. hint: name a JSONL file with --data FILE"),
    (
        DataConfig,
        "validation_path",
        "",
        "data.validation_path: nothing; expected a path. hint: name a JSONL file or leave the setting out",
    ),
    (
        DataConfig,
        "validation_fraction",
        1.0,
        "data.validation_fraction: 1.0; expected a fraction, 0 or more and below 1. hint: 0.05 holds out one sample in "
        "twenty",
    ),
    (
        DataConfig,
        "tokens_per_sample_max",
        1,
        "data.tokens_per_sample_max: 1; expected a finite number of at least 2. hint: one token predicts the next: two "
        "is the least",
    ),
    (
        BatchConfig,
        "samples_per_step",
        0,
        "batch.samples_per_step: 0; expected a finite number of at least 1. hint: a step needs at least one sample",
    ),
    (
        BatchConfig,
        "tokens_per_rank_max",
        1,
        "batch.tokens_per_rank_max: 1; expected a finite number of at least 2. hint: give it the length of your "
        "longest sample or more",
    ),
    (
        OptimizerConfig,
        "learning_rate_peak",
        0.0,
        "optimizer.learning_rate_peak: 0.0; expected a finite number above 0.0. hint: 2e-5 for all weights or 2e-4 for "
        "LoRA is usual",
    ),
    (
        OptimizerConfig,
        "weight_decay",
        -0.1,
        "optimizer.weight_decay: -0.1; expected a finite number of at least 0.0. hint: 0 switches decay off; 0.01 to "
        "0.1 is usual",
    ),
    (
        OptimizerConfig,
        "beta1",
        1.0,
        "optimizer.beta1: 1.0; expected a fraction, 0 or more and below 1. hint: 0.9 is usual",
    ),
    (
        OptimizerConfig,
        "beta2",
        -0.5,
        "optimizer.beta2: -0.5; expected a fraction, 0 or more and below 1. hint: 0.999 or 0.95 is usual",
    ),
    (
        OptimizerConfig,
        "momentum",
        1.0,
        "optimizer.momentum: 1.0; expected a fraction, 0 or more and below 1. hint: 0.95 is usual",
    ),
    (
        OptimizerConfig,
        "epsilon",
        0.0,
        "optimizer.epsilon: 0.0; expected a finite number above 0.0. hint: 1e-8 is usual",
    ),
    (
        OptimizerConfig,
        "gradient_norm_max",
        -1.0,
        "optimizer.gradient_norm_max: -1.0; expected a finite number above 0.0. hint: 1.0 is usual; null never clips",
    ),
    (
        ScheduleConfig,
        "warmup_fraction",
        1.5,
        "schedule.warmup_fraction: 1.5; expected a fraction, 0 or more and below 1. hint: 0.03 warms up over 3 % of "
        "the run",
    ),
    (
        ScheduleConfig,
        "decay_fraction",
        -0.1,
        "schedule.decay_fraction: -0.1; expected a fraction, 0 or more and below 1. hint: 0.2 falls over the last "
        "fifth of the run",
    ),
    (
        ScheduleConfig,
        "floor_fraction",
        1.0,
        "schedule.floor_fraction: 1.0; expected a fraction, 0 or more and below 1. hint: 0.1 ends at a tenth of the "
        "peak",
    ),
    (
        LoraConfig,
        "rank",
        0,
        "lora.rank: 0; expected a finite number of at least 1. hint: 8 to 64 is usual; leave lora out to train all "
        "weights",
    ),
    (LoraConfig, "alpha", 0.0, "lora.alpha: 0.0; expected a finite number above 0.0. hint: twice the rank is usual"),
    (
        LoraConfig,
        "dropout",
        1.0,
        "lora.dropout: 1.0; expected a fraction, 0 or more and below 1. hint: 0 to 0.1 is usual",
    ),
    (
        LoraConfig,
        "target_modules",
        (),
        "lora.target_modules: no layer; expected names of linear layers. hint: all-linear takes every one",
    ),
    (
        CheckpointConfig,
        "steps_between",
        0,
        "checkpoint.steps_between: 0; expected a finite number of at least 1. hint: leave it out to save only at the "
        "end and when stopped",
    ),
    (
        CheckpointConfig,
        "num_kept",
        1,
        "checkpoint.num_kept: 1; expected a finite number of at least 2. hint: with one, a crash during the next save "
        "could lose both",
    ),
    (
        CheckpointConfig,
        "num_best_kept",
        0,
        "checkpoint.num_best_kept: 0; expected a finite number of at least 1. hint: leave it out to keep the newest "
        "alone",
    ),
    (
        RunConfig,
        "improvement_min",
        -0.1,
        "run.improvement_min: -0.1; expected a finite number of at least 0.0. hint: 0 takes any lower loss",
    ),
    (RunConfig, "out", "", "run.out: nothing; expected a path. hint: name a directory with --out DIR"),
    *(
        (
            RunConfig,
            name,
            0,
            f"run.{name}: 0; expected a finite number of at least 1. hint: leave it out for the default",
        )
        for name in (
            "num_epochs",
            "num_steps",
            "steps_this_session_max",
            "num_threads",
            "validation_steps_between",
            "patience",
        )
    ),
    (
        RunConfig,
        "progress_steps_between",
        0,
        "run.progress_steps_between: 0; expected a finite number of at least 1. hint: 1 prints every step",
    ),
    (
        RunConfig,
        "seed",
        2**32,
        "run.seed: 4294967296; expected 0 or more and below 2**32. hint: any small number will do",
    ),
]


@pytest.mark.parametrize(
    ("config", "name", "value", "message"), REFUSED, ids=[f"{config.__name__}.{name}" for config, name, *_ in REFUSED]
)
def test_impossible_value_is_refused_by_name(config: type, name: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        config(**REQUIRED.get(config, {}) | {name: value})
    assert str(refused.value) == message


def test_every_number_refuses_not_a_number_and_infinity() -> None:
    for config in sections():
        for field in fields(config):
            if float in (get_type_hints(config)[field.name], *get_args(get_type_hints(config)[field.name])):
                for value in (math.nan, math.inf):
                    with pytest.raises(ConfigError, match=field.name):
                        config(**REQUIRED.get(config, {}) | {field.name: value})


def test_defaults_build_and_cannot_be_changed() -> None:
    config = SftConfig(ModelConfig("m"), DataConfig("d"), RunConfig("o"))
    with pytest.raises(FrozenInstanceError):
        config.batch.samples_per_step = 3  # type: ignore[misc]  # the claim is that this cannot be done


def sections() -> list[type]:
    """The dataclasses of all sections, that of lora included."""
    hints = {hint: None for config in CONFIGS.values() for hint in get_type_hints(config).values()}
    return [each for hint in hints for each in (hint, *get_args(hint)) if isinstance(each, type) and is_dataclass(each)]
