"""Learning from pairs takes the same steps on several ranks as on one, resumes exactly, and compares with one model.

Fourteen pairs, four a step: four steps an epoch, so step 2 is in the middle of the first.
"""

import asyncio
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import training.parallel.fsdp  # noqa: F401 - so that forked processes need not spend seconds on it
from tests.subsystem.processes import forked, records_of, tensors_of, typed
from tests.support.chats import write_jsonl
from tests.support.tolerances import LOGPROB_FP32, RANKS_FP32_RELATIVE
from training.checkpoint.manifest import POINTER
from training.config import (
    DataConfig,
    DpoConfig,
    KtoSettings,
    LoraConfig,
    ModelConfig,
    PreferenceConfig,
    PreferenceLoss,
    RunConfig,
)
from training.errors import ModelError
from training.imports import import_lean
from training.metrics.records import Record, StepRecord, ValidationRecord
from training.models.tiny import save_tiny
from training.parallel.deepspeed import preload
from training.plan import Machine, Plan, plan
from training.recipes import train
from training.rollout.judge import RewardModel
from training.rollout.rewards import Answered, Reward, score
from training.schedule import Schedule

NUM_STEPS = 6
LORA = LoraConfig(rank=2, dropout=0.25)
preload("cpu")
import_lean("peft")  # Here for the same reason.

PLACES: dict[str, dict[str, Any]] = {
    "ddp x2": {"backend": "ddp"},
    "fsdp x2": {"backend": "fsdp"},
    "zero 2 x2": {"backend": "deepspeed", "zero_stage": 2},
    "zero 3 x2": {"backend": "deepspeed", "zero_stage": 3},
}


def pairs(num: int) -> list[dict[str, str]]:
    """`num` pairs of which the chosen completion is the right sum; lengths differ."""
    return [
        {"prompt": f"{n % 7} + {n % 5}?", "chosen": str(n % 7 + n % 5), "rejected": f"{n * 37}" + "!" * (n % 4)}
        for n in range(1, num + 1)
    ]


def planned(directory: Path, preference: PreferenceConfig | None = None, **changed: Any) -> Plan:
    """A run of one process under `directory`, with some fields of the plan changed."""
    model = directory / "base"
    if not model.exists():
        save_tiny(model)
    answer = plan(
        DpoConfig(
            ModelConfig(str(model)),
            DataConfig(str(write_jsonl(directory / "pairs.jsonl", pairs(16))), validation_fraction=0.125),
            RunConfig(str(directory / "out"), num_steps=NUM_STEPS, device="cpu"),
            lora=changed.pop("lora", None),
            preference=preference or PreferenceConfig(),
        ),
        Machine(num_threads=1),
    )
    assert isinstance(answer, Plan)
    small: dict[str, Any] = {
        "samples_per_step": 4,
        "tokens_per_rank_max": 160,
        "tokens_per_sample_max": 160,
        "collective_seconds_max": 60,
        "epsilon": 1e-4,
        "schedule": Schedule("constant", 1e-2, 0.0, 0.2, 0.0),
        "exports": (),
    }
    return replace(answer, **small | changed)


def on_two_ranks(made: Plan, **place: Any) -> Plan:
    """The same run elsewhere, in a directory of its own."""
    return replace(made, num_ranks=2, out=f"{made.out} {'-'.join(map(str, place.values()))}", **place)


def trained(made: Plan) -> list[Record]:
    """The records of a run in a process of its own."""
    assert forked(train, made) == 0
    return records_of(Path(made.out))


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=2)], ids=["all weights", "lora"])
def test_every_backend_takes_the_steps_of_one_process(tmp_path: Path, lora: LoraConfig | None) -> None:
    alone = planned(tmp_path, lora=lora)
    expected = trained(alone)
    (first, *_) = steps(expected)
    assert first.loss == pytest.approx(0.693147, abs=1e-5), "nothing is preferred before the first step"
    assert steps(expected)[-1].metrics["reward_margin"] > 0.1
    reference = load_file(Path(alone.out) / "reference.safetensors")
    for name, place in PLACES.items():
        elsewhere = on_two_ranks(alone, **place)
        got = trained(elsewhere)
        for one, other in zip(expected, got, strict=True):
            assert other.loss == pytest.approx(one.loss, rel=10 * RANKS_FP32_RELATIVE), name
            if isinstance(one, StepRecord) and isinstance(other, StepRecord):
                assert other.gradient_norm == pytest.approx(one.gradient_norm, rel=10 * RANKS_FP32_RELATIVE), name
                assert told(other) == pytest.approx(told(one), rel=1e-4, abs=1e-5), name
        for each, values in load_file(Path(elsewhere.out) / "reference.safetensors").items():
            assert (values - reference[each]).abs().max() <= 10 * LOGPROB_FP32


def test_a_prompt_that_both_sides_share_is_computed_once_and_changes_nothing(tmp_path: Path) -> None:
    """Each prompt is that of one pair alone, so that what is shared is shared within pairs."""
    shared = planned(tmp_path)
    assert shared.share_prompts
    apart = replace(shared, out=f"{shared.out} apart", share_prompts=False)
    for one, other in zip(trained(apart), trained(shared), strict=True):
        assert other.loss == pytest.approx(one.loss, rel=10 * RANKS_FP32_RELATIVE)
        assert told(other) == pytest.approx(told(one), rel=1e-4, abs=1e-5)


def told(record: Record) -> dict[str, float]:
    """Its metrics; of a first step without which margins are above 0, for there all of them are roundings of 0."""
    assert isinstance(record, StepRecord | ValidationRecord)
    return {name: value for name, value in record.metrics.items() if (name, record.step) != ("reward_accuracy", 1)}


def steps(records: list[Record]) -> list[StepRecord]:
    return [each for each in records if isinstance(each, StepRecord)]


RESUMED: dict[str, dict[str, Any]] = {
    "one process, dropout and noise, beta changes": {
        "preference": PreferenceConfig(beta_end=0.6),
        "lora": LORA,
        "neftune_alpha": 5.0,
    },
    "fsdp": {"backend": "fsdp", "num_ranks": 2},
    "zero 3, lora": {"backend": "deepspeed", "zero_stage": 3, "num_ranks": 2, "lora": LORA},
}


@pytest.mark.parametrize("kind", RESUMED)
def test_gone_on_in_an_epoch_is_the_same_run_bit_for_bit(tmp_path: Path, kind: str) -> None:
    """The first kind has lost the file of its reference, and computes it anew before its checkpoint is restored."""
    whole = planned(tmp_path, checkpoint_steps_between=2, num_kept=3, **RESUMED[kind])
    expected = trained(whole)
    if kind.endswith("beta changes"):
        assert [each.metrics["beta"] for each in steps(expected)] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
        first, last = (each for each in expected if isinstance(each, ValidationRecord))
        assert first.metrics["beta"] == last.metrics["beta"] == pytest.approx(0.6), "so that the two can be compared"
    parts = replace(whole, out=str(tmp_path / "parts"), resume="must")
    shutil.copytree(whole.out, parts.out)
    for step in (4, 6):
        shutil.rmtree(Path(parts.out) / f"checkpoints/step-{step:08d}")
    (Path(parts.out) / "checkpoints" / POINTER).write_text("step-00000002\n", encoding="utf-8")
    if kind.startswith("one process"):
        (Path(parts.out) / "reference.safetensors").unlink()
    assert trained(parts) == expected
    name = f"checkpoints/step-{NUM_STEPS:08d}"
    ours, theirs = tensors_of(Path(whole.out) / name), tensors_of(Path(parts.out) / name)
    assert ours.keys() == theirs.keys()
    for tensor, value in ours.items():
        assert torch.equal(value, theirs[tensor]), tensor


def test_initial_model_adapter_left_out_and_a_separate_copy_are_one_reference(tmp_path: Path) -> None:
    """To rounding, though dropout and noise are on in training and the separate model is not wrapped."""
    found = {}
    for reference in ("initial", "adapter", str(tmp_path / "base")):
        made = planned(
            tmp_path,
            PreferenceConfig(reference=reference),
            lora=LORA,
            neftune_alpha=5.0,
            out=str(tmp_path / f"out {len(found)}"),
            num_steps=1,
        )
        trained(made)
        found[reference] = load_file(Path(made.out) / "reference.safetensors")
    expected = found["initial"]
    assert expected["training"].shape == (28,)
    assert expected["validation"].shape == (4,)
    for values in found.values():
        for name, each in values.items():
            assert (each - expected[name]).abs().max() <= LOGPROB_FP32
    save_tiny(tmp_path / "other", seed=9)
    other = planned(tmp_path, PreferenceConfig(reference=str(tmp_path / "other")), out=str(tmp_path / "o"), num_steps=1)
    trained(other)
    values = load_file(tmp_path / "o/reference.safetensors")["training"]
    assert (values - expected["training"]).abs().max() > 0.1


@pytest.mark.parametrize("loss", ["simpo", "orpo"])
def test_losses_without_reference_learn_and_leave_none(tmp_path: Path, loss: PreferenceLoss) -> None:
    decided = planned(tmp_path, PreferenceConfig(loss))
    records = steps(trained(decided))
    assert records[-1].loss < records[0].loss
    assert records[-1].metrics["reward_margin"] > records[0].metrics["reward_margin"]
    assert not (tmp_path / "out/reference.safetensors").exists()


def test_labels_are_learned(tmp_path: Path) -> None:
    """Of all samples in each step: a few of them lean to one side or the other."""
    decided = planned(tmp_path, num_steps=9, samples_per_step=21)
    lines = [
        {"prompt": each["prompt"], "completion": each[side], "label": side == "chosen"}
        for each in pairs(12)
        for side in ("chosen", "rejected")
    ]
    labels = write_jsonl(tmp_path / "labels.jsonl", lines)
    made = replace(decided, recipe="kto", preference=None, kto=KtoSettings(), data_path=str(labels))
    records = steps(trained(made))
    assert records[0].loss == pytest.approx(0.5, abs=1e-5), "nothing has moved before the first step"
    assert records[-1].loss < 0.45
    assert records[-1].metrics["reward_signed"] > 0.1
    for before, after in zip(records, steps(trained(on_two_ranks(made, backend="ddp"))), strict=True):
        assert after.loss == pytest.approx(before.loss, rel=10 * RANKS_FP32_RELATIVE)


def refuses(model: object, where: str) -> None:
    """What is asked of a model before it reads packs, and says no."""
    raise ModelError(where, got="other logits", expected="the same", hint="none")


def test_a_reward_model_learns_alike_everywhere_goes_on_exactly_and_loads_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chosen is the right sum; what it says of held-out pairs is in the records, and of anything in its export."""
    decided = planned(tmp_path, validation_fraction=0.25, checkpoint_steps_between=2, num_kept=9, exports=("model",))
    alone = replace(decided, recipe="reward", preference=None, reference=None, has_value_head=True, num_steps=12)
    expected = trained(alone)
    first, last = steps(expected)[0], steps(expected)[-1]
    assert first.loss == pytest.approx(0.69, abs=0.3)
    assert last.metrics["reward_margin"] > first.metrics["reward_margin"] + 1.0
    held_out = [each for each in expected if isinstance(each, ValidationRecord)]
    assert held_out[-1].metrics["reward_accuracy"] == 1.0
    assert held_out[-1].loss < held_out[0].loss
    for name, place in PLACES.items():
        got = trained(on_two_ranks(alone, **place))
        for one, other in zip(expected, got, strict=True):
            if isinstance(one, (StepRecord, ValidationRecord)) and isinstance(other, (StepRecord, ValidationRecord)):
                # Absolute too: at the end the loss is small, while the rewards that it compares are not.
                assert other.loss == pytest.approx(one.loss, rel=10 * RANKS_FP32_RELATIVE, abs=2e-7), name
                assert other.metrics == pytest.approx(one.metrics, rel=1e-4, abs=1e-5), name
    for whole in (alone, on_two_ranks(alone, backend="fsdp")):
        parts = replace(whole, out=f"{whole.out} parts", resume="must")
        shutil.copytree(whole.out, parts.out)
        for step in (4, 6, 8, 10, 12):
            shutil.rmtree(Path(parts.out) / f"checkpoints/step-{step:08d}")
        (Path(parts.out) / "checkpoints" / POINTER).write_text("step-00000002\n", encoding="utf-8")
        assert trained(parts) == records_of(Path(whole.out))
    exported = Path(alone.out) / "model"
    tokenizer = AutoTokenizer.from_pretrained(exported)
    model = AutoModelForSequenceClassification.from_pretrained(exported).eval()
    # In packs of which none holds all.
    judge = RewardModel(str(exported), tokens_per_call=64)
    packs: list[int] = []
    judge._loaded.model.register_forward_pre_hook(
        lambda module, given, named: packs.append(named["input_ids"].numel()), with_kwargs=True
    )
    assert judge._shares_prompts
    packs.clear()
    answered = [Answered(each["prompt"], each[side], {}, "") for side in ("chosen", "rejected") for each in pairs(8)]
    said = [each.total for each in score([Reward("judge", judge, 1.0)], answered, stops_at_error=True)]
    assert 1 < len(packs) < len(answered)
    # Prompts are two thirds of these tokens, and one stands once for both sides of a pair, where both fit in a pack.
    lengths: list[int] = []
    for each, got in zip(answered, said, strict=True):
        messages = [{"role": "user", "content": each.prompt}, {"role": "assistant", "content": each.completion}]
        ids = tokenizer.apply_chat_template(messages, return_tensors="pt", return_dict=True)["input_ids"]
        assert got == pytest.approx(model(input_ids=ids).logits.item(), abs=LOGPROB_FP32)
        lengths.append(ids.numel())
    assert sum(packs) < 0.8 * sum(lengths)
    with monkeypatch.context() as patch:
        patch.setattr("training.rollout.judge.check_prompts_can_be_shared", refuses)
        other = RewardModel(str(exported), tokens_per_call=64)
        each_its_own = [one.total for one in score([Reward("judge", other, 1.0)], answered, stops_at_error=True)]
        assert not other._shares_prompts
        assert each_its_own == pytest.approx(said, abs=LOGPROB_FP32)
        patch.setattr("training.rollout.judge.check_documents_stay_apart", refuses)
        with pytest.raises(ModelError, match="other logits"):
            asyncio.run(RewardModel(str(exported))("2 + 2?", "4"))
    assert sum(one > other for one, other in zip(said[:8], said[8:], strict=True)) >= 7
    turns = [
        {"role": "assistant", "content": "3"},
        {"role": "user", "content": "no"},
        {"role": "assistant", "content": "4"},
    ]
    whole = [{"role": "user", "content": "2 + 2?"}, *turns]
    ids = tokenizer.apply_chat_template(whole, return_tensors="pt", return_dict=True)["input_ids"]
    got = asyncio.run(judge("2 + 2?", "4", turns=turns, environment=None))
    assert got == pytest.approx(model(input_ids=ids).logits.item(), abs=LOGPROB_FP32), "of an episode all turns"
    with pytest.raises(ModelError, match=r"lacks 1 weights, among them score\.weight"):
        asyncio.run(RewardModel(str(tmp_path / "base"))("2 + 2?", "4"))


def test_a_reward_model_under_an_adapter_learns_alike_everywhere_and_goes_on_exactly(tmp_path: Path) -> None:
    """The head beside it learns too; both are in checkpoints, and each export is read as anybody reads it."""
    decided = planned(tmp_path, lora=LoraConfig(rank=2), checkpoint_steps_between=2, num_kept=9)
    alone = replace(decided, recipe="reward", preference=None, reference=None, has_value_head=True)
    alone = replace(alone, exports=("adapter", "merged"))
    expected = trained(alone)
    assert steps(expected)[-1].metrics["reward_margin"] > steps(expected)[0].metrics["reward_margin"] + 0.5
    for name, place in PLACES.items():
        got = trained(on_two_ranks(alone, **place))
        for one, other in zip(expected, got, strict=True):
            if isinstance(one, (StepRecord, ValidationRecord)) and isinstance(other, (StepRecord, ValidationRecord)):
                assert other.loss == pytest.approx(one.loss, rel=10 * RANKS_FP32_RELATIVE, abs=2e-7), name
    cut = on_two_ranks(alone, backend="fsdp")
    parts = replace(cut, out=f"{cut.out} parts", resume="must", exports=())
    shutil.copytree(cut.out, parts.out)
    for step in (4, 6):
        shutil.rmtree(Path(parts.out) / f"checkpoints/step-{step:08d}")
    (Path(parts.out) / "checkpoints" / POINTER).write_text("step-00000002\n", encoding="utf-8")
    assert trained(parts) == records_of(Path(cut.out))
    answered = [Answered(each["prompt"], each[side], {}, "") for side in ("chosen", "rejected") for each in pairs(8)]
    merged = str(Path(alone.out) / "merged")
    said = [each.total for each in score([Reward("judge", RewardModel(merged), 1.0)], answered, stops_at_error=True)]
    tokenizer = AutoTokenizer.from_pretrained(merged)
    from peft import AutoPeftModelForSequenceClassification  # Not before it was imported without a compiler.

    for out in (alone.out, cut.out):
        model = AutoPeftModelForSequenceClassification.from_pretrained(f"{out}/adapter", num_labels=1).eval()
        for each, verdict in zip(answered, said, strict=True):
            messages = [{"role": "user", "content": each.prompt}, {"role": "assistant", "content": each.completion}]
            ids = tokenizer.apply_chat_template(messages, return_tensors="pt", return_dict=True)["input_ids"]
            assert model(input_ids=ids).logits.item() == pytest.approx(verdict, abs=1e-4)


def test_command_learns_pairs_and_exports_the_model(tmp_path: Path) -> None:
    save_tiny(tmp_path / "base")
    write_jsonl(tmp_path / "pairs.jsonl", [*pairs(12), '{"prompt": "p", "chosen": "c"}'])
    words = ["--model", "base", "--data", "pairs.jsonl", "--out", "out", "--samples-per-step", "4", "--device", "cpu"]
    words += ["--num-epochs", "6", "--learning-rate-peak", "0.01", "--on-bad-sample", "skip", "--loss", "ipo"]
    ran = typed("dpo", *words, where=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert "preference  ipo, beta 0.1; reference: initial" in ran.stdout
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert summary["data"]["files"][0]["samples_skipped"] == {"no rejected": 1}
    assert summary["loss_last"] < summary["loss_first"]
    last = steps(records_of(tmp_path / "out"))[-1]
    assert last.metrics["reward_accuracy"] == 1.0
    assert (tmp_path / "out/model/model.safetensors").is_file()
