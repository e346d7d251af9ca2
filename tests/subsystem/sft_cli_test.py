"""The command as a person types it, on their own file, to a model that transformers loads."""

import json
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.subsystem.processes import Started, command, environment, records_of, typed
from tests.support.chats import TWO_TURNS, WITH_TOOL, sums, write_jsonl
from training.errors import EXIT_INTERRUPTED, SampleError
from training.metrics.records import StepRecord
from training.models.tiny import save_tiny

WORDS = ["sft", "--model", "base", "--data", "chat.jsonl", "--out", "out", "--device", "cpu", "--num-threads", "1"]


BAD = {"messages": [{"role": "bot", "content": "?"}]}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory with a model and conversations, as a person would have it."""
    save_tiny(tmp_path / "base")
    write_jsonl(tmp_path / "chat.jsonl", [*sums(14), TWO_TURNS, WITH_TOOL])
    return tmp_path


@torch.no_grad()
def logits(model: Any, ids_1T: Tensor) -> Tensor:
    """As a user asks for them: transformers' own attention, no positions."""
    result: Tensor = model.eval()(input_ids=ids_1T).logits
    return result


def test_full_fine_tuning_end_to_end(place: Path) -> None:
    words = [*WORDS, "--num-epochs", "3", "--learning-rate-peak=1e-2", "--validation-fraction", "0.2"]
    ran = subprocess.run(command(*words), cwd=place, env=environment(), capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    steps = [record for record in records_of(place / "out") if isinstance(record, StepRecord)]
    assert len(steps) == 3
    assert f"step 3/3  loss {steps[-1].loss:.4f}  gradient norm" in ran.stdout
    assert "tokens/s" in ran.stdout
    assert "16 samples read, skipped: none, truncated: 0" in ran.stdout
    assert ran.stdout.count("; learned is what stands between ⟦ and ⟧:\n") == 1
    assert re.search(r"\n            <\|begin\|><\|turn\|>user⏎(\d) \+ \d\?<\|end\|>⏎.*⟦\d+<\|end\|>⟧⏎\n", ran.stdout)
    assert "WARNING" not in ran.stdout, "what libraries have to say is not between our lines"
    summary = json.loads((place / "out" / "summary.json").read_text())
    assert summary["validation_loss_last"] < summary["validation_loss_first"]
    assert summary["exports"] == {"model": "out/model"}

    tokenizer: Any = AutoTokenizer.from_pretrained(place / "out/model")
    ids_1T = tokenizer.apply_chat_template(sums(2)[1]["messages"], return_tensors="pt", return_dict=True)["input_ids"]
    tuned = logits(AutoModelForCausalLM.from_pretrained(place / "out/model"), ids_1T)
    base = logits(AutoModelForCausalLM.from_pretrained(place / "base"), ids_1T)
    assert (tuned - base).abs().max() > 0.1, "training moved it"

    # The logits of the exported directory are those of the trained weights, which the checkpoint has.
    trained: Any = AutoModelForCausalLM.from_pretrained(place / "base")
    trained.load_state_dict(load_file(place / "out/checkpoints/step-00000003/parameters.safetensors"))
    assert torch.equal(tuned, logits(trained, ids_1T))


def test_lora_end_to_end_leaves_an_adapter_and_a_merged_model_that_agree(place: Path) -> None:
    words = ["--lora", "--rank", "4", "--num-steps", "3", "--learning-rate-peak=1e-2", "--precision", "bf16"]
    with (place / "chat.jsonl").open("a") as file:
        file.write(f"{json.dumps(BAD)}\n")
    ran = typed(*WORDS, *words, "--on-bad-sample=skip", where=place)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "17 samples read, skipped: 1 unknown role" in ran.stdout
    ids_1T = torch.tensor([[5, 6, 7, 8, 9, 10]])
    base: Any = AutoModelForCausalLM.from_pretrained(place / "base")
    before = logits(base, ids_1T)
    adapted = logits(PeftModel.from_pretrained(base, str(place / "out/adapter")), ids_1T)
    merged = logits(AutoModelForCausalLM.from_pretrained(place / "out/merged"), ids_1T)
    assert (adapted - before).abs().max() > 0.05, "training moved it"
    torch.testing.assert_close(merged, adapted, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("number", "lora"), [(signal.SIGINT, []), (signal.SIGTERM, ["--lora", "--rank", "4"]), (signal.SIGUSR1, [])]
)
def test_signal_saves_and_the_printed_command_goes_on_from_there(
    place: Path, number: signal.Signals, lora: list[str]
) -> None:
    words = [*WORDS, "--num-steps", "4000", "--samples-per-step", "2", "--export", "none", "--shape", "constant", *lora]
    process = Started(*words, where=place)
    said: list[str] = []
    for line in process.stdout:
        said.append(line)
        # Once: the line that says that step 3 is saved begins like this, too, and a second Ctrl-C stops at once.
        if line.startswith("step 3/") and "loss" in line:
            process.send_signal(number)
    ran = process.ended()
    assert ran.returncode == EXIT_INTERRUPTED, ran.stderr
    assert f"{number.name}: finishing this step, then saving." in ran.stderr
    stopped = max(record.step for record in records_of(place / "out"))
    assert 3 <= stopped < 4000
    assert f"stopped by {number.name}; {stopped} of 4000 steps are saved. To go on:\n" in "".join(said)
    saved = load_file(place / f"out/checkpoints/step-{stopped:08d}/parameters.safetensors")
    assert saved
    assert all(("lora_" in name) == bool(lora) for name in saved), "what is trained, and nothing else"

    printed = shlex.split(said[-1])
    assert printed[:3] == ["python", "-m", "training"]
    again = typed(*printed[3:], "--steps-this-session-max", "2", where=place)
    assert again.returncode == EXIT_INTERRUPTED, again.stderr
    assert f"start       after step-{stopped:08d}" in again.stdout
    assert [record.step for record in records_of(place / "out")] == list(range(1, stopped + 3))


def test_bad_sample_stops_with_its_line(place: Path) -> None:
    write_jsonl(place / "chat.jsonl", [*sums(5), BAD])
    ran = typed(*WORDS, where=place)
    assert ran.returncode == SampleError.exit_code
    assert ran.stderr.splitlines()[-1].startswith(
        "error: chat.jsonl:6: message 1 has role 'bot'; expected system, user"
    )
    assert "Traceback" not in ran.stderr


def test_help_and_refusal_are_answered_without_importing_torch(place: Path) -> None:
    code = "import sys; sys.modules['torch'] = None; from training.cli import main; sys.exit(main(sys.argv[1:]))"
    for words, expected in ((["sft", "--help"], 0), ([*WORDS, "--samples-per-step=0"], 2)):
        ran = subprocess.run(
            [sys.executable, "-c", code, *words],
            cwd=place,
            env=environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        assert ran.returncode == expected, ran.stderr
