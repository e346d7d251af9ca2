"""Each loss of pairs and its gradient equals numbers by hand and the paper's equation, however pairs are packed."""

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.support.alone import hidden_alone, logprobs_alone
from tests.support.examples import example, random_examples
from tests.support.tolerances import GRADIENT_FP32, LOSS_SUM_FP32_RELATIVE
from training.algorithms.algorithm import Algorithm
from training.algorithms.kto import DESIRABLE, Kto
from training.algorithms.preference import BETA, REFERENCE, Preference, document_logprobs, pair_losses
from training.algorithms.reward import MARGIN, BradleyTerry
from training.config import KtoSettings, PreferenceConfig, PreferenceLoss
from training.data.batch import Batch, Microbatch, microbatch, with_columns
from training.data.example import Example
from training.data.loader import Loader
from training.data.pairs import joined
from training.models.forward import logits, logprobs, values
from training.models.load import load_model
from training.models.tiny import save_tiny, tiny_model

SETTINGS: dict[str, PreferenceConfig] = {
    "sigmoid": PreferenceConfig("sigmoid", beta=0.5, label_smoothing=0.0),
    "sigmoid, smoothed": PreferenceConfig("sigmoid", beta=0.5, label_smoothing=0.2),
    "robust": PreferenceConfig("robust", beta=0.5, label_smoothing=0.2),
    "ipo": PreferenceConfig("ipo", beta=0.25),
    "hinge": PreferenceConfig("hinge", beta=0.5),
    "apo_zero": PreferenceConfig("apo_zero", beta=0.5),
    "simpo": PreferenceConfig("simpo", beta=2.0, target_margin=0.5),
    "orpo": PreferenceConfig("orpo", odds_weight=0.3),
    "sigmoid, length-normalized": PreferenceConfig("sigmoid", beta=0.5, label_smoothing=0.0, length_normalized=True),
}
NEEDS_REFERENCE = [name for name, each in SETTINGS.items() if each.loss not in ("orpo", "simpo")]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def by_the_paper(one: PreferenceConfig, chosen: float, rejected: float, lengths: tuple[int, int]) -> float:
    """The loss from differences to the reference, or from log-probabilities if there is none; plain Python."""
    beta, epsilon = one.beta or 0.0, one.label_smoothing or 0.0
    if one.length_normalized or one.loss in ("simpo", "orpo"):
        chosen, rejected = chosen / lengths[0], rejected / lengths[1]
    delta = chosen - rejected
    match one.loss:
        case "sigmoid":
            # The expected loss if a label is wrong with probability epsilon.
            return -(1 - epsilon) * math.log(sigmoid(beta * delta)) - epsilon * math.log(sigmoid(-beta * delta))
        case "robust":
            right, wrong = -math.log(sigmoid(beta * delta)), -math.log(sigmoid(-beta * delta))
            return ((1 - epsilon) * right - epsilon * wrong) / (1 - 2 * epsilon)
        case "ipo":
            return (delta - 1 / beta / 2) ** 2
        case "hinge":
            return max(0.0, 1 - beta * delta)
        case "apo_zero":
            return (1 - sigmoid(beta * chosen)) + sigmoid(beta * rejected)
        case "simpo":
            return -math.log(sigmoid(beta * delta - (one.target_margin or 0.0)))
        case "orpo":
            odds = [math.exp(each) / (1 - math.exp(each)) for each in (chosen, rejected)]
            return -chosen - (one.odds_weight or 0.0) * math.log(sigmoid(math.log(odds[0] / odds[1])))


def test_every_loss_has_a_case() -> None:
    assert {each.loss for each in SETTINGS.values()} == set(get_args(PreferenceLoss))


def answering(logprobs_T: Tensor) -> Any:
    """A model whose log-probabilities are given."""

    def given(batch: Any, next_K: Tensor, weights_K: Tensor | None) -> Tensor:
        assert weights_K is None, "the factors of a difference of sums are not known beforehand"
        return logprobs_T[next_K]

    return given


def gradient(loss: Tensor, given: Tensor) -> list[float]:
    """Of the loss by what was given."""
    (found,) = torch.autograd.grad(loss, given)
    return found.tolist()


ROOT_3, ROOT_8 = math.sqrt(3), math.sqrt(8)
APO = sigmoid(0.5 * math.log(3 / 2)), sigmoid(-0.5 * math.log(2))
SIMPO = 2 * (math.log(3 / 4) + math.log(8) / 2) - 0.5
ODDS = 3 * (ROOT_8 - 1)
NORMALIZED = 0.5 * (math.log(3 / 2) + math.log(2) / 2)
BY_HAND: dict[str, tuple[float, float, float]] = {
    # h = log √3, so σ(−h) = 1 / (1 + √3).
    "sigmoid": (math.log(1 + 1 / ROOT_3), -0.5 / (1 + ROOT_3), 0.5 / (1 + ROOT_3)),
    "sigmoid, smoothed": (
        0.8 * math.log(1 + 1 / ROOT_3) + 0.2 * math.log(1 + ROOT_3),
        0.5 * (0.2 * ROOT_3 - 0.8) / (1 + ROOT_3),
        0.5 * (0.8 - 0.2 * ROOT_3) / (1 + ROOT_3),
    ),
    "robust": (
        (0.8 * math.log(1 + 1 / ROOT_3) - 0.2 * math.log(1 + ROOT_3)) / 0.6,
        0.5 * (-0.2 * ROOT_3 - 0.8) / (1 + ROOT_3) / 0.6,
        0.5 * (0.8 + 0.2 * ROOT_3) / (1 + ROOT_3) / 0.6,
    ),
    "ipo": ((math.log(3) - 2) ** 2, 2 * (math.log(3) - 2), 2 * (2 - math.log(3))),
    "hinge": (1 - 0.5 * math.log(3), -0.5, 0.5),
    # Each side by itself: the slope of σ is σ (1 − σ).
    "apo_zero": (1 - APO[0] + APO[1], -0.5 * APO[0] * (1 - APO[0]), 0.5 * APO[1] * (1 - APO[1])),
    # a = log 3/4 and log 8^(−1/2); each token of the rejected side is half of it.
    "simpo": (math.log(1 + math.exp(-SIMPO)), -2 * sigmoid(-SIMPO), 2 * sigmoid(-SIMPO) / 2),
    # Odds 3 and 1 / (√8 − 1); the logarithm of odds grows by 1 / (1 − exp a): 4, and √8 / (√8 − 1).
    "orpo": (
        -math.log(3 / 4) + 0.3 * math.log(1 + 1 / ODDS),
        -1 - 0.3 * 4 / (1 + ODDS),
        0.3 * ROOT_8 / (ROOT_8 - 1) / (1 + ODDS) / 2,
    ),
    "sigmoid, length-normalized": (
        math.log(1 + math.exp(-NORMALIZED)),
        -0.5 * sigmoid(-NORMALIZED),
        0.5 * sigmoid(-NORMALIZED) / 2,
    ),
}
"""Of the pair below: the loss, and its slope at each token of the chosen and of the rejected completion."""


@pytest.mark.parametrize("name", SETTINGS)
def test_three_tokens_by_hand(name: str) -> None:
    """A prompt of one token; the chosen completion has the probability 3/4, the tokens of the rejected 1/2 and 1/4.

    s(chosen) = log 3/4, s(rejected) = log 1/8: delta = log(3/4 · 2) − log(1/8 · 4) = log 3.
    """
    pair = joined(example([0, 1], [0, 1]), example([0, 1, 0], [0, 1, 1]))
    pair = replace(pair, columns={REFERENCE: np.log(np.array([1 / 2, 1 / 4], dtype=np.float32))})
    logprobs_T = torch.tensor([9.0, 3 / 4, 9.0, 1 / 2, 1 / 4]).log().requires_grad_()
    loss, metrics = Preference(SETTINGS[name]).loss_sum(answering(logprobs_T), microbatch([pair]))
    value, chosen, rejected = BY_HAND[name]
    assert loss.item() == pytest.approx(value, rel=1e-6)
    assert gradient(loss, logprobs_T) == pytest.approx([0, chosen, 0, rejected, rejected], rel=1e-5)
    if name == "sigmoid":
        assert metrics == pytest.approx(
            {
                "reward_chosen": 0.5 * math.log(3 / 2),
                "reward_rejected": 0.5 * math.log(1 / 2),
                "reward_margin": 0.5 * math.log(3),
                "reward_accuracy": 1,
                "logprob_chosen": math.log(3 / 4),
                "logprob_rejected": math.log(1 / 8),
            },
            rel=1e-6,
        )


def test_beta_of_the_step_by_hand() -> None:
    """Of a pair whose δ is log 3: 1/4 in this step, of 1/2 in the settings."""
    scores = torch.tensor([[math.log(3), 0.0]])
    changing = replace(SETTINGS["sigmoid"], beta_end=0.1)
    assert pair_losses(scores, changing).item() == pytest.approx(math.log(1 + 3**-0.5), rel=1e-6)
    assert pair_losses(scores, changing, torch.tensor([0.25])).item() == pytest.approx(math.log(1 + 3**-0.25), rel=1e-6)


@pytest.mark.parametrize("name", NEEDS_REFERENCE)
def test_beta_in_a_column_takes_the_place_of_the_settings_one(name: str) -> None:
    """Loss, gradients and metrics are those of a run in which beta stays at that."""
    loss, gradients, metrics = learned(Preference(SETTINGS[name]), split(pairs(), 60))
    beta = SETTINGS[name].beta
    assert beta is not None
    changing = replace(SETTINGS[name], beta=9.0, beta_end=7.0)
    batches = [with_columns(each, {BETA: beta}) for each in split(pairs(), 60)]
    other, others, other_metrics = learned(Preference(changing), batches)
    assert other == loss
    assert other_metrics == pytest.approx(metrics | {"beta": len(pairs()) * beta})
    assert all(torch.equal(others[weight], gradient) for weight, gradient in gradients.items())


@pytest.mark.parametrize("name", SETTINGS)
def test_loss_and_gradient_are_those_of_the_papers_equation(name: str) -> None:
    """The gradient by central differences of plain Python in double precision."""
    settings, lengths = SETTINGS[name], (3, 5)
    is_normalized = settings.length_normalized or settings.loss in ("simpo", "orpo")
    for chosen, rejected in ((-2.0, -3.5), (-4.0, -1.5), (-0.3, -0.4)):
        scores = torch.tensor([[chosen, rejected]], dtype=torch.float64, requires_grad=True)
        divided = scores / torch.tensor(lengths) if is_normalized else scores
        (loss,) = pair_losses(divided, settings)
        assert loss.item() == pytest.approx(by_the_paper(settings, chosen, rejected, lengths), rel=1e-9)
        loss.backward()
        step = 1e-6
        slopes = [
            (
                by_the_paper(settings, chosen + step * up, rejected + step * (1 - up), lengths)
                - by_the_paper(settings, chosen - step * up, rejected - step * (1 - up), lengths)
            )
            / (2 * step)
            for up in (1, 0)
        ]
        assert scores.grad is not None
        assert scores.grad[0].tolist() == pytest.approx(slopes, rel=1e-6, abs=1e-9)


def pairs(num: int = 6, seed: int = 3) -> list[Example]:
    """Pairs of random documents, compared with random numbers."""
    random = np.random.default_rng(seed)
    documents = random_examples(random.integers(3, 12, size=2 * num).tolist(), seed=seed)
    whole = [replace(each, weights=(each.weights > 0).astype(np.float32)) for each in documents]
    return [
        replace(
            joined(one, other),
            columns={REFERENCE: -10 - 10 * random.random(2).astype(np.float32)},
        )
        for one, other in zip(whole[::2], whole[1::2], strict=True)
    ]


def learned(
    algorithm: Algorithm[Batch, Microbatch], batches: list[Batch], model: Any = None, answers: Any = logprobs
) -> tuple[float, dict[str, Tensor], dict[str, float]]:
    """Loss, gradients and sums of metrics of one step over the batches of all ranks, of the tiny model unless given."""
    model, total, sums = model or tiny_model(), 0.0, dict[str, float]()
    model.zero_grad()
    for batch in batches:
        for each in batch.microbatches:
            loss, metrics = algorithm.loss_sum(partial(answers, model), each)
            (loss / algorithm.divisor(batch)).backward()
            total += loss.item() / algorithm.divisor(batch)
            sums = {name: sums.get(name, 0.0) + value for name, value in metrics.items()}
    return total, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}, sums


def assert_same_gradients(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, each in theirs.items():
        assert (ours[name] - each).abs().max() <= GRADIENT_FP32 * each.abs().max(), name


def split(examples: list[Example], tokens_per_rank_max: int, num_ranks: int = 1) -> list[Batch]:
    return [
        Loader(
            examples,
            samples_per_step=len(examples),
            tokens_per_rank_max=tokens_per_rank_max,
            seed=0,
            rank=rank,
            num_ranks=num_ranks,
        ).batch(0)
        for rank in range(num_ranks)
    ]


@pytest.mark.parametrize("name", SETTINGS)
def test_packing_ranks_and_fillers_change_nothing(name: str) -> None:
    examples = pairs()
    loss, gradients, metrics = learned(Preference(SETTINGS[name]), split(examples, 200))
    for tokens, num_ranks in ((24, 1), (60, 2), (200, 8)):
        other, others, other_metrics = learned(Preference(SETTINGS[name]), split(examples, tokens, num_ranks))
        assert other == pytest.approx(loss, rel=LOSS_SUM_FP32_RELATIVE)
        assert other_metrics == pytest.approx(metrics, rel=1e-5, abs=1e-5)
        assert_same_gradients(others, gradients)


def scores_by_tokens(model: Any, pair: Example) -> list[Tensor]:
    """The score s of both documents of an example, each run by itself and added up token after token."""
    middle = int(pair.document_starts[1])
    scores = []
    for part in (slice(0, middle), slice(middle, None)):
        said, total = logprobs_alone(model, pair.token_ids[part]), torch.zeros(())
        for weight, each in zip(pair.weights[part].tolist(), said, strict=True):
            if weight:
                total = total + weight * each
        scores.append(total)
    return scores


def lengths_of(pair: Example) -> tuple[int, int]:
    middle = int(pair.document_starts[1])
    return int(pair.weights[:middle].sum()), int(pair.weights[middle:].sum())


@pytest.mark.parametrize("name", SETTINGS)
def test_a_models_gradient_is_that_of_a_loop_over_tokens(name: str) -> None:
    """The reference takes the slope of each score by differences of plain Python and adds up tokens with autograd."""
    settings, examples, model = SETTINGS[name], pairs(), tiny_model()
    surrogate, expected, step = torch.zeros(()), 0.0, 1e-5
    for pair in examples:
        scores = scores_by_tokens(model, pair)
        reference = pair.columns[REFERENCE].tolist() if name in NEEDS_REFERENCE else (0.0, 0.0)
        chosen, rejected = (score.item() - other for score, other in zip(scores, reference, strict=True))
        loss_of = partial(by_the_paper, settings, lengths=lengths_of(pair))
        expected += loss_of(chosen=chosen, rejected=rejected) / len(examples)
        up = loss_of(chosen=chosen + step, rejected=rejected) - loss_of(chosen=chosen - step, rejected=rejected)
        down = loss_of(chosen=chosen, rejected=rejected + step) - loss_of(chosen=chosen, rejected=rejected - step)
        surrogate = surrogate + (scores[0] * up + scores[1] * down) / (2 * step) / len(examples)
    surrogate.backward()
    gradients = {weight: p.grad.clone() for weight, p in model.named_parameters() if p.grad is not None}
    loss, ours, _ = learned(Preference(settings), split(examples, 60), model)
    assert loss == pytest.approx(expected, rel=10 * LOSS_SUM_FP32_RELATIVE)
    assert_same_gradients(ours, gradients)


@pytest.mark.parametrize("name", SETTINGS)
def test_a_filler_gives_no_loss_no_reward_and_a_zero_gradient_for_every_weight(name: str) -> None:
    model, filler = tiny_model(), microbatch(pairs(2), weighted=False)
    loss, metrics = Preference(SETTINGS[name]).loss_sum(partial(logprobs, model), filler)
    loss.backward()
    assert loss.item() == 0.0
    assert set(metrics.values()) == {0.0}
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


def test_only_completions_are_scored() -> None:
    """The sum over the scores of a whole pack, token by token: the weight is that of the predicted token."""
    model, together = tiny_model(), microbatch(pairs())
    got, lengths = document_logprobs(partial(logprobs, model), together)
    scores = logits(model, together).log_softmax(-1)
    starts = together.document_starts_D1.tolist()
    for number, (start, end) in enumerate(itertools.pairwise(starts)):
        learned_at = [at for at in range(start + 1, end) if together.weights_T[at] > 0]
        expected = sum(scores[at - 1, together.token_ids_T[at]].item() for at in learned_at)
        assert got[number].item() == pytest.approx(expected, rel=1e-5)
        assert lengths[number].item() == len(learned_at)


def with_own_reference(examples: list[Example], change: float = 0.0) -> list[Example]:
    sums, _ = document_logprobs(partial(logprobs, tiny_model()), microbatch(examples))
    return [
        replace(each, columns={REFERENCE: part.detach().numpy() + np.float32([change, 0])})
        for each, part in zip(examples, sums.split(2), strict=True)
    ]


def test_dpo_begins_at_the_logarithm_of_two_and_ipo_at_the_square_of_its_aim() -> None:
    examples = with_own_reference(pairs())
    batches = split(examples, 200)
    assert learned(Preference(SETTINGS["sigmoid"]), batches)[0] == pytest.approx(math.log(2), rel=1e-6)
    assert learned(Preference(SETTINGS["ipo"]), batches)[0] == pytest.approx(4.0, rel=1e-6)
    assert learned(Preference(SETTINGS["hinge"]), batches)[0] == pytest.approx(1.0, rel=1e-6)


def swapped(pair: Example) -> Example:
    """The pair the other way round."""
    middle = int(pair.document_starts[1])
    halves: list[Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]] = [lambda x: x[middle:], lambda x: x[:middle]]
    documents = [Example(half(pair.token_ids), half(pair.weights), pair.where) for half in halves]
    return replace(joined(*documents), columns={REFERENCE: pair.columns[REFERENCE][::-1].copy()})


def test_swapping_chosen_and_rejected_flips_the_gradient_of_dpo_where_it_begins() -> None:
    examples = with_own_reference(pairs())
    _, there, _ = learned(Preference(SETTINGS["sigmoid"]), split(examples, 200))
    _, back, _ = learned(Preference(SETTINGS["sigmoid"]), split([swapped(each) for each in examples], 200))
    assert all(gradient.abs().max() > 0 for gradient in there.values())
    assert_same_gradients({name: -gradient for name, gradient in back.items()}, there)


def test_a_step_along_the_gradient_favours_what_was_chosen() -> None:
    examples = with_own_reference(pairs())
    (batch,) = split(examples, 200)
    model = tiny_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    loss, _ = Preference(SETTINGS["sigmoid"]).loss_sum(partial(logprobs, model), batch.microbatches[0])
    loss.backward()
    optimizer.step()
    _, metrics = Preference(SETTINGS["sigmoid"]).loss_sum(partial(logprobs, model), batch.microbatches[0])
    assert metrics["reward_margin"] > 0
    assert metrics["reward_accuracy"] == len(examples)


KTO = KtoSettings(beta=0.5, desirable_weight=2.0, undesirable_weight=3.0)


def labelled(own: list[float], other: list[float], label: bool, reference: tuple[float, float]) -> Example:
    """A sample of tokens with these weights, and of another completion, with what the reference says of both."""
    both = joined(example([0] * len(own), own), example([0] * len(other), other))
    columns = {REFERENCE: np.array(reference, dtype=np.float32), DESIRABLE: np.full(2, label, dtype=np.float32)}
    return replace(both, columns=columns)


def test_kto_of_three_tokens_by_hand() -> None:
    """Every prediction has probability 1/2; what the reference gave it decides r and z.

    Of the good sample r = log 4 over two tokens and z = log 2, so that β(r − z) = log √2; of the bad one r = log 4 and
    z = 0, since it is below 0, so that β(r − z) = log 2. No gradient goes through z.
    """
    good = labelled([0, 1, 1], [0, 1], True, (math.log(1 / 16), math.log(1 / 4)))
    bad = labelled([0, 1], [0, 1, 1], False, (math.log(1 / 8), math.log(1 / 2)))
    logprobs_T = torch.full((10,), 1 / 2).log().requires_grad_()
    loss, metrics = Kto(KTO).loss_sum(answering(logprobs_T), microbatch([good, bad]))
    above, below = 1 / (1 + math.sqrt(2)), 2 / 3
    assert loss.item() == pytest.approx(2 * above + 3 * below, rel=1e-6)
    assert metrics == pytest.approx(
        {"reward_signed": math.log(2) / 2 - math.log(2), "reward_accuracy": 1, "kl": math.log(2)}, rel=1e-6
    )
    up, down = -2 * 0.5 * above * (1 - above), 3 * 0.5 * below * (1 - below)
    assert gradient(loss, logprobs_T) == pytest.approx([0, up, up, 0, 0, 0, down, 0, 0, 0], rel=1e-6)


def test_ktos_gradient_is_that_of_a_loop_over_tokens_on_any_number_of_ranks_and_fillers_give_nothing() -> None:
    examples = [
        replace(each, columns={**each.columns, DESIRABLE: np.full(2, number % 2, dtype=np.float32)})
        for number, each in enumerate(pairs())
    ]
    model, expected = tiny_model(), torch.zeros(())
    for number, each in enumerate(examples):
        own, other = (s - ref for s, ref in zip(scores_by_tokens(model, each), each.columns[REFERENCE], strict=True))
        ahead = 0.5 * (own - max(0.0, other.item()))
        value = torch.sigmoid(ahead) if number % 2 else torch.sigmoid(-ahead)
        expected = expected + (2.0 if number % 2 else 3.0) * (1 - value) / len(examples)
    expected.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    for tokens, num_ranks in ((200, 1), (24, 1), (200, 8)):
        loss, ours, _ = learned(Kto(KTO), split(examples, tokens, num_ranks), model)
        assert loss == pytest.approx(expected.item(), rel=10 * LOSS_SUM_FP32_RELATIVE)
        assert_same_gradients(ours, gradients)


def test_bradley_terry_by_hand() -> None:
    """Read at the last token of each document; a margin asks for more, and a filler for nothing."""

    def pair(margin: float) -> Example:
        both = joined(example([0, 1], [0, 1]), example([0, 1, 0], [0, 1, 1]))
        return replace(both, columns={MARGIN: np.full(2, margin, dtype=np.float32)})

    said = torch.tensor([9.0, 2.0, 9.0, 9.0, 1.0, 9.0, 0.0, 9.0, 9.0, 0.5], requires_grad=True)

    def given(batch: Any, at_K: Tensor, weights_K: Tensor | None) -> Tensor:
        return said[at_K]

    loss, metrics = BradleyTerry().loss_sum(given, microbatch([pair(0.0), pair(1.5)]))
    assert loss.item() == pytest.approx(-math.log(sigmoid(1.0)) - math.log(sigmoid(-0.5 - 1.5)), rel=1e-6)
    assert metrics == pytest.approx(
        {"reward_chosen": 2.0, "reward_rejected": 1.5, "reward_margin": 0.5, "reward_accuracy": 1}
    )
    loss.backward()
    assert said.grad is not None
    first, second = sigmoid(-1.0), sigmoid(2.0)
    assert said.grad.tolist() == pytest.approx([0, -first, 0, 0, first, 0, -second, 0, 0, second])
    loss, metrics = BradleyTerry().loss_sum(given, microbatch([pair(0.0)], weighted=False))
    assert loss.item() == 0.0
    assert loss.requires_grad
    assert not any(metrics.values())


def test_bradley_and_terrys_gradient_is_that_of_documents_by_themselves_however_they_are_packed(tmp_path: Path) -> None:
    model = load_model(str(save_tiny(tmp_path)), head="new value").model
    examples = [
        replace(each, columns={MARGIN: np.full(2, number / 4, dtype=np.float32)}) for number, each in enumerate(pairs())
    ]
    expected = torch.zeros(())
    for number, each in enumerate(examples):
        middle = int(each.document_starts[1])
        chosen, rejected = (
            model.score(hidden_alone(model, each.token_ids[part])[-1])[0]
            for part in (slice(0, middle), slice(middle, None))
        )
        expected = expected - torch.log(torch.sigmoid(chosen - rejected - number / 4)) / len(examples)
    expected.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    assert "score.weight" in gradients
    for tokens, num_ranks in ((200, 1), (24, 1), (60, 2), (200, 8)):
        loss, ours, _ = learned(BradleyTerry(), split(examples, tokens, num_ranks), model, values)
        assert loss == pytest.approx(expected.item(), rel=10 * LOSS_SUM_FP32_RELATIVE)
        assert_same_gradients(ours, gradients)


def test_the_divisor_is_the_number_of_pairs() -> None:
    for algorithm in (Preference(SETTINGS["ipo"]), Kto(KTO), BradleyTerry()):
        assert algorithm.divisor(SimpleNamespace(num_samples=7)) == 7
