"""TRL's losses and gradients of pairs and labels are ours; where it means to differ, by exactly its formula.

Shapes: B sequences of TRL's batch, T their tokens, P pairs, S samples.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.nn.functional import logsigmoid
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

from tests.benchmark.peers.asking import (
    LOSS,
    PAD,
    Learned,
    Side,
    assert_same,
    moved,
    ours,
    padded,
    settings,
    taken,
    theirs_of,
)
from tests.support.examples import example
from training.algorithms.kto import DESIRABLE, Kto
from training.algorithms.preference import REFERENCE, Preference, document_logprobs
from training.config import KtoSettings, PreferenceConfig
from training.data.batch import microbatch
from training.data.example import Example
from training.data.pairs import joined, pair_example, read_pairs
from training.data.render import render_each
from training.models.forward import logprobs
from training.models.tiny import tiny_tokenizer

# Pairs and labels: a prompt, and completions of it.


def sides(num: int, *, prompt_tokens: int | None = None) -> list[tuple[Side, Side]]:
    """Pairs of a prompt with two completions, of lengths that differ."""
    random = np.random.default_rng(5)

    def drawn(low: int, high: int) -> list[int]:
        return random.integers(0, 256, size=random.integers(low, high)).tolist()

    made = []
    for _ in range(num):
        prompt = drawn(prompt_tokens or 2, (prompt_tokens or 6) + 1)
        made.append(((prompt, drawn(3, 10)), (prompt, drawn(3, 10))))
    return made


def pair_of(pair: tuple[Side, Side]) -> Example:
    return joined(*(example(p + c, [0.0] * len(p) + [1.0] * len(c)) for p, c in pair))


def with_reference(examples: Sequence[Example], reference: nn.Module) -> list[Example]:
    """The examples with the column that the reference fills."""
    with torch.no_grad():
        sums = [document_logprobs(partial(logprobs, reference), microbatch([each]))[0] for each in examples]
    return [
        replace(each, columns={**each.columns, REFERENCE: sum_2.numpy()})
        for each, sum_2 in zip(examples, sums, strict=True)
    ]


def model_inputs(rows: Sequence[Side], prefix: str = "") -> dict[str, Tensor]:
    """TRL's padded batch of prompts with completions."""
    return {
        f"{prefix}input_ids": padded([p + c for p, c in rows], PAD),
        f"{prefix}attention_mask": padded([[1] * len(p + c) for p, c in rows], 0),
        f"{prefix}completion_mask": padded([[0] * len(p) + [1] * len(c) for p, c in rows], 0),
    }


WORDS = Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}] * 4)
"""Something that a trainer can be made with; what it is asked for is another batch."""

DPO: dict[str, tuple[PreferenceConfig, dict[str, Any]]] = {
    "sigmoid": (PreferenceConfig("sigmoid", beta=0.3, label_smoothing=0.0), {}),
    "ipo": (PreferenceConfig("ipo", beta=0.3, length_normalized=True), {}),
    "hinge": (PreferenceConfig("hinge", beta=0.3), {}),
    "robust": (PreferenceConfig("robust", beta=0.3, label_smoothing=0.2), {"label_smoothing": 0.2}),
    "apo_zero": (PreferenceConfig("apo_zero", beta=0.3), {}),
    "sigmoid_norm": (PreferenceConfig("sigmoid", beta=0.3, label_smoothing=0.0, length_normalized=True), {}),
}
"""By TRL's name: our settings, and what its config needs besides."""


def dpo_by_trl(loss: str, rows: Sequence[tuple[Side, Side]], base: Path, out: Path) -> Learned:
    trainer: Any = DPOTrainer(
        model=theirs_of(base, 1),
        ref_model=theirs_of(base, 0),
        args=DPOConfig(**settings(out), loss_type=[loss], beta=0.3, **DPO[loss][1]),
        train_dataset=WORDS,
        processing_class=tiny_tokenizer(),
    )
    batch = model_inputs([chosen for chosen, _ in rows] + [rejected for _, rejected in rows])
    return taken(trainer.compute_loss(trainer.model, batch), trainer.model)


@pytest.mark.parametrize("loss", DPO)
def test_dpo(loss: str, base: Path, tmp_path: Path) -> None:
    rows = sides(6)
    examples = with_reference([pair_of(each) for each in rows], moved(0))
    assert_same(ours(Preference(DPO[loss][0]), examples, moved(1)), dpo_by_trl(loss, rows, base, tmp_path))


def test_ipo_of_the_paper_is_of_sums_and_trls_of_means(base: Path, tmp_path: Path) -> None:
    """(δ − 1/(2β))² with δ of whole completions (equation 17); TRL divides each by its length."""
    rows = sides(6)
    examples = with_reference([pair_of(each) for each in rows], moved(0))
    of_sums = Preference(PreferenceConfig("ipo", beta=0.3))
    with torch.no_grad():
        moved_P2 = torch.stack(
            [
                document_logprobs(partial(logprobs, moved(1)), microbatch([each]))[0]
                - torch.tensor(each.columns[REFERENCE])
                for each in examples
            ]
        )
    lengths_P2 = torch.tensor([[len(completion) for _, completion in row] for row in rows])
    by_the_paper, by_length = (
        (each[:, 0] - each[:, 1] - 1 / 0.6).square().mean().item() for each in (moved_P2, moved_P2 / lengths_P2)
    )
    assert ours(of_sums, examples, moved(1)).loss == pytest.approx(by_the_paper, rel=1e-5)
    assert dpo_by_trl("ipo", rows, base, tmp_path).loss == pytest.approx(by_length, rel=1e-5)


def test_trl_also_counts_what_the_template_writes_after_the_answer(base: Path, tmp_path: Path) -> None:
    """Tokens of the same pair: ours count what the assistant says, up to its end; TRL's the line break after it too."""
    text = {"prompt": "2 + 2?", "chosen": "4", "rejected": "5!"}
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(json.dumps(text) + "\n")
    (example_of_pair,) = render_each(tiny_tokenizer(), read_pairs(pairs).samples, pair_example).examples
    roles = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
    trainer: Any = DPOTrainer(
        model=theirs_of(base, 1),
        args=DPOConfig(**settings(tmp_path)),
        train_dataset=Dataset.from_list([{key: [{"role": roles[key], "content": text[key]}] for key in text}]),
        processing_class=tiny_tokenizer(),
    )
    (row,) = trainer.train_dataset
    chosen, rejected = np.split(np.arange(len(example_of_pair)), [example_of_pair.document_starts[1]])
    (line_break,) = tiny_tokenizer().encode("\n")
    for side, at in (("chosen", chosen), ("rejected", rejected)):
        ids, weights = example_of_pair.token_ids[at], example_of_pair.weights[at]
        assert ids.tolist() == row["prompt_ids"] + row[f"{side}_ids"]
        assert ids[weights > 0].tolist() == row[f"{side}_ids"][:-1]
        assert row[f"{side}_ids"][-1] == line_break


# KTO.

KTO = KtoSettings(beta=0.3, desirable_weight=1.5, undesirable_weight=0.5)


def kto_by_trl(base: Path, out: Path) -> Callable[[Sequence[tuple[Side, Side]], Sequence[bool]], Learned]:
    trainer: Any = KTOTrainer(
        model=theirs_of(base, 1),
        ref_model=theirs_of(base, 0),
        args=KTOConfig(**settings(out), beta=0.3, desirable_weight=1.5, undesirable_weight=0.5),
        train_dataset=Dataset.from_list([{"prompt": "a", "completion": "b", "label": True}] * 8),
        processing_class=tiny_tokenizer(),
    )

    def asked(rows: Sequence[tuple[Side, Side]], labels: Sequence[bool]) -> Learned:
        batch = model_inputs([own for own, _ in rows]) | model_inputs([other for _, other in rows], "KL_")
        loss = trainer.compute_loss(trainer.model, batch | {"label": torch.tensor(labels)})
        return taken(loss, trainer.model)

    return asked


def test_kto_of_each_sample_and_of_a_batch_but_for_how_z_is_estimated(base: Path, tmp_path: Path) -> None:
    """TRL's z is the mean of a batch's; here each sample has its own. A batch of one sample is the same in both."""
    rows, labels = sides(6), [True, False, True, True, False, False]
    asked = kto_by_trl(base, tmp_path)
    examples = with_reference(
        [
            replace(pair_of(each), columns={DESIRABLE: np.full(2, label, dtype=np.float32)})
            for each, label in zip(rows, labels, strict=True)
        ],
        moved(0),
    )
    alone = [asked([row], [label]) for row, label in zip(rows, labels, strict=True)]
    for each, by_trl in zip(examples, alone, strict=True):
        assert_same(ours(Kto(KTO), [each], moved(1)), by_trl)
    mean = Learned(
        sum(each.loss for each in alone) / 6,
        {name: torch.stack([each.gradients[name] for each in alone]).mean(0) for name in alone[0].gradients},
    )
    assert_same(ours(Kto(KTO), examples, moved(1)), mean)

    # Equation 7 with the z of a batch, max(0, mean), from our log-probabilities: what TRL computes of all six at once.
    with torch.no_grad():
        moved_S2 = torch.stack(
            [
                document_logprobs(partial(logprobs, moved(1)), microbatch([each]))[0]
                - torch.tensor(each.columns[REFERENCE])
                for each in examples
            ]
        )
    z = moved_S2[:, 1].mean().clamp_min(0)
    sign_S = torch.tensor([1.0 if label else -1.0 for label in labels])
    weight_S = torch.tensor([1.5 if label else 0.5 for label in labels])
    by_hand = (weight_S * torch.sigmoid(-0.3 * sign_S * (moved_S2[:, 0] - z))).mean().item()
    assert asked(rows, labels).loss == pytest.approx(by_hand, abs=LOSS)


# Losses without a reference.


def sided(rows: Sequence[tuple[Side, Side]]) -> dict[str, Tensor]:
    """The batch of TRL's older trainers: a tensor for each side."""
    batch = {}
    for number, side in enumerate(("chosen", "rejected")):
        inputs = model_inputs([row[number] for row in rows])
        batch[f"{side}_input_ids"] = inputs["input_ids"]
        batch[f"{side}_attention_mask"] = inputs["attention_mask"]
        batch[f"{side}_labels"] = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100)
    return batch


def test_simpo(base: Path, tmp_path: Path) -> None:
    trainer: Any = CPOTrainer(
        model=theirs_of(base, 1),
        args=CPOConfig(**settings(tmp_path), loss_type="simpo", beta=2.0, simpo_gamma=0.7, cpo_alpha=0.0),
        train_dataset=WORDS,
        processing_class=tiny_tokenizer(),
    )
    rows = sides(6)
    by_trl = taken(trainer.compute_loss(trainer.model, sided(rows)), trainer.model)
    one = PreferenceConfig("simpo", beta=2.0, target_margin=0.7)
    assert_same(ours(Preference(one), [pair_of(each) for each in rows], moved(1)), by_trl)


def test_orpo_of_pairs_without_a_prompt_and_what_trl_learns_of_a_prompt(base: Path, tmp_path: Path) -> None:
    """Equation 6 is the mean surprise at the completion; TRL's first term is that of prompt and completion.

    With a prompt of one token, which nothing predicts, a pair alone is the same in both. Of several pairs, ours is the
    mean of theirs; TRL's first term weighs each token alike, and so a long completion more.
    """
    trainer: Any = ORPOTrainer(
        model=theirs_of(base, 1),
        args=ORPOConfig(**settings(tmp_path), beta=0.3),
        train_dataset=WORDS,
        processing_class=tiny_tokenizer(),
    )
    one = Preference(PreferenceConfig("orpo", odds_weight=0.3))
    for row in sides(3, prompt_tokens=1):
        by_trl = taken(trainer.compute_loss(trainer.model, sided([row])), trainer.model)
        assert_same(ours(one, [pair_of(row)], moved(1)), by_trl)

    rows, model = sides(6), moved(1)
    together = trainer.compute_loss(trainer.model, sided(rows)).item()
    with torch.no_grad():
        means_P2 = torch.stack(
            [
                scored / length
                for scored, length in (
                    document_logprobs(partial(logprobs, model), microbatch([pair_of(row)])) for row in rows
                )
            ]
        )
        whole = [example(prompt + completion) for (prompt, completion), _ in rows]
        sums, lengths = document_logprobs(partial(logprobs, model), microbatch(whole))
    odds_P2 = means_P2 - torch.log(-torch.expm1(means_P2))
    odds_term = -0.3 * logsigmoid(odds_P2[:, 0] - odds_P2[:, 1]).mean().item()
    surprise_of_all, surprise_of_completions = -(sums.sum() / lengths.sum()).item(), -means_P2[:, 0].mean().item()
    assert together == pytest.approx(surprise_of_all + odds_term, abs=LOSS)
    by_us = ours(one, [pair_of(each) for each in rows], moved(1)).loss
    assert by_us == pytest.approx(surprise_of_completions + odds_term, abs=LOSS)
