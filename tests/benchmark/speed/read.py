"""A file of conversations made token ids with weights, as the toolkit does before training."""

import tempfile
from pathlib import Path

from transformers import AutoTokenizer

from tests.benchmark.speed.work import NUM_CHATS, cost_of, place, place_chats, settle, tell, tokens_check
from training.data.example import Example
from training.data.render import render_samples
from training.data.samples import read_samples


def main() -> None:
    """Measures it."""
    settle()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        place(directory, "tiny")
        place_chats(directory)
        tokenizer = AutoTokenizer.from_pretrained(directory / "base")

        def work() -> list[Example]:
            return list(render_samples(tokenizer, read_samples(directory / "many.jsonl").samples).examples)

        cost = cost_of(work)
    check = tokens_check((each.token_ids.tolist(), each.weights.tolist()) for each in cost.result)
    tell(cost, NUM_CHATS, check, packages=("transformers", "tokenizers"))


if __name__ == "__main__":
    main()
