from pathlib import Path

from transformers import AutoModelForCausalLM

from training.quickstart.scratch import scratch_data, scratch_task, write_model


def test_the_model_has_the_size_that_is_printed_and_comes_from_the_seed(tmp_path: Path) -> None:
    for name, seed in (("one", 0), ("same", 0), ("other", 1)):
        write_model(tmp_path / name, seed)
    weights = {name: (tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "same", "other")}
    assert weights["one"] == weights["same"] != weights["other"]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "one")
    assert round(sum(each.numel() for each in model.parameters()) / 1e6, 1) == 0.8
    assert "0.8 million" in scratch_task().model_source


def test_no_document_is_on_both_sides() -> None:
    data = scratch_data(0)
    training, held_out = ({each["text"] for each in samples} for samples in (data.training, data.held_out))
    assert not training & held_out
    assert len(training) == len(data.training)
