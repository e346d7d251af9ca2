"""Optimizer steps of SFT on the same packs: the toolkit's, and a bare loop that does as little as can be done.

The bare loop has the best attention known, per document, and runs the head only where a token counts. What it leaves
out is what the toolkit adds: sums over ranks, a check for numbers that are not finite, records. So it is the limit.
"""

import argparse

import torch
from torch import nn

from tests.benchmark.speed.work import RATE, SHAPES, batches, measure, model_of, settle
from training.algorithms.sft import Sft
from training.data.batch import Batch
from training.models.attention import DocumentStarts
from training.optimizer import adamw
from training.parallel.single import Single
from training.step import train_step

NORM_MAX = 1.0


def toolkit(model: nn.Module, optimizer: torch.optim.Optimizer, steps: list[Batch]) -> float:
    """The loss of the last step."""
    backend = Single("cpu", "fp32")
    for batch in steps:
        record = train_step(
            batch,
            model=model,
            algorithm=Sft(),
            optimizer=optimizer,
            backend=backend,
            learning_rate=RATE,
            gradient_norm_max=NORM_MAX,
        )
    return record.loss


def bare(model: nn.Module, optimizer: torch.optim.Optimizer, steps: list[Batch]) -> float:
    """The loss of the last step."""
    for group in optimizer.param_groups:
        group["lr"] = RATE
    for batch in steps:
        optimizer.zero_grad(set_to_none=True)
        loss = 0.0
        for each in batch.microbatches:
            next_K = each.weights_T[1:].nonzero().squeeze(1) + 1
            logits_KV = model(
                input_ids=each.token_ids_T[None],
                position_ids=each.positions_T[None],
                attention_mask=None,
                use_cache=False,
                logits_to_keep=next_K - 1,
                document_starts=DocumentStarts(each.document_starts_D1.tolist()),
            ).logits[0]
            surprise_K = nn.functional.cross_entropy(logits_KV, each.token_ids_T[next_K], reduction="none")
            part = torch.dot(surprise_K, each.weights_T[next_K]) / batch.weight_sum
            part.backward()  # type: ignore[no-untyped-call]  # torch gives it no types
            loss += part.item()
        nn.utils.clip_grad_norm_(model.parameters(), NORM_MAX)
        optimizer.step()
    return loss


def main() -> None:
    """Measures one way at one shape."""
    parser = argparse.ArgumentParser()
    parser.add_argument("way", choices=("toolkit", "bare"))
    parser.add_argument("--shape", choices=SHAPES, required=True)
    arguments = parser.parse_args()
    settle()
    model, steps = model_of(arguments.shape), batches(arguments.shape)
    optimizer = adamw(model, weight_decay=0.0, betas=(0.9, 0.999), epsilon=1e-8, fused=True)
    take = {"toolkit": toolkit, "bare": bare}[arguments.way]
    measure(lambda: take(model, optimizer, steps), sum(batch.num_tokens for batch in steps))


if __name__ == "__main__":
    main()
