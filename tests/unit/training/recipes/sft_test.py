"""The recipe reads everything the plan decides, counts everything the data loses, and leaves what it says it leaves."""

import ast
import inspect
import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.support.chats import chat, sums, write_jsonl
from training import reading, reference, run
from training.config import DataConfig, LoraConfig, ModelConfig, Precision, RunConfig, SftConfig
from training.errors import CheckpointError, DataError, ModelError
from training.metrics.records import StepRecord, ValidationRecord, read_records
from training.metrics.summary import FileSummary
from training.models.tiny import save_tiny, tiny_tokenizer
from training.plan import Machine, Plan, plan
from training.recipes import dpo, grpo, kto, reward, sft, train
from training.recipes.sft import SftRecipe
from training.schedule import Schedule


def planned(directory: Path, lines: list[Any], **changed: Any) -> Plan:
    """A plan for a tiny model and the given lines, in which the test changes what it is about."""
    model = directory / "base"
    if not model.exists():
        save_tiny(model)
    data = write_jsonl(directory / "chat.jsonl", lines)
    answer = plan(
        SftConfig(ModelConfig(str(model)), DataConfig(str(data)), RunConfig(str(directory / "out"), device="cpu")),
        Machine(num_threads=1),
    )
    assert isinstance(answer, Plan)
    small: dict[str, Any] = {
        "samples_per_step": 4,
        "tokens_per_rank_max": 100,
        "tokens_per_sample_max": 100,
        "schedule": Schedule("constant", 1e-2, 0.0, 0.2, 0.0),
        "exports": (),
    }
    return replace(answer, **small | changed)


def test_every_field_of_the_plan_is_read_by_the_recipe() -> None:
    read = {
        node.attr
        for module in (run, reading, reference, sft, reward, dpo, grpo, kto)
        for node in ast.walk(ast.parse(inspect.getsource(module)))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "plan"
    }
    # Fields that the text of the plan alone shows would be settings that are accepted and ignored.
    assert {field.name for field in fields(Plan)} - {"recipe"} <= read, "the recipe is looked up by its name"


def test_every_field_of_the_schedule_is_read_by_its_rate() -> None:
    base = Schedule("wsd", 1.0, 0.2, 0.3, 0.1)
    before = [base.learning_rate(step, 20) for step in range(20)]
    others: dict[str, Any] = {
        "shape": "linear",
        "peak": 2.0,
        "warmup_fraction": 0.4,
        "decay_fraction": 0.1,
        "floor_fraction": 0.5,
    }
    for field in fields(Schedule):
        changed = replace(base, **{field.name: others[field.name]})
        assert [changed.learning_rate(step, 20) for step in range(20)] != before, field.name


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_model_that_mixes_documents_is_refused_before_the_first_step(tmp_path: Path, precision: Precision) -> None:
    """It makes positions of its own, of the whole pack."""
    save_tiny(tmp_path / "base", "bloom")  # type: ignore[arg-type]  # any model type works
    with pytest.raises(ModelError, match="lets a packed document see the one before it"):
        train(planned(tmp_path, sums(8), attention="eager", precision=precision))
    assert not (tmp_path / "out" / "metrics.jsonl").exists()


def test_run_leaves_its_files_and_learns(tmp_path: Path) -> None:
    made = planned(tmp_path, sums(16), num_epochs=4, validation_fraction=0.2, exports=("model",))
    summary = train(made)
    out = tmp_path / "out"
    assert (out / "plan.txt").read_text() == made.describe() + "\n"
    assert (summary.data.num_training, summary.data.num_validation) == (13, 3)
    assert summary.num_steps == summary.num_steps_planned == 4 * 4
    assert summary.loss_last is not None
    assert summary.loss_first is not None
    assert summary.loss_last < summary.loss_first
    assert summary.validation_loss_last is not None
    assert summary.validation_loss_first is not None
    assert summary.validation_loss_last < summary.validation_loss_first
    assert summary.exports == {"model": str(out / "model")}
    assert json.loads((out / "summary.json").read_text())["num_steps"] == 16
    steps = [record for record in read_records(out / "metrics.jsonl") if isinstance(record, StepRecord)]
    assert [record.epoch for record in steps] == [epoch for epoch in range(4) for _ in range(4)]
    assert {each.name for each in (out / "checkpoints").iterdir()} == {"latest", "step-00000016"}


def test_a_finished_run_given_again_takes_no_step_and_exports_again(tmp_path: Path) -> None:
    made = planned(tmp_path, sums(4), exports=("model",))
    first = train(made)
    weights = (tmp_path / "out" / "model" / "model.safetensors").read_bytes()
    again = train(made)
    assert again == first
    assert (tmp_path / "out" / "model" / "model.safetensors").read_bytes() == weights


def test_a_run_whose_patience_ends_is_finished_exported_and_stays_so(tmp_path: Path) -> None:
    often: dict[str, Any] = {"checkpoint_steps_between": 2, "validation_steps_between": 2, "validation_fraction": 0.2}
    made = planned(tmp_path, sums(16), num_epochs=4, exports=("model",), num_best_kept=1, **often)
    # Nothing is better than the loss before the first step by so much.
    impatient = replace(made, patience=2, improvement_min=100.0)
    summary = train(impatient)
    assert (summary.stopped_by, summary.is_finished) == ("patience", True)
    assert (summary.num_steps, summary.num_steps_planned) == (4, 16)
    # As it is then, and not as it was when it was best: that one is among the checkpoints.
    exported = load_file(tmp_path / "out/model/model.safetensors")
    best, last = (load_file(tmp_path / f"out/checkpoints/step-{step:08d}/parameters.safetensors") for step in (2, 4))
    assert all(torch.equal(value, last[name]) for name, value in exported.items())
    assert not all(torch.equal(value, best[name]) for name, value in exported.items())
    assert train(impatient) == summary
    losses = {
        each.step: each.loss
        for each in read_records(tmp_path / "out/metrics.jsonl")
        if isinstance(each, ValidationRecord)
    }
    for step in (2, 4):
        manifest = json.loads((tmp_path / f"out/checkpoints/step-{step:08d}/manifest.json").read_text())
        assert manifest["validation_loss"] == losses[step]
    # With more patience it goes on from there.
    assert train(made).num_steps == 16


def test_number_of_steps_may_end_within_an_epoch(tmp_path: Path) -> None:
    summary = train(planned(tmp_path, sums(10), num_epochs=None, num_steps=5))
    assert (summary.num_steps, summary.num_steps_planned) == (5, 5)


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=2, dropout=0.5)], ids=["full", "lora"])
def test_activation_checkpointing_changes_memory_and_nothing_else(tmp_path: Path, lora: LoraConfig | None) -> None:
    losses = []
    for checkpointing in (False, True):
        made = planned(tmp_path, sums(8), lora=lora, activation_checkpointing=checkpointing, num_epochs=2)
        train(replace(made, out=str(tmp_path / f"out-{checkpointing}")))
        records = read_records(tmp_path / f"out-{checkpointing}" / "metrics.jsonl")
        losses.append([(each.loss, each.gradient_norm) for each in records if isinstance(each, StepRecord)])
    assert losses[0] == losses[1]
    assert losses[0][-1] != losses[0][0]


def test_seed_and_nothing_else_draws_the_order_and_the_adapter(tmp_path: Path) -> None:
    def losses(name: str, seed: int) -> list[float]:
        made = planned(tmp_path, sums(8), lora=LoraConfig(rank=2, dropout=0.1), seed=seed, out=str(tmp_path / name))
        train(made)
        records = read_records(tmp_path / name / "metrics.jsonl")
        return [record.loss for record in records if isinstance(record, StepRecord)]

    torch.manual_seed(5)
    first = losses("one", 1)
    torch.manual_seed(6)
    assert losses("two", 1) == first
    assert losses("three", 2) != first


def test_another_run_in_the_same_place_is_refused_by_what_differs(tmp_path: Path) -> None:
    made = planned(tmp_path, sums(8), lora=LoraConfig(rank=2))
    train(made)
    for changed, name in [
        (replace(made, seed=3), "plan.seed"),
        (replace(made, num_epochs=3), "number of steps"),
        (planned(tmp_path, [*sums(7), chat("7 + 2?", "8")], lora=LoraConfig(rank=2)), "training examples"),
    ]:
        with pytest.raises(CheckpointError, match=f"step-00000002 \\({name}\\): "):
            train(changed)
    planned(tmp_path, sums(8))
    save_tiny(tmp_path / "base", seed=1)
    with pytest.raises(CheckpointError, match=r"step-00000002 \(frozen weights\): "):
        train(made)


def test_every_sample_is_in_one_count(tmp_path: Path) -> None:
    lines = [
        *sums(3),
        chat("x", "y" * 200),
        {"messages": [{"role": "bot", "content": "?"}]},
        "not json",
        chat("a", "b", source="somewhere"),
    ]
    made = planned(tmp_path, lines, on_bad_sample="skip", on_long_sample="skip")
    about = reading.read_data(made, SftRecipe(), tiny_tokenizer()).summary.files[0]
    assert isinstance(about, FileSummary)
    assert about.num_samples_read == 7
    assert about.num_examples == 4
    assert about.samples_skipped["too long"] == 1
    assert sum(about.samples_skipped.values()) == 3
    assert about.num_samples_read == about.num_examples + sum(about.samples_skipped.values())
    assert about.first_skipped is not None
    assert "chat.jsonl:5" in about.first_skipped
    assert about.keys_ignored == {"source": 1}
    truncated = reading.read_data(
        replace(made, on_long_sample="truncate"), SftRecipe(), tiny_tokenizer()
    ).summary.files[0]
    assert (truncated.num_truncated, truncated.num_examples) == (1, 5)


def test_validation_file_is_read_and_counted_by_itself(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "validation.jsonl", sums(3))
    data = reading.read_data(planned(tmp_path, sums(5), validation_path=str(path)), SftRecipe(), tiny_tokenizer())
    assert (len(data.training), len(data.validation)) == (5, 3)
    assert [each.path for each in data.summary.files] == [str(tmp_path / "chat.jsonl"), str(path)]
    assert data.summary.num_tokens == sum(len(each) for each in data.training)


def test_held_out_samples_follow_the_seed_and_are_never_trained_on(tmp_path: Path) -> None:
    made = planned(tmp_path, [chat(f"question {n}", "answer") for n in range(20)], validation_fraction=0.25)
    data = reading.read_data(made, SftRecipe(), tiny_tokenizer())
    held_out = {each.where for each in data.validation}
    assert len(held_out) == 5
    assert held_out.isdisjoint({each.where for each in data.training})
    assert len(data.training) == 15
    assert {each.where for each in reading.read_data(made, SftRecipe(), tiny_tokenizer()).validation} == held_out
    assert {
        each.where for each in reading.read_data(replace(made, seed=1), SftRecipe(), tiny_tokenizer()).validation
    } != held_out


def test_holding_out_everything_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError) as refused:
        reading.read_data(planned(tmp_path, sums(1), validation_fraction=0.5), SftRecipe(), tiny_tokenizer())
    assert str(refused.value) == (
        "data.validation_fraction: 0.5 of 1 examples leaves none to train on; expected at least one on each side. "
        "hint: give more data, a smaller share, or --validation-path"
    )


def test_plain_text_is_trained_on_in_blocks(tmp_path: Path) -> None:
    made = planned(tmp_path, [{"text": "abc " * 30}, {"text": "def " * 5}], data_kind="text", tokens_per_sample_max=50)
    summary = train(made)
    assert summary.data.files[0].num_samples_read == 2
    assert summary.data.num_training == 3
    assert summary.num_steps == 1
