"""The quickstart for a machine that can fetch nothing more: a tiny Llama reads the standard library's documentation.

Random weights, a byte-level tokenizer, text that every Python has. In two minutes it gets from noise to spelling and
the turns of phrase of a manual; it does not get to sense.
"""

from pathlib import Path

from training.models.tiny import tiny_model, tiny_tokenizer
from training.quickstart.library import read_modules, split
from training.quickstart.task import Data, Goal, Prompt, Task

PROMPTS = ("Return the ", "Raise an ", "This function ", "If the file ")
"""Beginnings to be continued. Every manual has them, so these are not held out; what follows is the model's own."""

NUM_ASKED_HELD_OUT = 64
"""Beginnings on which the reward of the second act is told."""

NUM_CHARACTERS_TRAINING_MAX = 1_500_000
NUM_CHARACTERS_HELD_OUT_MIN = 40_000
TOKENS_PER_BLOCK = 256


def scratch_task() -> Task:
    """The task. Needs no package beyond those that training itself needs."""
    return Task(
        name="from-scratch",
        title="A tiny Llama learns to write documentation",
        model_source="a Llama of 0.8 million random weights over bytes",
        make_model=write_model,
        make_data=scratch_data,
        settings=(
            *("--kind", "text", "--tokens-per-sample-max", str(TOKENS_PER_BLOCK)),
            *("--samples-per-step", "4", "--tokens-per-rank-max", "1024"),
            *("--learning-rate-peak", "4e-3", "--weight-decay", "0.1", "--warmup-fraction", "0.05"),
        ),
        trained="model",
        is_chat=False,
        num_new_tokens_max=70,
        held_out_are="docstrings",
        loss_unit="nats per byte",
        goal=Goal(
            title="Then it is rewarded for lines that end with a full stop",
            pattern=r"[a-z ]{12,60}\.",
            wanted="one line of 12 to 60 small letters and spaces, and a full stop at its end",
            prompts_are="beginnings",
            settings=(
                *("--kind", "text", "--samples-per-step", "32", "--group-size", "8", "--tokens-per-rank-max", "4096"),
                *("--learning-rate-peak", "1e-3", "--shape", "constant"),
            ),
            num_new_tokens_max=72,
        ),
    )


def write_model(directory: Path, seed: int) -> None:
    """Writes a random model and its tokenizer into a directory, made if absent."""
    model = tiny_model(
        "llama",
        seed=seed,
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.02,
    )
    model.save_pretrained(directory)
    tiny_tokenizer("none").save_pretrained(directory)


def scratch_data(seed: int) -> Data:
    """Documentation to train on and to hold out, module by module."""
    training, held_out = split(
        read_modules(),
        seed=seed,
        num_training_max=NUM_CHARACTERS_TRAINING_MAX,
        num_held_out_min=NUM_CHARACTERS_HELD_OUT_MIN,
    )
    return Data(
        training=[{"text": text} for text in training],
        held_out=[{"text": text} for text in held_out],
        prompts=[Prompt(text) for text in PROMPTS],
        source="docstrings of this Python's standard library",
        asked=(asked := beginnings(training)),
        asked_held_out=[each for each in beginnings(held_out) if each not in set(asked)][:NUM_ASKED_HELD_OUT],
    )


def beginnings(documents: list[str]) -> list[str]:
    """The first two words of each document that begins with a sentence, each pair once, in their order."""
    words = (document.split()[:2] for document in documents)
    return list(dict.fromkeys(f"{one} {two} " for one, two in words if one.isalpha() and two.isalpha()))
