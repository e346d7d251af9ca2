"""The clipped policy gradient, its advantages and divergences equal the papers' equations, by hand and at random."""

import math
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.support.alone import logprobs_alone
from tests.support.tolerances import GRADIENT_FP32, LOSS_SUM_FP32_RELATIVE
from training.algorithms.advantages import gae, group_advantages, overlong_penalty, rloo_advantages
from training.algorithms.grpo import Grpo, LengthNormalization, token_weight
from training.algorithms.kl import KlEstimator, kl_estimate
from training.algorithms.value import value_loss
from training.data.batch import Microbatch, microbatch
from training.data.example import Example
from training.data.loader import Loader
from training.models.forward import logprobs
from training.models.tiny import tiny_model

GRPO = Grpo(clip_low=0.2, clip_high=0.3, normalization="token")


def one_document(weights: list[float], **columns: list[float]) -> Microbatch:
    """A document of these tokens' weights and columns."""
    num = len(weights)
    tensors = {f"{name}_T": torch.tensor(values) for name, values in columns.items()}
    return Microbatch(
        torch.zeros(num, dtype=torch.int64), torch.arange(num), torch.tensor(weights), torch.tensor([0, num]), tensors
    )


def answering(logprobs_T: Tensor) -> Any:
    """A model whose log-probabilities are given."""
    return lambda microbatch, next_K, weights_K: logprobs_T[next_K]


def test_three_tokens_by_hand() -> None:
    """Ratios 1.5, 0.5 and 1.1 with advantages 1, 1 and −1: only the first is clipped, at 1.3."""
    logprobs_T = torch.tensor([0.0, math.log(0.3), math.log(0.2), math.log(0.22)], requires_grad=True)
    document = one_document(
        [0.0, 1.0, 1.0, 1.0],
        policy_logprobs=[0.0, math.log(0.2), math.log(0.4), math.log(0.2)],
        advantages=[9.0, 1.0, 1.0, -1.0],
    )
    loss, metrics = GRPO.loss_sum(answering(logprobs_T), document)
    assert loss.item() == pytest.approx(-1.3 - 0.5 + 1.1, rel=1e-6)
    assert metrics["clip_fraction"] == 1
    assert metrics["ratio"] == pytest.approx(1.5 + 0.5 + 1.1, rel=1e-6)
    assert metrics["entropy"] == pytest.approx(-math.log(0.3 * 0.2 * 0.22), rel=1e-6)
    assert metrics["kl_rollout"] == pytest.approx(3.1 - 3 - math.log(1.5 * 0.5 * 1.1), rel=1e-5)
    loss.backward()
    assert logprobs_T.grad is not None
    # d ρ A / d log π = ρ A where nothing is clipped.
    assert torch.allclose(logprobs_T.grad, torch.tensor([0.0, 0.0, -0.5, 1.1]), rtol=1e-6)


def test_a_bad_token_that_has_become_rarer_is_clipped_below() -> None:
    document = one_document([0.0, 1.0], policy_logprobs=[0.0, math.log(0.4)], advantages=[0.0, -1.0])
    loss, metrics = GRPO.loss_sum(answering(torch.tensor([0.0, math.log(0.1)])), document)
    assert loss.item() == pytest.approx(0.8, rel=1e-6)
    assert metrics["clip_fraction"] == 1


def test_on_policy_ratios_are_exactly_1_and_the_gradient_is_the_policy_gradient() -> None:
    logprobs_T = torch.tensor([0.0, -1.7, -0.3], requires_grad=True)
    document = one_document([0.0, 0.5, 0.5], policy_logprobs=[0.0, -1.7, -0.3], advantages=[0.0, 2.0, -3.0])
    loss, metrics = GRPO.loss_sum(answering(logprobs_T), document)
    assert metrics["ratio"] == metrics["weight"] == 1.0
    assert metrics["clip_fraction"] == metrics["kl_rollout"] == 0.0
    loss.backward()
    assert logprobs_T.grad is not None
    assert torch.equal(logprobs_T.grad, torch.tensor([0.0, -1.0, 1.5]))


def test_ratios_to_what_the_model_itself_has_just_said_are_exactly_1() -> None:
    """However it is packed: columns filled and ratios taken by the same pass differ by nothing, not by rounding."""
    model, pack = tiny_model(), microbatch(completions("token"))
    next_K = pack.weights_T.nonzero().squeeze(1)
    with torch.no_grad():
        said_K = logprobs(model, pack, next_K)
    pack.columns["policy_logprobs_T"].zero_().index_copy_(0, next_K, said_K)
    _, metrics = GRPO.loss_sum(partial(logprobs, model), pack)
    assert metrics["ratio"] == metrics["weight"] == len(next_K)
    assert metrics["clip_fraction"] == metrics["kl_rollout"] == 0.0


def test_rloo_of_three_tokens_by_hand() -> None:
    """Of two completions the first, of one token, has a reward of 3, the other, of two, of 1: advantages 2 and −2.

    Ratios are 1.1, 1/2 (clipped at 0.8, as the advantage is negative) and 1; each token weighs 1 / 4.
    """
    algorithm = Grpo(clip_low=0.2, clip_high=0.2, normalization="constant")
    first, second = rloo_advantages(torch.tensor([[3.0, 1.0]]))[0].tolist()
    weight = token_weight(1, "constant", 4)
    logprobs_T = torch.tensor([0.0, math.log(0.22), math.log(0.2), math.log(0.3)], requires_grad=True)
    document = one_document(
        [0.0, weight, weight, weight],
        policy_logprobs=[0.0, math.log(0.2), math.log(0.4), math.log(0.3)],
        advantages=[0.0, first, second, second],
    )
    loss, _ = algorithm.loss_sum(answering(logprobs_T), document)
    assert loss.item() == pytest.approx((-1.1 * 2 + 0.8 * 2 + 1 * 2) / 4, rel=1e-6)
    loss.backward()
    assert logprobs_T.grad is not None
    assert logprobs_T.grad.tolist() == pytest.approx([0, -1.1 * 2 / 4, 0, 2 / 4], rel=1e-6)


def test_importance_is_that_of_the_old_policy_over_the_sampler_and_truncated() -> None:
    algorithm = Grpo(clip_low=0.2, clip_high=0.2, normalization="token", importance_max=2.0)
    document = one_document(
        [0.0, 1.0, 1.0],
        policy_logprobs=[0.0, math.log(0.3), math.log(0.9)],
        sampled_logprobs=[0.0, math.log(0.2), math.log(0.1)],
        advantages=[0.0, 1.0, 1.0],
    )
    loss, _ = algorithm.loss_sum(answering(torch.tensor([0.0, math.log(0.3), math.log(0.9)])), document)
    assert loss.item() == pytest.approx(-1.5 - 2.0, rel=1e-6)


@pytest.mark.parametrize(
    ("estimator", "expected", "slope"),
    [("k1", -math.log(2), 1), ("k2", math.log(2) ** 2 / 2, -math.log(2)), ("k3", 2 - 1 - math.log(2), 1 - 2)],
)
def test_kl_estimators_by_hand_and_their_part_of_loss_and_gradient(
    estimator: KlEstimator, expected: float, slope: float
) -> None:
    """The reference gives the token twice the probability."""
    got = kl_estimate(torch.tensor([math.log(0.2)]), torch.tensor([math.log(0.4)]), estimator)
    assert got.item() == pytest.approx(expected, rel=1e-6)
    algorithm = Grpo(clip_low=0.2, clip_high=0.2, normalization="token", kl_coefficient=0.1, kl_estimator=estimator)
    document = one_document(
        [0.0, 1.0],
        policy_logprobs=[0.0, math.log(0.2)],
        reference_logprobs=[0.0, math.log(0.4)],
        advantages=[0.0, 1.0],
    )
    logprobs_T = torch.tensor([0.0, math.log(0.2)], requires_grad=True)
    loss, metrics = algorithm.loss_sum(answering(logprobs_T), document)
    assert loss.item() == pytest.approx(-1 + 0.1 * expected, rel=1e-6)
    assert metrics["kl"] == pytest.approx(expected, rel=1e-6)
    loss.backward()
    assert logprobs_T.grad is not None
    assert logprobs_T.grad.tolist() == pytest.approx([0, -1 + 0.1 * slope], rel=1e-6)


def test_k1_and_k3_have_the_divergence_as_their_mean_and_k3_is_never_negative() -> None:
    policy, reference = (torch.randn(2, 7, generator=torch.Generator().manual_seed(3))).double().log_softmax(-1)
    exact = (policy.exp() * (policy - reference)).sum().item()
    for estimator in ("k1", "k3"):
        mean = (policy.exp() * kl_estimate(policy, reference, estimator)).sum().item()
        assert mean == pytest.approx(exact, rel=1e-9)
    assert (kl_estimate(policy, reference, "k3") >= 0).all()


REWARDS = torch.tensor([[1.0, 0.0, 0.0, 1.0], [0.25, 0.25, 0.25, 0.25], [5.0, -1.0, 2.0, 0.5]])


def test_advantages_of_a_group_sum_to_0() -> None:
    for advantages in (
        group_advantages(REWARDS, divide_by_std=False),
        group_advantages(REWARDS, divide_by_std=True),
        rloo_advantages(REWARDS),
    ):
        assert advantages.sum(dim=1).abs().max() < 1e-6
        assert not advantages[1].any(), "rewards that are all alike say nothing"


def test_advantages_by_hand() -> None:
    rewards = torch.tensor([[1.0, 0.0, 0.0, 1.0]])
    assert group_advantages(rewards, divide_by_std=False).tolist() == [[0.5, -0.5, -0.5, 0.5]]
    std = math.sqrt(4 * 0.25 / 3)
    assert group_advantages(rewards, divide_by_std=True)[0, 0].item() == pytest.approx(0.5 / (std + 1e-4), rel=1e-6)
    assert rloo_advantages(rewards)[0].tolist() == pytest.approx([2 / 3, -2 / 3, -2 / 3, 2 / 3])


def test_overlong_penalty_by_hand() -> None:
    """Of at most 20 tokens the last 8: the paper's bounds, and half way."""
    assert [overlong_penalty(num, 20, 8) for num in (1, 12, 13, 16, 20)] == [0.0, 0.0, 0.125, 0.5, 1.0]


def test_gae_by_hand_and_at_its_two_ends() -> None:
    rewards, values = torch.tensor([0.0, 0.0, 1.0]), torch.tensor([0.5, 0.25, 0.75])
    last = 1 - 0.75
    middle = 0.9 * 0.75 - 0.25 + 0.9 * 0.8 * last
    first = 0.9 * 0.25 - 0.5 + 0.9 * 0.8 * middle
    assert gae(rewards, values, discount=0.9, decay=0.8).tolist() == pytest.approx([first, middle, last])
    assert gae(rewards, values, discount=1.0, decay=1.0).tolist() == pytest.approx([0.5, 0.75, 0.25]), "1 − V"
    assert gae(rewards, values, discount=1.0, decay=0.0).tolist() == pytest.approx([-0.25, 0.5, 0.25]), "one step"


def test_value_loss_by_hand() -> None:
    """It gains nothing by moving further than 0.2 towards the return, and pays for all of a move away from it."""
    values, old, returns = torch.tensor([1.1, 1.8, 0.0]), torch.ones(3), torch.full((3,), 2.0)
    assert value_loss(values, old, returns, clip=0.2).tolist() == pytest.approx([0.405, 0.32, 2.0])


def completions(normalization: LengthNormalization, *, group: int = 4) -> list[Example]:
    """Completions of several lengths after prompts of several lengths, with columns at random."""
    random = np.random.default_rng(0)
    made = []
    for number in range(group):
        num_prompt, num_completion = 2 + number, 3 + 2 * number
        weights = np.zeros(num_prompt + num_completion, dtype=np.float32)
        weights[num_prompt:] = token_weight(num_completion, normalization, 16)
        ids = random.integers(0, 256, len(weights)).astype(np.int32)
        columns = {
            "advantages_T": np.full(len(ids), random.normal(), dtype=np.float32),
            **{
                f"{name}_logprobs_T": random.normal(-5.5, 0.3, len(ids)).astype(np.float32)
                for name in ("policy", "sampled", "reference")
            },
            "sample_D": np.array([number]),
        }
        made.append(Example(ids, weights, f"prompts.jsonl:{number + 1}", columns=columns))
    return made


@pytest.mark.parametrize("normalization", ["sequence", "token", "constant"])
def test_loss_is_that_of_the_papers_equations_however_it_is_packed(normalization: LengthNormalization) -> None:
    """The reference loops over completions and tokens, and takes the means that each paper writes."""
    algorithm = Grpo(clip_low=0.2, clip_high=0.28, normalization=normalization, kl_coefficient=0.04, importance_max=1.1)
    model, examples = tiny_model(), completions(normalization)

    def losses_of(example: Example) -> list[Tensor]:
        log_p = logprobs_alone(model, example.token_ids)
        columns = {name: torch.from_numpy(column) for name, column in example.columns.items()}
        found = []
        for at in np.flatnonzero(example.weights).tolist():
            old, advantage = columns["policy_logprobs_T"][at], columns["advantages_T"][at]
            ratio = torch.exp(log_p[at] - old)
            gain = min(ratio * advantage, ratio.clip(0.8, 1.28) * advantage)
            trust = min(torch.exp(old - columns["sampled_logprobs_T"][at]).item(), 1.1)
            other = torch.exp(columns["reference_logprobs_T"][at] - log_p[at])
            found.append(-trust * gain + 0.04 * (other - other.log() - 1))
        return found

    each = [torch.stack(losses_of(example)) for example in examples]
    match normalization:
        case "sequence":
            expected = torch.stack([losses.mean() for losses in each]).mean()
        case "token":
            expected = torch.cat(each).mean()
        case "constant":
            expected = torch.stack([losses.sum() / 16 for losses in each]).mean()
    expected.backward()
    gradients = {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}
    for tokens_per_rank_max, num_ranks in ((100, 1), (20, 1), (30, 2)):
        model.zero_grad()
        total = 0.0
        for rank in range(num_ranks):
            loader = Loader(
                examples,
                samples_per_step=len(examples),
                tokens_per_rank_max=tokens_per_rank_max,
                seed=0,
                rank=rank,
                num_ranks=num_ranks,
            )
            batch = loader.batch(0)
            for part in batch.microbatches:
                loss = algorithm.loss_sum(partial(logprobs, model), part)[0] / algorithm.divisor(batch)
                loss.backward()
                total += loss.item()
        assert total == pytest.approx(expected.item(), rel=10 * LOSS_SUM_FP32_RELATIVE)
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None
            difference = (parameter.grad - gradients[name]).abs().max()
            assert difference <= GRADIENT_FP32 * gradients[name].abs().max(), name


def test_a_filler_adds_no_loss_no_metric_and_zero_gradients() -> None:
    model, filler = tiny_model(), microbatch(completions("token")[:1], weighted=False)
    loss, metrics = GRPO.loss_sum(partial(logprobs, model), filler)
    assert loss.item() == 0.0
    assert not any(metrics.values())
    loss.backward()
    assert all(each.grad is not None and not each.grad.any() for each in model.parameters())


def test_documents_keep_their_own_columns_in_a_pack() -> None:
    pack = microbatch(completions("token"))
    for number, (start, end) in enumerate(pairwise(pack.document_starts_D1.tolist())):
        assert pack.columns["sample_D"][number] == number
        assert len(pack.columns["advantages_T"][start:end].unique()) == 1
