"""The tokens of read.py as TRL's SFTTrainer makes them: `datasets` reads the file, and two maps render and tokenize."""

import contextlib
import itertools
import tempfile
from pathlib import Path
from typing import Any

from datasets import disable_caching, disable_progress_bars, load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from tests.benchmark.speed.work import (
    NUM_CHATS,
    cost_of,
    place,
    place_chats,
    settle,
    tell,
    tokens_check,
)

IGNORED = -100
"""The label of a token that is not learned."""


def main() -> None:
    """Measures it."""
    settle()
    disable_caching()
    disable_progress_bars()
    with tempfile.TemporaryDirectory() as directory, contextlib.chdir(directory):
        place(Path(), "tiny")
        place_chats(Path())
        config = SFTConfig(
            output_dir="out",
            # Nothing is cut, which would be two maps more.
            max_length=None,
            use_cpu=True,
            bf16=False,
            assistant_only_loss=True,
            report_to="none",
        )
        tokenizer = AutoTokenizer.from_pretrained("base")
        # Made on the few conversations beside them; what it makes of a file is then asked for by itself.
        trainer = SFTTrainer(
            model=AutoModelForCausalLM.from_pretrained("base"),
            processing_class=tokenizer,
            args=config,
            train_dataset=load_dataset("json", data_files="chat.jsonl", split="train", cache_dir="few"),
        )
        # One file is one cache: the second reading would find the first one's.
        runs = itertools.count()

        def work() -> Any:
            data = load_dataset("json", data_files="many.jsonl", split="train", cache_dir=f"cache-{next(runs)}")
            return trainer._prepare_dataset(data, tokenizer, config, False, None, "train")

        cost = cost_of(work)
        check = tokens_check(
            (each["input_ids"], [float(label != IGNORED) for label in each["labels"]]) for each in cost.result
        )
    tell(cost, NUM_CHATS, check, packages=("transformers", "tokenizers", "datasets", "trl"))


if __name__ == "__main__":
    main()
