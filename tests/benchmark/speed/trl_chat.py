"""The runs of chat.py by TRL's trainers: the same samples, the same loss, each epoch one step.

For SFT, `padded` is its default, a microbatch of whole conversations; `packed` fills packs as full as the toolkit's,
and what keeps their documents apart there is a mask over the whole pack. For DPO, `padded` asks the reference model in
each step, and `precomputed` before the first, as the toolkit does.
"""

import argparse
import contextlib
import tempfile
from pathlib import Path
from typing import Any

from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from tests.benchmark.speed.work import NUM_EPOCHS, NUM_SAMPLES, RATE, SHAPES, TOKENS_PER_PACK, measure, place, settle

PER_DEVICE = {"sft": 8, "dpo": 4}
"""Samples of one padded microbatch: about as many tokens as a pack has."""

WAYS = {"sft": ("padded", "packed"), "dpo": ("padded", "precomputed")}


def trainer_of(recipe: str, way: str) -> Any:
    """Made anew, with the data read and the model loaded."""
    per_device = 1 if way == "packed" else PER_DEVICE[recipe]
    common: dict[str, Any] = {
        "output_dir": "out",
        "per_device_train_batch_size": per_device,
        "gradient_accumulation_steps": NUM_SAMPLES // per_device,
        "num_train_epochs": NUM_EPOCHS,
        "learning_rate": RATE,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "optim": "adamw_torch_fused",
        "max_length": TOKENS_PER_PACK,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "dataloader_pin_memory": False,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }
    parts: dict[str, Any] = {
        "model": AutoModelForCausalLM.from_pretrained("base"),
        "processing_class": AutoTokenizer.from_pretrained("base"),
    }

    def data(file: str) -> Any:
        return load_dataset("json", data_files=file, split="train", keep_in_memory=True)

    if recipe == "dpo":
        return DPOTrainer(
            args=DPOConfig(**common, precompute_ref_log_probs=way == "precomputed"),
            train_dataset=data("pairs.jsonl"),
            **parts,
        )
    args = SFTConfig(**common, packing=way == "packed", assistant_only_loss=True)
    trainer = SFTTrainer(args=args, train_dataset=data("chat.jsonl"), **parts)
    if way == "packed":
        trainer.args.gradient_accumulation_steps = len(trainer.train_dataset)
    return trainer


def main() -> None:
    """Measures one way of one recipe at one shape."""
    parser = argparse.ArgumentParser()
    parser.add_argument("recipe", choices=WAYS)
    parser.add_argument("way")
    parser.add_argument("--shape", choices=SHAPES, required=True)
    arguments = parser.parse_args()
    if arguments.way not in WAYS[arguments.recipe]:
        parser.error(f"way: got {arguments.way}; expected one of {', '.join(WAYS[arguments.recipe])}")
    settle()
    with tempfile.TemporaryDirectory() as directory, contextlib.chdir(directory):
        num_tokens = place(Path(), arguments.shape)

        def run() -> float:
            trainer = trainer_of(arguments.recipe, arguments.way)
            trainer.train()
            losses = [each["loss"] for each in trainer.state.log_history if "loss" in each]
            assert len(losses) == NUM_EPOCHS, losses
            return float(losses[-1])

        amount = num_tokens if arguments.recipe == "sft" else NUM_SAMPLES * NUM_EPOCHS
        measure(run, amount, packages=("torch", "transformers", "trl"))


if __name__ == "__main__":
    main()
