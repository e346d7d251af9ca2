"""Every setting changes the plan or is refused, and every refusal says what to change."""

from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass, replace
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest

from training.config import (
    BatchConfig,
    CheckpointConfig,
    DataConfig,
    DpoConfig,
    GrpoConfig,
    KtoConfig,
    KtoSettings,
    LoraConfig,
    ModelConfig,
    OptimizerConfig,
    ParallelConfig,
    PpoConfig,
    PpoSettings,
    PreferenceConfig,
    PreferenceLoss,
    RewardConfig,
    RlConfig,
    RunConfig,
    ScheduleConfig,
    SftConfig,
)
from training.errors import PlanRefused
from training.plan import Machine, Plan, Refusal, plan

MACHINE = Machine(
    num_threads=4,
    accelerators=("cuda",),
    num_accelerators=16,
    packages=("bitsandbytes", "flash_attn", "liger_kernel", "triton"),
    compiles_c=True,
    compiles_cpp=True,
)
BASE = SftConfig(ModelConfig("m"), DataConfig("d"), RunConfig("o"))
KTO = KtoConfig(ModelConfig("m"), DataConfig("d"), RunConfig("o"))
REWARD = RewardConfig(ModelConfig("m"), DataConfig("d"), RunConfig("o"))
DPO = DpoConfig(ModelConfig("m"), DataConfig("d"), RunConfig("o"))
PPO = PpoConfig(ModelConfig("m"), DataConfig("d"), RunConfig("o"))
GRPO = GrpoConfig(ModelConfig("m"), DataConfig("d"), RunConfig("o"))
BASES = {
    "plain": BASE,
    "lora, wsd and validation": replace(
        BASE,
        lora=LoraConfig(),
        schedule=ScheduleConfig(shape="wsd"),
        data=DataConfig("d", validation_fraction=0.1),
        run=RunConfig("o", num_steps=50, validation_steps_between=5, patience=3),
        checkpoint=CheckpointConfig(steps_between=10),
    ),
    "muon": replace(BASE, optimizer=OptimizerConfig(kind="muon")),
    "8 bits": replace(BASE, optimizer=OptimizerConfig(kind="adamw_8bit")),
    "ranks": replace(BASE, parallel=ParallelConfig(ranks=2)),
    "zero": replace(BASE, parallel=ParallelConfig(ranks=2, backend="deepspeed", zero_stage=1)),
    "copies": replace(BASE, parallel=ParallelConfig(ranks=14, backend="fsdp", shard_ranks=2)),
    **{
        f"dpo, {loss}": replace(DPO, preference=PreferenceConfig(loss=loss), lora=LoraConfig())
        for loss in get_args(PreferenceLoss)
    },
    "grpo": replace(GRPO, rl=RlConfig(kl_coefficient=0.1), lora=LoraConfig()),
    "rloo": replace(GRPO, rl=RlConfig(advantage="rloo", importance_max=2.0)),
    "grpo with an environment": replace(GRPO, rl=RlConfig(environment="e.py:Game")),
    "grpo by a server": replace(GRPO, rl=RlConfig(engine="http://h", engine_sync="weights")),
    "ppo": replace(PPO, rl=PpoSettings(kl_coefficient=0.1), lora=LoraConfig()),
    "kto": replace(KTO, lora=LoraConfig()),
    "reward": replace(REWARD, data=DataConfig("d", validation_fraction=0.1)),
    "shards": replace(BASE, parallel=ParallelConfig(ranks=2, backend="fsdp", collective_seconds_max=60)),
}


def others(hint: Any, value: Any) -> Iterator[Any]:
    """Other values of a field, none of which is what its default resolves to; fails on a type it does not know."""
    if is_dataclass(hint) and isinstance(hint, type):
        yield from () if isinstance(value, hint) else (hint(),)
    elif get_origin(hint) is Literal:
        yield from (each for each in get_args(hint) if each != value)
    elif get_origin(hint) is tuple:
        yield ("q_proj", "v_proj")
    elif hint is bool:
        yield from (True, False) if value is None else (not value,)
    elif hint is int:
        yield from (7, 11)
    elif hint is float:
        yield from (0.25, 0.125)
    elif hint is str:
        yield "elsewhere"
    elif get_args(hint) and type(None) in get_args(hint):
        if value is not None:
            yield None
        yield from (each for arg in get_args(hint) if arg is not type(None) for each in others(arg, value))
    else:
        raise NotImplementedError(f"teach this test a value of type {hint}")


def unused(base: SftConfig, plan_of: Callable[[SftConfig], Plan | Refusal]) -> list[str]:
    """The settings with a change that leads to the same plan, found by changing each field of each section."""
    found: list[str] = []
    before = plan_of(base)
    assert isinstance(before, Plan), before
    for section, hint in get_type_hints(type(base)).items():
        held = getattr(base, section)
        if held is None or not is_dataclass(hint):
            found += [section for other in others(hint, held) if plan_of(replace(base, **{section: other})) == before]
        if held is None:
            continue
        for field in fields(held):
            kind, value = get_type_hints(type(held))[field.name], getattr(held, field.name)
            answers = [
                plan_of(replace(base, **{section: replace(held, **{field.name: other})}))
                for other in others(kind, value)
            ]
            assert answers, f"{section}.{field.name} was not changed"
            same = sum(answer == before for answer in answers)
            # `auto` stands for one of the other choices, as does a switch that is left open: one may come to the same.
            allowed = 1 if "auto" in get_args(kind) or (bool in get_args(kind) and value is None) else 0
            found += [f"{section}.{field.name}"] * (same > allowed)
    return found


@pytest.mark.parametrize("base", BASES.values(), ids=BASES)
def test_every_setting_changes_the_plan_or_is_refused(base: SftConfig) -> None:
    assert unused(base, lambda config: plan(config, MACHINE)) == []


@pytest.mark.parametrize(
    "forgotten",
    ["model.precision", "optimizer.weight_decay", "run.num_threads", "checkpoint.num_kept", "lora.dropout", "lora"],
)
def test_a_setting_that_the_plan_forgets_is_found(forgotten: str) -> None:
    base = BASES["lora, wsd and validation"]
    section, _, name = forgotten.partition(".")

    def forgetful(config: SftConfig) -> Plan | Refusal:
        held = getattr(base, section)
        if name and getattr(config, section) is not None:
            held = replace(getattr(config, section), **{name: getattr(held, name)})
        return plan(replace(config, **{section: held}), MACHINE)

    found = unused(base, forgetful)
    assert forgotten in found
    assert all(each.startswith(section) for each in found)


REFUSED: list[tuple[dict[str, Any], str]] = [
    (
        {"run": RunConfig("o", device="xpu")},
        "run.device: xpu; expected a device of this machine: cpu, cuda. hint: auto takes the best one there is",
    ),
    *(
        (
            {"batch": BatchConfig(share_prompts=True)} | changed,
            f"batch.share_prompts: true, with {got}. hint: leave one of the two out",
        )
        for changed, got in (
            (
                {"model": ModelConfig("m", attention="sdpa")},
                "model.attention sdpa; expected attention documents, which sees to what each document sees",
            ),
            (
                {"batch": BatchConfig(share_prompts=True, packing=False)},
                "batch.packing false; expected several documents in a microbatch",
            ),
            ({"data": DataConfig("d", kind="text")}, "data.kind text; expected samples with a prompt"),
            (
                {"model": ModelConfig("m", neftune_alpha=5.0)},
                "model.neftune_alpha 5; expected the same embeddings for all whose prompt it is, so no noise",
            ),
        )
    ),
    (
        {"checkpoint": CheckpointConfig(resume="never", elastic=True)},
        "checkpoint.elastic: true, with resume never; expected a run that may go on from something. hint: leave one of "
        "the two out",
    ),
    (
        {"checkpoint": CheckpointConfig(asynchronous=False)},
        "checkpoint.asynchronous: false, without checkpoints on the way; expected steps to write a checkpoint beside. "
        "hint: add --checkpoint.steps_between 100, or leave it out",
    ),
    (
        {"parallel": ParallelConfig(ranks=2, backend="single")},
        "parallel.backend: single, with 2 ranks; expected ddp, fsdp or deepspeed. hint: auto takes ddp for more than "
        "one rank",
    ),
    (
        {"parallel": ParallelConfig(ranks=17)},
        "parallel.ranks: 17 on this machine, which has 16 of cuda; expected one for each. hint: take fewer ranks, or "
        "--device cpu",
    ),
    (
        {"parallel": ParallelConfig(ranks=2, offload=True)},
        "parallel.offload: true, with ddp; expected fsdp or deepspeed. hint: add --backend fsdp, or leave the "
        "setting out",
    ),
    (
        {"parallel": ParallelConfig(ranks=2, backend="fsdp", zero_stage=3)},
        "parallel.zero_stage: 3, with fsdp; expected deepspeed. hint: add --backend deepspeed, or leave the setting "
        "out",
    ),
    (
        {"parallel": ParallelConfig(ranks=2, backend="deepspeed", keep_gathered=True)},
        "parallel.keep_gathered: true, with deepspeed; expected fsdp. hint: add --backend fsdp, or leave the setting "
        "out",
    ),
    (
        {"parallel": ParallelConfig(ranks=4, backend="deepspeed", shard_ranks=2)},
        "parallel.shard_ranks: 2, with deepspeed; expected fsdp. hint: add --backend fsdp, or leave the setting out",
    ),
    (
        {"parallel": ParallelConfig(ranks=4, backend="fsdp", shard_ranks=3)},
        "parallel.shard_ranks: 3, of 4 ranks; expected a divisor of that, and less. hint: groups of ranks must be "
        "equal, and more than one: take another, or leave it out for one copy in all",
    ),
    (
        {"parallel": ParallelConfig(ranks=4, backend="fsdp", shard_ranks=4)},
        "parallel.shard_ranks: 4, of 4 ranks; expected a divisor of that, and less. hint: groups of ranks must be "
        "equal, and more than one: take another, or leave it out for one copy in all",
    ),
    (
        {
            "model": ModelConfig("m", quantization="nf4"),
            "lora": LoraConfig(dora=True),
            "parallel": ParallelConfig(ranks=2, backend="deepspeed", zero_stage=3),
        },
        "parallel.zero_stage: 3, with lora.dora and model.quantization nf4; expected 1 or 2. hint: DoRA needs "
        "quantized weights whole, and stage 3 cannot gather them: take stage 2, or leave one of them out",
    ),
    (
        {"parallel": ParallelConfig(keep_gathered=True)},
        "parallel.keep_gathered: true, with single; expected fsdp. hint: add --backend fsdp, or leave the setting out",
    ),
    (
        {"parallel": ParallelConfig(collective_seconds_max=9)},
        "parallel.collective_seconds_max: 9, with a single process; expected ranks to wait for. hint: leave it out",
    ),
    (
        {"model": ModelConfig("m", liger=True), "run": RunConfig("o", device="cpu")},
        "model.liger: true, on cpu; expected an accelerator. hint: leave it out: its kernels need one",
    ),
    (
        {"model": ModelConfig("m", liger=True), "parallel": ParallelConfig(backend="fsdp")},
        "model.liger: true, with fsdp; expected single or ddp. hint: leave it out, or take --backend ddp: weights in "
        "parts are put together for the export on the CPU, where Liger's kernels do not run",
    ),
    (
        {"model": ModelConfig("m", quantization="nf4")},
        "model.quantization: nf4, without lora; expected an adapter, since weights of 4 bits are not trained. hint: "
        "add --lora, or leave the setting out",
    ),
    *(
        (
            {"model": ModelConfig("m", attention=attention, precision="bf16"), "run": RunConfig("o", device="cpu")},
            f"model.attention: {attention}, on cpu, {lacks}; expected documents, sdpa or eager. hint: leave it out: "
            "attention per document is exact everywhere",
        )
        for attention, lacks in (("flex", "whose backward pass is not there"), ("flash", "where it has no kernel"))
    ),
    (
        {"model": ModelConfig("m", attention="flash")},
        "model.attention: flash, with fp32; expected bf16, all it computes in. hint: add --precision bf16, or leave it "
        "out: attention per document is exact everywhere",
    ),
    (
        {"model": ModelConfig("m", compile=True), "parallel": ParallelConfig(backend="deepspeed")},
        "model.compile: true, with deepspeed; expected single, ddp or fsdp. hint: add --backend fsdp, or leave it "
        "out: what DeepSpeed does around each layer would be compiled with it",
    ),
    (
        {"model": ModelConfig("m", compile=True, attention="sdpa")},
        "model.compile: true, with attention sdpa; expected attention documents. hint: leave one of the two out: with "
        "a mask, layers would be compiled anew for packs with another one",
    ),
    (
        {"model": ModelConfig("m", compile=True, activation_checkpointing=True)},
        "model.compile: true, with activation_checkpointing; expected layers that keep their activations. hint: leave "
        "one of the two out: layers that are run again for their gradients are not compiled",
    ),
    *(
        (
            {"model": ModelConfig("m", compile=True, **model), "lora": lora},
            f"model.compile: true, with {got}; expected layers of plain matrices, norms and plain LoRA. hint: leave "
            "one of the two out: whether both together give the same numbers is not proven",
        )
        for model, lora, got in (
            ({"liger": True}, None, "model.liger"),
            ({"quantization": "nf4"}, LoraConfig(), "model.quantization nf4"),
            ({}, LoraConfig(dora=True), "lora.dora"),
        )
    ),
    (
        {"model": ModelConfig("m", compile=True), "lora": LoraConfig(dropout=0.1)},
        "model.compile: true, with lora.dropout 0.1; expected layers that draw nothing. hint: leave one of the two "
        "out: compiled layers would drop other places than the same run uncompiled",
    ),
    (
        {"run": RunConfig("o", num_epochs=2, num_steps=10)},
        "run.num_epochs: 2, while run.num_steps is 10; expected one of the two. hint: leave out the one you do "
        "not mean",
    ),
    (
        {"data": DataConfig("d", tokens_per_sample_max=600), "batch": BatchConfig(tokens_per_rank_max=512)},
        "data.tokens_per_sample_max: 600, over batch.tokens_per_rank_max = 512; expected a sample to fit one "
        "microbatch. hint: raise batch.tokens_per_rank_max to the same number",
    ),
    (
        {"data": DataConfig("d", kind="text", on_long_sample="skip")},
        "data.on_long_sample: skip, while data.kind is text; expected no rule. hint: documents are cut into blocks, so "
        "none is too long: leave it out",
    ),
    (
        {"data": DataConfig("d", validation_path="v", validation_fraction=0.1)},
        "data.validation_fraction: 0.1, while data.validation_path is v; expected one of the two. hint: leave out the "
        "one you do not mean",
    ),
    (
        {"run": RunConfig("o", validation_steps_between=5)},
        "run.validation_steps_between: 5, without validation data; expected something to compute a validation loss on. "
        "hint: hold samples out with --data.validation_fraction 0.05",
    ),
    (
        {
            "optimizer": OptimizerConfig(kind="muon"),
            "parallel": ParallelConfig(ranks=2, backend="fsdp"),
        },
        "optimizer.kind: muon, with fsdp, which cuts weights into parts; expected adamw, or a backend that keeps each "
        "weight whole: single or ddp. hint: add --backend ddp, or leave the setting out",
    ),
    (
        {"optimizer": OptimizerConfig(momentum=0.9)},
        "optimizer.momentum: 0.9, with adamw; expected muon. hint: leave it out; the momentum of adamw is beta1",
    ),
    (
        {"optimizer": OptimizerConfig(kind="adamw_8bit", fused=True)},
        "optimizer.fused: true, with adamw_8bit; expected adamw or muon. hint: leave it out: adamw_8bit has one way",
    ),
    (
        {"run": RunConfig("o", patience=3)},
        "run.patience: 3, without validations on the way; expected some to count. hint: add "
        "--validation-steps-between 50",
    ),
    (
        {"run": RunConfig("o", improvement_min=0.1)},
        "run.improvement_min: 0.1, without patience; expected a run that can lose it. hint: add --patience 3, or leave "
        "it out",
    ),
    (
        {
            "checkpoint": CheckpointConfig(steps_between=10, num_best_kept=1),
            "run": RunConfig("o", validation_steps_between=4),
            "data": DataConfig("d", validation_fraction=0.1),
        },
        "checkpoint.num_best_kept: 1, with checkpoints every 10 steps and validations every 4; expected a validation "
        "loss for each checkpoint. hint: give --checkpoint.steps_between as a multiple of --validation-steps-between",
    ),
    (
        {"schedule": ScheduleConfig(shape="cosine", decay_fraction=0.1)},
        "schedule.decay_fraction: 0.1, while schedule.shape is cosine; expected wsd, the one shape with a decay phase. "
        "hint: leave it out, or choose wsd",
    ),
    (
        {"schedule": ScheduleConfig(shape="constant", floor_fraction=0.1)},
        "schedule.floor_fraction: 0.1, while schedule.shape is constant; expected a shape that falls. hint: leave it "
        "out, or choose linear, cosine or wsd",
    ),
    (
        {"schedule": ScheduleConfig(shape="wsd", warmup_fraction=0.9)},
        "schedule.warmup_fraction: 0.9, with a decay of 0.2; expected at most 1 together. hint: make one of them "
        "shorter",
    ),
    (
        {"checkpoint": CheckpointConfig(export="merged")},
        "checkpoint.export: merged, without lora; expected model, auto or none. hint: add --lora to train an adapter",
    ),
    (
        {"checkpoint": CheckpointConfig(export="model"), "lora": LoraConfig()},
        "checkpoint.export: model, with lora; expected adapter, merged, adapter+merged, auto or none. hint: merged is "
        "the whole model with the adapter added in",
    ),
]


WITH_REFERENCE = " or ".join(loss for loss in get_args(PreferenceLoss) if loss not in ("orpo", "simpo"))

REFUSED_PAIRS: list[tuple[dict[str, Any], str]] = [
    (
        {"data": DataConfig("d", kind="text")},
        "data.kind: text, for dpo; expected chat. hint: leave it out: completions are turns of a conversation",
    ),
    *(
        (
            {"preference": PreferenceConfig(loss=loss, **{name: value})},
            f"preference.{name}: {shown}, while preference.loss is {loss}; expected {expected}. hint: leave it out, or "
            "choose another loss",
        )
        for loss, name, value, shown, expected in (
            ("orpo", "beta", 0.1, "0.1", f"{WITH_REFERENCE} or simpo"),
            ("orpo", "beta_end", 0.1, "0.1", WITH_REFERENCE),
            ("simpo", "beta_end", 1.0, "1.0", WITH_REFERENCE),
            ("ipo", "label_smoothing", 0.1, "0.1", "sigmoid or robust"),
            ("simpo", "length_normalized", True, "true", WITH_REFERENCE),
            ("sigmoid", "target_margin", 1.0, "1.0", "simpo"),
            ("hinge", "odds_weight", 1.0, "1.0", "orpo"),
            ("orpo", "reference", "initial", "initial", WITH_REFERENCE),
            ("simpo", "reference", "elsewhere", "elsewhere", WITH_REFERENCE),
        )
    ),
    (
        {"model": ModelConfig("m", compile=True)},
        "model.compile: true, for dpo; expected sft. hint: leave it out: whether the losses of pairs and labels come "
        "out the same is not proven",
    ),
    (
        {"preference": PreferenceConfig(reference="adapter")},
        "preference.reference: adapter, without lora; expected an adapter to leave out. hint: add --lora, or leave the "
        "setting out",
    ),
]


def test_kto_without_an_adapter_cannot_leave_one_out() -> None:
    answer = plan(replace(KTO, kto=KtoSettings(reference="adapter")), MACHINE)
    assert isinstance(answer, Refusal)
    assert str(answer.as_error()) == (
        "kto.reference: adapter, without lora; expected an adapter to leave out. hint: add --lora, or leave the "
        "setting out"
    )
    assert planned(KTO).reference == "initial"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"model": ModelConfig("m", liger=True), "run": RunConfig("o", device="cuda")},
            "model.liger: true, for reward; expected a model of language. hint: leave it out",
        ),
        (
            {"model": ModelConfig("m", loss_chunk_tokens=512)},
            "model.loss_chunk_tokens: 512, for reward; expected a model of language. hint: leave it out: there are no "
            "scores over the vocabulary to hold",
        ),
        (
            {"data": DataConfig("d", on_long_sample="truncate")},
            "data.on_long_sample: truncate, for reward; expected stop or skip. hint: take skip: the number is read at "
            "the end of a completion",
        ),
    ],
)
def test_settings_that_a_value_head_has_no_use_for_are_refused(changed: dict[str, Any], message: str) -> None:
    answer = plan(replace(REWARD, **changed), MACHINE)
    assert isinstance(answer, Refusal)
    assert str(answer.as_error()) == message


@pytest.mark.parametrize(("changed", "message"), REFUSED_PAIRS, ids=[said.split(";")[0] for _, said in REFUSED_PAIRS])
def test_settings_of_pairs_that_do_not_combine_are_refused_with_a_reason(changed: dict[str, Any], message: str) -> None:
    answer = plan(replace(DPO, **changed), MACHINE)
    assert isinstance(answer, Refusal)
    assert str(answer.as_error()) == message


@pytest.mark.parametrize(("changed", "message"), REFUSED, ids=[message.split(":")[0] for _, message in REFUSED])
def test_settings_that_do_not_combine_are_refused_with_a_reason(changed: dict[str, Any], message: str) -> None:
    answer = plan(replace(BASE, **changed), MACHINE)
    assert isinstance(answer, Refusal)
    error = answer.as_error()
    assert isinstance(error, PlanRefused)
    assert str(error) == message


REFUSED_FOR_GRPO: list[tuple[dict[str, Any], str]] = [
    (
        {"rl": RlConfig(overlong_tokens=32, completion_tokens_max=16)},
        "rl.overlong_tokens: 32, of 16 tokens in a completion; expected at most as many. hint: lower it, or raise "
        "rl.completion_tokens_max",
    ),
    (
        {"model": ModelConfig("m", compile=True)},
        "model.compile: true, for grpo; expected a recipe that only trains. hint: leave it out: completions are drawn "
        "a token at a time from a cache, for which layers would be compiled anew",
    ),
    (
        {"rl": RlConfig(turns_max=2)},
        "rl.turns_max: 2, without environment; expected somebody to answer a turn. hint: add --environment "
        "file.py:function, or leave it out",
    ),
    (
        {"rl": RlConfig(environment="e.py:Game", overlong_tokens=8)},
        "rl.overlong_tokens: 8, with environment; expected a single turn. hint: leave it out: which of several turns "
        "is too long, a reward may say",
    ),
    (
        {"rl": RlConfig(engine="host:8000")},
        "rl.engine: host:8000; expected an address with http. hint: name where the protocol begins, usually "
        "http://host:8000/v1",
    ),
    (
        {"rl": RlConfig(engine_sync="adapter"), "lora": LoraConfig()},
        "rl.engine_sync: adapter, without engine; expected a server to give weights to. hint: add --engine "
        "http://host:8000/v1, or leave it out",
    ),
    (
        {"rl": RlConfig(engine="http://h", engine_sync="adapter")},
        "rl.engine_sync: adapter, without lora; expected an adapter. hint: add --lora, or take weights",
    ),
    (
        {"rl": RlConfig(engine="http://h", engine_sync="weights"), "lora": LoraConfig()},
        "rl.engine_sync: weights, with lora; expected all weights in training. hint: take adapter: it is all that "
        "changes",
    ),
    (
        {"rl": RlConfig(group_size=5)},
        "rl.group_size: 5, with rollouts of 16 completions; expected groups that come out even. hint: change it, "
        "batch.samples_per_step or rl.steps_per_rollout",
    ),
    (
        {"rl": RlConfig(advantage="rloo", divide_by_std=True)},
        "rl.divide_by_std: true, with rl.advantage rloo; expected group. hint: leave it out: rloo never divides",
    ),
    (
        {"rl": RlConfig(kl_estimator="k3")},
        "rl.kl_estimator: k3, without kl_coefficient; expected a divergence to estimate. hint: add --kl-coefficient "
        "0.01, or leave it out",
    ),
    (
        {"batch": BatchConfig(tokens_per_rank_max=256)},
        "rl.completion_tokens_max: 256, of 256 tokens in a sample; expected room for a prompt. hint: raise "
        "batch.tokens_per_rank_max, or data.tokens_per_sample_max if it is given",
    ),
    (
        {"data": DataConfig("d", on_long_sample="truncate")},
        "data.on_long_sample: truncate, for prompts; expected stop or skip. hint: take skip: a prompt without its end "
        "asks something else",
    ),
    (
        {"data": DataConfig("d", validation_path="v")},
        "data.validation_path: v, for grpo; expected no validation loss. hint: leave it out: rewards are in the "
        "records of each step",
    ),
    (
        {"data": DataConfig("d", validation_fraction=0.1)},
        "data.validation_fraction: 0.1, for grpo; expected no validation loss. hint: leave it out: rewards are in the "
        "records of each step",
    ),
    (
        {"model": ModelConfig("m", neftune_alpha=5.0)},
        "model.neftune_alpha: 5, for grpo; expected no noise. hint: leave it out: a ratio would compare two models "
        "that differ by chance",
    ),
    (
        {"lora": LoraConfig(dropout=0.1)},
        "lora.dropout: 0.1, for grpo; expected 0. hint: leave it out: a ratio would compare two models that differ by "
        "chance",
    ),
]


REFUSED_FOR_PPO: list[tuple[dict[str, Any], str]] = [
    *((changed, said.replace("for grpo", "for ppo")) for changed, said in REFUSED_FOR_GRPO if "rl" not in changed),
    (
        {"rl": PpoSettings(overlong_tokens=32, completion_tokens_max=16)},
        "rl.overlong_tokens: 32, of 16 tokens in a completion; expected at most as many. hint: lower it, or raise "
        "rl.completion_tokens_max",
    ),
    (
        {"rl": PpoSettings(kl_estimator="k3")},
        "rl.kl_estimator: k3, without kl_coefficient; expected a divergence to estimate. hint: add --kl-coefficient "
        "0.01, or leave it out",
    ),
]


@pytest.mark.parametrize(
    ("base", "changed", "message"),
    [*((GRPO, *each) for each in REFUSED_FOR_GRPO), *((PPO, *each) for each in REFUSED_FOR_PPO)],
)
def test_settings_that_do_not_combine_with_rewards_are_refused(
    base: SftConfig, changed: dict[str, Any], message: str
) -> None:
    answer = plan(replace(base, **changed), MACHINE)
    assert isinstance(answer, Refusal)
    assert str(answer.as_error()) == message


def planned(config: SftConfig, machine: Machine = MACHINE) -> Plan:
    answer = plan(config, machine)
    assert isinstance(answer, Plan)
    return answer


@pytest.mark.parametrize(
    ("changed", "setting", "package"),
    [
        (ModelConfig("m", quantization="nf4"), "model.quantization: nf4", "bitsandbytes"),
        (ModelConfig("m", liger=True), "model.liger: true", "liger_kernel"),
        (ModelConfig("m", compile=True), "model.compile: true", "triton"),
        (ModelConfig("m", attention="flex"), "model.attention: flex", "triton"),
        (ModelConfig("m", attention="flash", precision="bf16"), "model.attention: flash", "flash_attn"),
    ],
)
def test_settings_that_need_a_package_are_refused_where_it_is_not(
    changed: ModelConfig, setting: str, package: str
) -> None:
    config = replace(BASE, model=changed, lora=LoraConfig())
    assert isinstance(plan(config, MACHINE), Plan)
    answer = plan(config, replace(MACHINE, packages=()))
    assert isinstance(answer, Refusal)
    assert str(answer.as_error()) == (
        f"{setting}, without the package {package}; expected a Python in which it is installed. hint: install "
        f"{package}, or leave the setting out"
    )


def test_compiled_layers_on_the_cpu_need_a_compiler() -> None:
    config = replace(BASE, model=ModelConfig("m", compile=True), run=RunConfig("o", device="cpu"))
    assert planned(config, replace(MACHINE, packages=())).compile
    answer = plan(config, replace(MACHINE, compiles_cpp=False))
    assert isinstance(answer, Refusal)
    assert str(answer.as_error()) == (
        "model.compile: true, without a C++ compiler or Python.h; expected both, which layers on the CPU need. hint: "
        "install g++ and Python's development headers, name another compiler in CXX, or leave the setting out"
    )


@pytest.mark.parametrize(
    ("changed", "setting"),
    [
        (ModelConfig("m", liger=True), "model.liger: true"),
        (ModelConfig("m", compile=True), "model.compile: true"),
        (ModelConfig("m", attention="flex"), "model.attention: flex"),
    ],
)
def test_kernels_that_triton_compiles_need_a_compiler_of_c(changed: ModelConfig, setting: str) -> None:
    config = replace(BASE, model=changed)
    assert isinstance(plan(config, replace(MACHINE, compiles_cpp=False)), Plan)
    answer = plan(config, replace(MACHINE, compiles_c=False))
    assert isinstance(answer, Refusal)
    assert str(answer.as_error()) == (
        f"{setting}, without a C compiler or Python.h; expected both, which Triton's kernels need. hint: install gcc "
        "and Python's development headers, name another compiler in CC, or leave the setting out"
    )


def test_what_is_left_open_is_decided_by_the_rest() -> None:
    assert planned(BASE).schedule.peak == 2e-5
    assert planned(replace(BASE, lora=LoraConfig())).schedule.peak == 2e-4
    assert planned(BASE).fused
    assert not planned(replace(BASE, optimizer=OptimizerConfig(kind="adamw_8bit"))).fused
    assert planned(replace(BASE, optimizer=OptimizerConfig(kind="muon"))).momentum == 0.95
    assert planned(BASE).exports == ("model",)
    assert planned(replace(BASE, lora=LoraConfig())).exports == ("adapter", "merged")
    assert planned(replace(BASE, checkpoint=CheckpointConfig(export="none"))).exports == ()
    assert not planned(BASE).asynchronous, "there is nothing to go on with"
    assert planned(replace(BASE, checkpoint=CheckpointConfig(steps_between=5))).asynchronous
    assert not planned(BASE).share_prompts
    assert planned(DPO).share_prompts
    assert planned(replace(BASE, batch=BatchConfig(share_prompts=True))).share_prompts
    assert not planned(replace(DPO, batch=BatchConfig(share_prompts=False))).share_prompts
    assert not planned(replace(DPO, model=ModelConfig("m", attention="sdpa"))).share_prompts
    assert planned(BASE).device == "cuda"
    assert planned(BASE, Machine(num_threads=4)).device == "cpu"
    assert planned(BASE, Machine(num_threads=3)).num_threads == 3
    assert planned(BASE).tokens_per_sample_max == BASE.batch.tokens_per_rank_max
    assert (planned(BASE).num_epochs, planned(BASE).num_steps) == (1, None)
    by_steps = planned(replace(BASE, run=RunConfig("o", num_steps=9)))
    assert (by_steps.num_epochs, by_steps.num_steps) == (None, 9)


def test_what_a_loss_of_pairs_needs_is_decided() -> None:
    def settings(**given: Any) -> tuple[Any, ...]:
        made = planned(replace(DPO, preference=PreferenceConfig(**given)))
        assert made.preference
        found = made.preference
        return found.beta, found.label_smoothing, found.target_margin, found.odds_weight, made.reference

    assert settings() == (0.1, 0.0, None, None, "initial")
    assert settings(loss="robust") == (0.1, 0.1, None, None, "initial")
    assert settings(loss="ipo", beta=0.5, reference="r") == (0.5, None, None, None, "r")
    assert settings(loss="simpo") == (2.0, None, 1.0, None, None)
    assert settings(loss="orpo") == (None, None, None, 0.1, None)
    assert (planned(BASE).preference, planned(BASE).reference) == (None, None)


def test_ranks_are_those_that_were_asked_for_or_that_a_launcher_has_started() -> None:
    assert (planned(BASE).backend, planned(BASE).num_ranks) == ("single", 1)
    asked = planned(replace(BASE, parallel=ParallelConfig(ranks=2)))
    assert (asked.backend, asked.num_ranks, asked.num_threads) == ("ddp", 2, 2), "ranks share the machine's threads"
    one = planned(replace(BASE, parallel=ParallelConfig(backend="fsdp")))
    assert (one.backend, one.num_ranks) == ("fsdp", 1)
    zero = planned(replace(BASE, parallel=ParallelConfig(ranks=2, backend="deepspeed")))
    assert (zero.backend, zero.zero_stage, asked.zero_stage) == ("deepspeed", 2, None)
    launched = replace(MACHINE, num_ranks=8, num_ranks_here=4)
    found = planned(BASE, launched)
    assert (found.backend, found.num_ranks, found.num_threads) == ("ddp", 8, 1)
    assert planned(replace(BASE, parallel=ParallelConfig(ranks=8)), launched) == found
    answer = plan(replace(BASE, parallel=ParallelConfig(ranks=2)), launched)
    assert isinstance(answer, Refusal)
    assert str(answer.as_error()) == (
        "parallel.ranks: 2, while the launcher started 8; expected the same number. hint: leave it out: the launcher "
        "has decided"
    )


def test_trajectory_leaves_out_where_and_how_often_and_keeps_what_decides_numbers() -> None:
    before = planned(BASE).trajectory()
    bookkeeping = replace(
        BASE,
        run=RunConfig(
            "elsewhere",
            steps_this_session_max=3,
            progress_steps_between=5,
            validation_steps_between=2,
            patience=3,
            improvement_min=0.1,
        ),
        checkpoint=CheckpointConfig(
            steps_between=4, asynchronous=False, num_kept=5, num_best_kept=2, resume="must", export="none"
        ),
        model=ModelConfig("moved"),
        data=DataConfig("moved too", validation_fraction=0.1),
    )
    assert planned(bookkeeping).trajectory() == before | {"validation_fraction": 0.1}
    assert planned(replace(BASE, run=RunConfig("o", seed=1))).trajectory() != before
    assert planned(replace(BASE, optimizer=OptimizerConfig(beta2=0.95))).trajectory() != before
    assert planned(replace(BASE, lora=LoraConfig())).trajectory() != before


@pytest.mark.parametrize("base", BASES.values(), ids=BASES)
def test_description_tells_apart_what_the_plan_tells_apart(base: SftConfig) -> None:
    def described(config: SftConfig) -> Plan | Refusal:
        answer = plan(config, MACHINE)
        # A plan equal in all but its text stands for its text.
        return replace(planned(base), out=answer.describe()) if isinstance(answer, Plan) else answer

    assert unused(base, described) == []
