"""The run of rewarded.py by TRL's GRPOTrainer, which draws with `generate`."""

import argparse
import contextlib
import tempfile
from pathlib import Path
from typing import Any

import torch
from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

from tests.benchmark.speed.parts import Parts
from tests.benchmark.speed.prompts import (
    GROUP_SIZE,
    NUM_PROMPTS,
    NUM_STEPS,
    TOKENS_MAX,
    of_text,
    order,
    place_prompts,
    uniforms,
)
from tests.benchmark.speed.work import RATE, SHAPES, cost_of, settle, tell

PER_DEVICE = 16
"""Completions of one padded microbatch: a few more tokens than a pack has."""


class Drawing:
    """Stands for `torch.multinomial`, by which `generate` draws, and takes the numbers of the rollout."""

    def __init__(self) -> None:
        """Is before the first rollout."""
        self.rollout = -1

    def begin(self) -> None:
        """The next rollout's first tokens are next."""
        self.rollout += 1
        self.numbers_BS = uniforms(self.rollout)
        self.at = 0

    def __call__(self, probabilities_BV: torch.Tensor, num_samples: int) -> torch.Tensor:
        """token_B1: the first v up to which the sum is more than the row's number."""
        assert num_samples == 1
        sums_BV = probabilities_BV.double().cumsum(-1)
        number_B1 = self.numbers_BS[:, self.at, None]
        self.at += 1
        drawn_B1 = torch.searchsorted(sums_BV, number_B1 * sums_BV[:, -1:], right=True)
        return drawn_B1.clamp(max=probabilities_BV.shape[1] - 1)


def rewards(completions: list[list[dict[str, str]]], **others: Any) -> list[float]:
    """The reward as TRL asks for it."""
    return [of_text(messages[-1]["content"]) for messages in completions]


def trainer_of() -> Any:
    """Made anew, with the prompts read and the model loaded."""
    config = GRPOConfig(
        output_dir="out",
        per_device_train_batch_size=PER_DEVICE,
        gradient_accumulation_steps=NUM_PROMPTS * GROUP_SIZE // PER_DEVICE,
        num_generations=GROUP_SIZE,
        max_completion_length=TOKENS_MAX,
        shuffle_dataset=False,
        max_steps=NUM_STEPS,
        learning_rate=RATE,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        optim="adamw_torch_fused",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        dataloader_pin_memory=False,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    data = load_dataset("json", data_files="prompts.jsonl", split="train", keep_in_memory=True)
    return GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained("base"),
        processing_class=AutoTokenizer.from_pretrained("base"),
        reward_funcs=rewards,
        args=config,
        train_dataset=data.select(order()),
    )


def main() -> None:
    """Measures it at one shape."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--shape", choices=SHAPES, required=True)
    arguments = parser.parse_args()
    settle()
    parts = Parts()
    generate = GRPOTrainer._generate_single_turn

    def generated(trainer: Any, *words: Any, **named: Any) -> Any:
        drawing.begin()
        return generate(trainer, *words, **named)

    GRPOTrainer._generate_single_turn = generated
    parts.charge("generation", GRPOTrainer, "_generate_single_turn")
    parts.charge("update", GRPOTrainer, "train")
    with tempfile.TemporaryDirectory() as directory, contextlib.chdir(directory):
        place_prompts(Path(), arguments.shape)

        def run() -> list[dict[str, float]]:
            global drawing
            drawing = Drawing()
            torch.multinomial = drawing  # type: ignore[assignment]  # it does what `generate` asks of it
            parts.seconds.clear()
            trainer = trainer_of()
            trainer.train()
            return [each for each in trainer.state.log_history if "grad_norm" in each]

        cost = cost_of(run)
    num_samples = NUM_STEPS * NUM_PROMPTS * GROUP_SIZE
    assert len(cost.result) == NUM_STEPS, cost.result
    num_drawn = sum(each["completions/mean_length"] * NUM_PROMPTS * GROUP_SIZE for each in cost.result)
    tell(
        cost,
        num_samples,
        float(cost.result[-1]["grad_norm"]),
        packages=("torch", "transformers", "trl"),
        tokens_drawn_per_second=num_drawn / parts.seconds["generation"],
        samples_updated_per_second=num_samples / parts.seconds["update"],
    )


if __name__ == "__main__":
    main()
