"""The loss of a vocabulary of 128 thousand tokens with its gradient: all scores at once, and in chunks."""

import argparse
from functools import partial

import torch

from tests.benchmark.speed.work import measure, settle
from tests.support.examples import random_examples
from training.algorithms.sft import Sft
from training.data.batch import microbatch
from training.models.forward import logprobs
from training.models.head import chunked_head
from training.models.tiny import tiny_model

VOCABULARY, CHUNK_TOKENS, LENGTHS = 131_072, 64, (1400, 1800, 896)


def main() -> None:
    """Measures one way."""
    parser = argparse.ArgumentParser()
    parser.add_argument("way", choices=("whole", "chunks"))
    way = parser.parse_args().way
    settle()
    # All that the model does beside its head is small.
    model = tiny_model(vocab_size=VOCABULARY, hidden_size=256, num_hidden_layers=1, initializer_range=0.02)
    pack = microbatch(random_examples(LENGTHS, vocabulary_size=VOCABULARY))
    head = chunked_head(model, CHUNK_TOKENS, "tiny") if way == "chunks" else None
    # Gradients are there before, as from the second microbatch of a step on: their memory is no part of the loss's.
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)

    def loss() -> float:
        total, _ = Sft().loss_sum(partial(logprobs, model, head=head), pack)
        total.backward()  # type: ignore[no-untyped-call]  # torch gives it no types
        return total.item()

    measure(loss, pack.num_tokens)


if __name__ == "__main__":
    main()
