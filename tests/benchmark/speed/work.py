"""What contenders share: models, ragged documents, and how a cost is said.

A contender is a program that is told which way to take. It sets up, does the work once unmeasured, so that caches and
allocators are warm, does it again, and prints one line of JSON: how much work it was, processor seconds of all its
threads, seconds by the clock, the most memory that it held, and a check, a number that all contenders of a case must
agree on. Without that number a contender could be fast by doing something else.
"""

import hashlib
import json
import resource
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from tests.support.chats import chat, write_jsonl
from tests.support.examples import random_examples
from training.data.batch import Batch
from training.data.loader import Loader
from training.models.tiny import tiny_model, tiny_tokenizer

SHAPES: dict[str, dict[str, int]] = {
    "tiny": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 512},
    "5M": {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 6, "vocab_size": 2048},
    "9M, vocabulary of 32k": {
        "hidden_size": 128,
        "intermediate_size": 344,
        "num_hidden_layers": 4,
        "vocab_size": 32768,
    },
    "25M": {"hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 8, "vocab_size": 2048},
}
"""Llamas of 8 heads, of which 4 have keys of their own; numbers are of their weights."""

TOKENS_PER_PACK, SAMPLES_PER_STEP, NUM_STEPS = 1024, 16, 2


def model_of(shape: str, *, initializer_range: float = 0.02) -> PreTrainedModel:
    """A random model with attention per document."""
    heads = {"num_attention_heads": 8, "num_key_value_heads": 4, "initializer_range": initializer_range}
    return tiny_model(**(SHAPES[shape] | heads))


def batches(shape: str) -> list[Batch]:
    """Packed documents, as long as turns of a chat are: log-normal, with a median of 110 tokens and a long tail."""
    lengths = np.random.default_rng(0).lognormal(np.log(110), 0.8, SAMPLES_PER_STEP * NUM_STEPS)
    examples = random_examples(
        [int(each) for each in lengths.clip(8, TOKENS_PER_PACK)], vocabulary_size=SHAPES[shape]["vocab_size"]
    )
    loader = Loader(
        examples, samples_per_step=SAMPLES_PER_STEP, tokens_per_rank_max=TOKENS_PER_PACK, seed=0, shuffle=False
    )
    return [loader.batch(step) for step in range(NUM_STEPS)]


PACK_CAPACITY = 4096


def lengths_to_pack(count: int) -> list[int]:
    """Log-normal, with a median of 320 tokens and a mean of 440."""
    return [int(each) for each in np.random.default_rng(0).lognormal(np.log(320), 0.8, count).clip(8, PACK_CAPACITY)]


def packs_check(packs: list[list[int]]) -> float:
    """The sum of all documents' squared lengths: less if one was cut, lost or emptied.

    Args:
        packs: the lengths of each pack's documents.
    """
    assert max(map(sum, packs)) <= PACK_CAPACITY
    return float(sum(length * length for members in packs for length in members))


NUM_SAMPLES, NUM_EPOCHS = 24, 2
"""Each epoch is one step: its loss does not depend on the order of samples, in which trainers differ. The second loss
comes after an update, so it also says that gradients are the same."""
RATE = 1e-4


NUM_CHATS = 4000
"""Conversations to read."""


def text_of(random: np.random.Generator, median: int) -> str:
    """Letters; how many is log-normal."""
    length = int(np.clip(random.lognormal(np.log(median), 0.8), 4, TOKENS_PER_PACK // 4))
    return "".join(random.choice(list("etaoin shrdlu "), length))


def place_chats(directory: Path) -> None:
    """Writes `many.jsonl`: conversations of one to four turns."""
    random = np.random.default_rng(2)
    chats = []
    for turns in random.integers(1, 5, NUM_CHATS):
        pairs = [chat(text_of(random, 60), text_of(random, 110))["messages"] for _ in range(turns)]
        chats.append({"messages": [message for pair in pairs for message in pair]})
    write_jsonl(directory / "many.jsonl", chats)


def tokens_check(read: Iterable[tuple[Sequence[int], Sequence[float]]]) -> float:
    """A number that another token, or another weight at one, changes: of token ids and weights of each sample."""
    digest = hashlib.sha256()
    for token_ids, weights in read:
        digest.update(np.array(token_ids, dtype=np.int64).tobytes())
        digest.update(np.array(weights, dtype=np.float64).tobytes())
    return float(int.from_bytes(digest.digest()[:6], "big"))


def place(directory: Path, shape: str) -> int:
    """Writes a model to `base`, and ragged conversations to `chat.jsonl` and as pairs to `pairs.jsonl`.

    A token is a byte. Questions have a median of 60, answers one of 110, both with a long tail.

    Returns:
        The tokens of the conversations in all epochs.
    """
    tokenizer = tiny_tokenizer()
    # Without a new line after each turn: trainers differ in whether the last one is part of an answer.
    tokenizer.chat_template = str(tokenizer.chat_template).replace("{{- '\\n' }}\n", "")
    model_of(shape).save_pretrained(directory / "base")
    tokenizer.save_pretrained(directory / "base")
    text = partial(text_of, np.random.default_rng(0))
    chats = [chat(text(60), text(110)) for _ in range(NUM_SAMPLES)]
    write_jsonl(directory / "chat.jsonl", chats)
    pairs = []
    for each in chats:
        question, answer = each["messages"]
        pairs.append({"prompt": [question], "chosen": [answer], "rejected": [{**answer, "content": text(110)}]})
    write_jsonl(directory / "pairs.jsonl", pairs)
    texts = [str(tokenizer.apply_chat_template(each["messages"], tokenize=False)) for each in chats]
    return NUM_EPOCHS * sum(len(tokenizer(each, add_special_tokens=False)["input_ids"]) for each in texts)


def bytes_max() -> int:
    """The most memory that this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@dataclass(frozen=True)
class Cost:
    """What a piece of work cost, and what it came to."""

    result: Any
    cpu_seconds: float
    seconds: float
    bytes: int


def cost_of(work: Callable[[], Any], *, is_warmed: bool = True) -> Cost:
    """Does the work twice and measures the second time, which may go on from the first; or once, if not `is_warmed`."""
    before = bytes_max()
    if is_warmed:
        work()
    cpu, wall = time.process_time(), time.perf_counter()
    result = work()
    return Cost(result, time.process_time() - cpu, time.perf_counter() - wall, bytes_max() - before)


def tell(
    cost: Cost,
    amount: int,
    check: float,
    *,
    packages: tuple[str, ...] = ("torch", "transformers"),
    **also: float,
) -> None:
    """Prints the line.

    Args:
        cost: of the work.
        amount: how much it is, in the case's unit.
        check: what contenders must agree on.
        packages: whose versions the figures depend on.
        also: other figures by name, which the case may have targets for.
    """
    line = {
        "amount": amount,
        "cpu_seconds": cost.cpu_seconds,
        "seconds": cost.seconds,
        "bytes": cost.bytes,
        "check": check,
        "also": also,
        "versions": {name: version(name) for name in packages},
    }
    print(json.dumps(line), flush=True)


def measure(work: Callable[[], float], amount: int, *, packages: tuple[str, ...] = ("torch", "transformers")) -> None:
    """`cost_of` a work that gives its check, and `tell`."""
    cost = cost_of(work)
    tell(cost, amount, cost.result, packages=packages)


def settle() -> None:
    """One thread, so that a processor second is a second of work and not of waiting for another thread."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
