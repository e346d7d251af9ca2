"""PPO's critic: its loss and gradient by hand, what it is asked for, and whom a token owes its advantage to."""

import math
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from tests.support.alone import hidden_alone, logprobs_alone
from tests.support.tolerances import GRADIENT_FP32, LOGPROB_FP32, LOSS_SUM_FP32_RELATIVE
from training.algorithms.grpo import Grpo
from training.algorithms.ppo import Ppo
from training.config import PpoSettings, RlConfig
from training.data.batch import Microbatch, microbatch
from training.data.example import Example
from training.models.critic import NAME, add_critic, remove_critic
from training.models.forward import logprobs, logprobs_and_values
from training.models.head import chunked_head
from training.models.tiny import tiny_model
from training.rollout.credit import credit

POLICY = Grpo(clip_low=0.2, clip_high=0.2, normalization="token")
PPO = Ppo(POLICY, value_coefficient=0.5, value_clip=0.2)


def document(**columns: list[float]) -> Microbatch:
    """A prompt of one token and a completion of three, with these columns of its tokens."""
    return Microbatch(
        torch.zeros(4, dtype=torch.int64),
        torch.arange(4),
        torch.tensor([0.0, 1.0, 1.0, 1.0]),
        torch.tensor([0, 4]),
        {f"{name}_T": torch.tensor(values) for name, values in columns.items()},
    )


def test_three_tokens_by_hand() -> None:
    """Of the policy ratios 1.5 (clipped at 1.2), 1 and 0.5; of the critic moves of 0.1, 0.8 (clipped) and −1 from 1.

    The returns are 2: towards it 0.9² / 2 and, from where it was stopped, 0.8² / 2, away from it all of 2² / 2.
    """
    logprobs_T = torch.tensor([0.0, math.log(0.3), math.log(0.2), math.log(0.1)], requires_grad=True)
    values_T = torch.tensor([9.0, 1.1, 1.8, 0.0], requires_grad=True)
    loss, metrics = PPO.loss_sum(
        lambda microbatch, next_K, weights_K: torch.stack([logprobs_T, values_T], dim=1)[next_K],
        document(
            policy_logprobs=[0.0, math.log(0.2), math.log(0.2), math.log(0.2)],
            advantages=[9.0, 1.0, -2.0, 3.0],
            old_values=[9.0, 1.0, 1.0, 1.0],
            returns=[9.0, 2.0, 2.0, 2.0],
        ),
    )
    assert loss.item() == pytest.approx(-1.2 + 2.0 - 1.5 + 0.5 * (0.405 + 0.32 + 2.0), rel=1e-6)
    assert metrics["value_loss"] == pytest.approx(0.405 + 0.32 + 2.0, rel=1e-6)
    assert metrics["value_clip_fraction"] == 2
    assert metrics["clip_fraction"] == 1
    loss.backward()
    assert logprobs_T.grad is not None
    assert values_T.grad is not None
    assert torch.allclose(logprobs_T.grad, torch.tensor([0.0, 0.0, 2.0, -1.5]), rtol=1e-5)
    # 0.5 (V − R), and nothing where it was stopped.
    assert torch.allclose(values_T.grad, torch.tensor([0.0, -0.45, 0.0, -1.0]), rtol=1e-5)


def test_without_a_clip_the_critic_learns_by_the_square() -> None:
    values_T = torch.tensor([0.0, 1.1, 1.8, 0.0], requires_grad=True)
    zeros = [0.0] * 4
    loss, metrics = Ppo(POLICY, value_coefficient=1.0, value_clip=None).loss_sum(
        lambda microbatch, next_K, weights_K: torch.stack([torch.zeros(4), values_T], dim=1)[next_K],
        document(policy_logprobs=zeros, advantages=zeros, old_values=[0.0, 1.0, 1.0, 1.0], returns=[2.0] * 4),
    )
    loss.backward()
    assert values_T.grad is not None
    assert torch.allclose(values_T.grad, torch.tensor([0.0, -0.9, -0.2, -2.0]), rtol=1e-5)
    assert metrics["value_clip_fraction"] == 0


def completion(num_prompt: int, **columns: list[float]) -> Example:
    """After a prompt of so many tokens, where columns are 0."""
    (num,) = {len(values) for values in columns.values()}

    def whole(values: list[float]) -> NDArray[np.float32]:
        return np.array([0.0] * num_prompt + values, dtype=np.float32)

    return Example(
        np.arange(num_prompt + num, dtype=np.int32),
        whole([1.0] * num),
        "prompts.jsonl:1",
        columns={f"{name}_T": whole(values) for name, values in columns.items()},
    )


TWO = [completion(3, old_values=[0.5, 0.25, 0.75]), completion(1, old_values=[0.125])]
"""Of different lengths, so that one is filled up."""


def test_advantages_and_returns_by_hand() -> None:
    rl = PpoSettings(gae_decay=0.8, discount=0.9, whiten_advantages=False)
    (long, short), metrics = credit(rl, TWO, [1.0, -1.0])
    last = 1 - 0.75
    middle = 0.9 * 0.75 - 0.25 + 0.9 * 0.8 * last
    first = 0.9 * 0.25 - 0.5 + 0.9 * 0.8 * middle
    assert long.columns["advantages_T"].tolist() == pytest.approx([0, 0, 0, first, middle, last])
    assert long.columns["returns_T"].tolist() == pytest.approx([0, 0, 0, first + 0.5, middle + 0.25, last + 0.75])
    assert short.columns["advantages_T"].tolist() == [0.0, -1.125]
    assert short.columns["returns_T"].tolist() == [0.0, -1.0]
    assert metrics["value_mean"] == pytest.approx((0.5 + 0.25 + 0.75 + 0.125) / 4)
    assert metrics["return_mean"] == pytest.approx((first + 0.5 + middle + 0.25 + 1 - 1) / 4)


def test_whitened_advantages_have_mean_0_and_deviation_1_over_tokens_and_returns_stay() -> None:
    plain, _ = credit(PpoSettings(whiten_advantages=False), TWO, [1.0, -1.0])
    white, _ = credit(PpoSettings(), TWO, [1.0, -1.0])
    tokens = np.concatenate([each.columns["advantages_T"][each.weights > 0] for each in white])
    assert tokens.mean() == pytest.approx(0.0, abs=1e-6)
    assert tokens.std() == pytest.approx(1.0, abs=1e-3)
    for one, other in zip(plain, white, strict=True):
        assert one.columns["returns_T"].tolist() == other.columns["returns_T"].tolist()


def test_the_divergence_is_taken_off_rewards_at_its_token() -> None:
    """With decay 1 and no discount a return is the sum of rewards from its token on."""
    said = completion(1, old_values=[0.0, 0.0], policy_logprobs=[-1.0, -2.0], reference_logprobs=[-1.5, -1.75])
    rl = PpoSettings(gae_decay=1.0, kl_coefficient=0.1, kl_estimator="k1", whiten_advantages=False)
    (made,), metrics = credit(rl, [said], [2.0])
    assert made.columns["returns_T"].tolist() == pytest.approx([0.0, 2.0 - 0.1 * (0.5 - 0.25), 2.0 + 0.1 * 0.25])
    assert metrics["kl"] == pytest.approx((0.5 - 0.25) / 2)


def test_a_critic_that_knows_explains_everything_and_one_that_says_nothing_nothing() -> None:
    rl = PpoSettings(gae_decay=1.0)
    knows = [completion(1, old_values=[1.0, 1.0]), completion(1, old_values=[-1.0])]
    silent = [completion(1, old_values=[0.0, 0.0]), completion(1, old_values=[0.0])]
    assert credit(rl, knows, [1.0, -1.0])[1]["explained_variance"] == pytest.approx(1.0)
    assert credit(rl, silent, [1.0, -1.0])[1]["explained_variance"] == pytest.approx(0.0)


@pytest.mark.parametrize(
    ("rl", "half"),
    [(RlConfig(group_size=2, divide_by_std=False), 0.5), (RlConfig(group_size=2, advantage="rloo"), 1.0)],
    ids=["group", "rloo"],
)
def test_groups_give_each_token_the_advantage_of_the_whole(rl: RlConfig, half: float) -> None:
    """The mean of a group of rewards 1 and 0 is 1/2 away from each, the mean of the others 1."""
    four = [completion(1, old_values=[0.0] * (2 + number)) for number in range(4)]
    made, metrics = credit(rl, four, [1.0, 0.0, 3.0, 3.0])
    for example, advantage in zip(made, [half, -half, 0.0, 0.0], strict=True):
        assert set(example.columns["advantages_T"][1:].tolist()) == {advantage}
    assert metrics == {"uniform_groups_fraction": 0.5}


def filled(model: Any) -> Any:
    """The model with a critic that says something."""
    add_critic(model)
    random = torch.Generator().manual_seed(1)
    model.critic.weight.data.copy_(torch.randn(model.critic.weight.shape, generator=random))
    return model


EXAMPLES = [completion(2 + number, old_values=[0.0] * (3 + number)) for number in range(3)]


def test_values_are_those_before_each_token_and_log_probabilities_stay() -> None:
    """The reference runs transformers' model on each document by itself and takes its last hidden states."""
    model = filled(tiny_model())
    pack = microbatch(EXAMPLES)
    next_K = pack.weights_T.nonzero().squeeze(1)
    answers_K2 = logprobs_and_values(model, pack, next_K)
    assert torch.equal(answers_K2[:, 0], logprobs(model, pack, next_K))
    expected: list[Tensor] = []
    for each in EXAMPLES:
        hidden = hidden_alone(model, each.token_ids)
        expected += [hidden[at - 1] @ model.critic.weight[0] for at in np.flatnonzero(each.weights)]
    assert (answers_K2[:, 1] - torch.stack(expected)).abs().max() < 10 * LOGPROB_FP32


def test_a_chunked_head_leaves_both_answers_and_gradients() -> None:
    gradients = []
    for chunk_tokens in (None, 2):
        model = filled(tiny_model())
        head = chunked_head(model, chunk_tokens, "m") if chunk_tokens else None
        pack = microbatch(EXAMPLES)
        answers_K2 = logprobs_and_values(model, pack, pack.weights_T.nonzero().squeeze(1), head=head)
        (answers_K2[:, 0].sum() + answers_K2[:, 1].square().sum()).backward()
        gradients.append({name: each.grad for name, each in model.named_parameters()})
    for name, gradient in gradients[0].items():
        assert (gradient - gradients[1][name]).abs().max() <= GRADIENT_FP32 * gradient.abs().max(), name


def test_values_are_in_float32_in_bfloat16_too() -> None:
    model, pack = filled(tiny_model()), microbatch(EXAMPLES)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        values_K = logprobs_and_values(model, pack, pack.weights_T.nonzero().squeeze(1))[:, 1]
    assert values_K.dtype == torch.float32
    assert not torch.equal(values_K, values_K.bfloat16().float())


def test_a_critic_begins_by_expecting_nothing_and_leaves_nothing_behind() -> None:
    model = tiny_model()
    names = model.state_dict().keys()
    add_critic(model)
    pack = microbatch(EXAMPLES)
    assert not logprobs_and_values(model, pack, pack.weights_T.nonzero().squeeze(1))[:, 1].any()
    assert model.state_dict().keys() == {*names, f"{NAME}.weight"}
    remove_critic(model)
    assert model.state_dict().keys() == names


def test_a_models_gradient_is_that_of_a_loop_over_tokens_however_they_are_packed() -> None:
    """The reference runs transformers' model on each document by itself and writes the formula out for each token."""
    random = np.random.default_rng(0)
    examples = []
    for number in range(3):
        num = 3 + number
        columns = {name: random.normal(size=num).tolist() for name in ("advantages", "old_values", "returns")}
        columns["policy_logprobs"] = random.normal(-5.5, 0.3, num).tolist()
        examples.append(completion(2 + number, **columns))
    model, losses = filled(tiny_model()), list[Tensor]()
    for each in examples:
        said, hidden = logprobs_alone(model, each.token_ids), hidden_alone(model, each.token_ids)
        for at in np.flatnonzero(each.weights).tolist():
            old, advantage, before, target = (
                float(each.columns[f"{name}_T"][at])
                for name in ("policy_logprobs", "advantages", "old_values", "returns")
            )
            ratio, value = torch.exp(said[at] - old), hidden[at - 1] @ model.critic.weight[0]
            gain = min(ratio * advantage, ratio.clip(0.8, 1.2) * advantage)
            near = before + (value - before).clip(-0.2, 0.2)
            losses.append(-gain + 0.5 * max((value - target) ** 2, (near - target) ** 2) / 2)
    expected = torch.stack(losses).sum()
    expected.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    for packs in ([examples], [examples[:1], examples[1:]], [[each] for each in reversed(examples)]):
        model.zero_grad()
        loss = torch.stack(
            [PPO.loss_sum(partial(logprobs_and_values, model), microbatch(pack))[0] for pack in packs]
        ).sum()
        loss.backward()
        assert loss.item() == pytest.approx(expected.item(), rel=10 * LOSS_SUM_FP32_RELATIVE)
        for name, parameter in model.named_parameters():
            assert (parameter.grad - gradients[name]).abs().max() <= GRADIENT_FP32 * gradients[name].abs().max(), name


def test_a_filler_gives_no_loss_and_no_metric() -> None:
    names = ("policy_logprobs", "advantages", "old_values", "returns")
    only = completion(1, **{name: [1.0, 2.0] for name in names})
    loss, metrics = PPO.loss_sum(partial(logprobs_and_values, filled(tiny_model())), microbatch([only], weighted=False))
    assert loss.item() == 0.0
    assert not any(metrics.values())
