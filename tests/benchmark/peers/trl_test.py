"""TRL computes the same loss and gradient on the same batch; where it means to differ, by exactly its formula.

Its trainers are made as anybody makes them, on a model of the same weights, and asked for their loss of a padded batch.
Ours are the packs that a step would see, several of them, and the sum divided once.

Shapes: B sequences of TRL's batch, T their tokens, P pairs, S samples, N completions.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.nn.functional import logsigmoid
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, KTOConfig, KTOTrainer, RLOOConfig, RLOOTrainer
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

from tests.support.examples import example
from tests.support.tolerances import GRADIENT_FP32
from training.algorithms.advantages import group_advantages, rloo_advantages
from training.algorithms.algorithm import Algorithm
from training.algorithms.grpo import ADVANTAGES, POLICY, Grpo, LengthNormalization, token_weight
from training.algorithms.grpo import REFERENCE as REFERENCE_T
from training.algorithms.kto import DESIRABLE, Kto
from training.algorithms.preference import REFERENCE, Preference, document_logprobs
from training.config import KtoSettings, PreferenceConfig
from training.data.batch import Batch, Microbatch, microbatch
from training.data.example import Example
from training.data.loader import Loader
from training.data.pairs import joined, pair_example, read_pairs
from training.data.render import render_each
from training.models.forward import logprobs
from training.models.tiny import save_tiny, tiny_model, tiny_tokenizer

LOSS = 1e-5
"""How far two losses of about 1 may be apart: sums of float32 in another order. Seen: 8e-7."""

BEGIN, PAD = tiny_tokenizer("none").bos_token_id, tiny_tokenizer("none").pad_token_id
COMPLETION_TOKENS_MAX = 12


@dataclass(frozen=True)
class Learned:
    """What one of the two came to."""

    loss: float
    gradients: Mapping[str, Tensor]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose weights are those of `moved(0)`, with its tokenizer.

    One token in six ends a completion, so that a random model draws some of every length.
    """
    directory = save_tiny(tmp_path_factory.mktemp("base"))
    ends = [tiny_tokenizer("none").eos_token_id, *range(40)]
    GenerationConfig(bos_token_id=BEGIN, eos_token_id=ends, pad_token_id=PAD).save_pretrained(directory)
    return directory


def moved(times: int) -> PreTrainedModel:
    """Our tiny model, pushed away from its first weights so many times, each time another way."""
    model = tiny_model()
    for number in range(times):
        generator = torch.Generator().manual_seed(number)
        with torch.no_grad():
            for weight in model.parameters():
                weight += 0.02 * torch.randn(weight.shape, generator=generator)
    return model


def theirs_of(base: Path, times: int) -> Any:
    """A model of TRL's with the weights of `moved(times)`, in the attention that transformers takes by itself."""
    model = AutoModelForCausalLM.from_pretrained(base)
    model.load_state_dict(moved(times).state_dict())
    return model


def settings(out: Path, **others: Any) -> dict[str, Any]:
    """What a trainer needs to be told to stay on the processor and to itself."""
    return {"output_dir": str(out), "use_cpu": True, "bf16": False, "report_to": "none", "disable_tqdm": True, **others}


def taken(loss: Tensor, model: nn.Module) -> Learned:
    """Loss and gradients, with those of earlier calls removed."""
    model.zero_grad(set_to_none=True)
    loss.backward()
    # PEFT aside, names are the same on both sides.
    return Learned(loss.item(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})


def ours(
    algorithm: Algorithm[Batch, Microbatch], examples: Sequence[Example], model: nn.Module, tokens: int = 64
) -> Learned:
    """One step over the examples in packs of so many tokens, as `training.step` adds it up."""
    batch = Loader(examples, samples_per_step=len(examples), tokens_per_rank_max=tokens, seed=0).batch(0)
    assert len(examples) == 1 or len(batch.microbatches) > 1
    total = sum((algorithm.loss_sum(partial(logprobs, model), each)[0] for each in batch.microbatches), torch.zeros(()))
    return taken(total / algorithm.divisor(batch), model)


def assert_same(one: Learned, other: Learned, scale: float = 1.0) -> None:
    """The loss within 1e-5 and the gradient within rounding of its largest entry; `scale` times the other."""
    assert one.loss == pytest.approx(scale * other.loss, abs=LOSS)
    assert_same_gradient(one, other, scale)


def assert_same_gradient(one: Learned, other: Learned, scale: float = 1.0) -> None:
    """Every weight has one on both sides, and they are the same."""
    assert one.gradients.keys() == other.gradients.keys()
    largest = max(each.abs().max().item() for each in one.gradients.values())
    assert largest > 0
    for name, gradient in one.gradients.items():
        assert (gradient - scale * other.gradients[name]).abs().max() <= GRADIENT_FP32 * largest, name


def padded(rows: Sequence[Sequence[int]], fill: int) -> Tensor:
    """The rows filled up at their ends, int64 [B, T]."""
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[fill] * (longest - len(row))] for row in rows])


# Pairs and labels: a prompt, and completions of it.

Side = tuple[list[int], list[int]]


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


# Rewards.


@dataclass
class Judge:
    """A reward of what was drawn that is not the same for any two, and what it has said."""

    said: list[float]

    @property
    def __name__(self) -> str:
        return "judge"

    def __call__(self, completion_ids: Sequence[Sequence[int]], **others: Any) -> list[float]:
        self.said = [(sum(ids) % 97) / 97 + 0.01 * len(ids) for ids in completion_ids]
        return self.said


PROMPTS = Dataset.from_list([{"prompt": text} for text in ("one", "2 + 2 =", "a longer prompt", "b")])
NUM_OF_EACH = 4


@dataclass
class Rollout:
    """A rollout by a trainer of TRL, from weights `moved(1)`, with `moved(0)` as its reference."""

    trainer: Any
    inputs: dict[str, Any]
    rewards: Tensor

    @property
    def rows(self) -> list[Side]:
        """Prompts and completions without their padding."""
        ids = {name: self.inputs[f"{name}_ids"] for name in ("prompt", "completion")}
        masks = {name: self.inputs[f"{name}_mask"].bool() for name in ("prompt", "completion")}
        return [
            (prompt[keeps].tolist(), completion[kept].tolist())
            for prompt, keeps, completion, kept in zip(
                ids["prompt"], masks["prompt"], ids["completion"], masks["completion"], strict=True
            )
        ]

    def learned(self, rows: slice = slice(None), times: int = 2) -> Learned:
        """TRL's loss of these completions at other weights, as in a second step of the same rollout."""
        self.trainer.model.load_state_dict(moved(times).state_dict())
        inputs = {
            name: value[rows] if isinstance(value, Tensor) and value.dim() else value
            for name, value in self.inputs.items()
        }
        return taken(self.trainer.compute_loss(self.trainer.model, inputs), self.trainer.model)


def rollout(kind: Any, config: Any, base: Path, out: Path, **others: Any) -> Rollout:
    """Completions drawn and judged by the trainer, as it does before a step."""
    judge = Judge([])
    trainer: Any = kind(
        model=str(base),
        reward_funcs=judge,
        args=config(
            **settings(out),
            per_device_train_batch_size=16,
            per_device_eval_batch_size=16,
            num_generations=NUM_OF_EACH,
            # Two steps of each rollout, so that it keeps what the policy was.
            num_iterations=2,
            max_completion_length=COMPLETION_TOKENS_MAX,
            temperature=1.0,
            model_init_kwargs={"dtype": "float32"},
            **others,
        ),
        train_dataset=PROMPTS,
        processing_class=tiny_tokenizer(),
    )
    trainer.model.load_state_dict(moved(1).state_dict())
    # In evaluation a loss is that of the batch itself, not a share of an accumulated one.
    trainer.model.eval()
    torch.manual_seed(0)
    inputs = trainer._prepare_inputs([each for each in PROMPTS for _ in range(NUM_OF_EACH)])
    drawn = Rollout(trainer, inputs, torch.tensor(judge.said))
    assert len({len(completion) for _, completion in drawn.rows}) > 3, "else ways to weigh lengths are all the same"
    return drawn


def examples_of(drawn: Rollout, advantages: Tensor, normalization: LengthNormalization) -> list[Example]:
    """The completions as a rollout of ours makes them: each a sample, its tokens with their columns."""
    policy, reference = moved(1), moved(0)
    made = []
    for (prompt, completion), advantage in zip(drawn.rows, advantages.flatten().tolist(), strict=True):
        weight = token_weight(len(completion), normalization, COMPLETION_TOKENS_MAX)
        each = example(prompt + completion, [0.0] * len(prompt) + [weight] * len(completion))
        columns = {ADVANTAGES: np.full(len(each), advantage, dtype=np.float32)}
        for name, model in ((POLICY, policy), (REFERENCE_T, reference)):
            with torch.no_grad():
                said = logprobs(model, microbatch([each]), torch.arange(1, len(each)))
            columns[name] = np.concatenate([[0.0], said.numpy()]).astype(np.float32)
        made.append(replace(each, columns=columns))
    return made


def grpo_of(normalization: LengthNormalization, **others: Any) -> Grpo:
    return Grpo(**{"clip_low": 0.2, "clip_high": 0.28, "normalization": normalization, **others})


GRPO: dict[str, LengthNormalization] = {"grpo": "sequence", "dapo": "token", "bnpo": "token", "dr_grpo": "constant"}


@pytest.mark.parametrize("loss", GRPO)
def test_grpo(loss: str, base: Path, tmp_path: Path) -> None:
    """Advantages too; at weights that have moved, so that ratios are not 1 and some are clipped."""
    is_scaled = loss != "dr_grpo"
    drawn = rollout(
        GRPOTrainer,
        GRPOConfig,
        base,
        tmp_path,
        loss_type=loss,
        beta=0.04,
        epsilon=0.2,
        epsilon_high=0.28,
        scale_rewards="group" if is_scaled else "none",
        use_bias_correction_kl=False,
    )
    advantages = group_advantages(drawn.rewards.view(-1, NUM_OF_EACH), divide_by_std=is_scaled)
    assert torch.allclose(advantages.flatten(), drawn.inputs["advantages"], atol=LOSS)
    examples = examples_of(drawn, advantages, GRPO[loss])
    algorithm = grpo_of(GRPO[loss], kl_coefficient=0.04)
    assert_same(ours(algorithm, examples, moved(2)), drawn.learned())
    _, described = algorithm.loss_sum(partial(logprobs, moved(2)), microbatch(examples))
    assert described["clip_fraction"] > 0

    # The same completions as two batches of a device: a sum over all tokens, or a mean of two means.
    halves = [drawn.learned(half) for half in (slice(0, 8), slice(8, 16))]
    if loss == "dapo":
        assert sum(each.loss for each in halves) == pytest.approx(ours(algorithm, examples, moved(2)).loss, abs=LOSS)
    if loss == "bnpo":
        by_halves = [ours(algorithm, examples[half], moved(2)).loss for half in (slice(0, 8), slice(8, 16))]
        assert [each.loss for each in halves] == pytest.approx(by_halves, abs=LOSS)
        assert abs(sum(by_halves) / 2 - ours(algorithm, examples, moved(2)).loss) > 10 * LOSS


def test_trl_multiplies_the_divergence_by_the_ratio_unless_told_not_to(base: Path, tmp_path: Path) -> None:
    """GRPO's equation 3 has KL_t beside the ratio, not under it; TRL's own default has ρ_t KL_t."""
    drawn = rollout(
        GRPOTrainer,
        GRPOConfig,
        base,
        tmp_path,
        loss_type="grpo",
        beta=0.5,
        scale_rewards="group",
        use_bias_correction_kl=True,
        epsilon=0.2,
        epsilon_high=0.28,
    )
    examples = examples_of(drawn, drawn.inputs["advantages"], "sequence")
    algorithm = grpo_of("sequence", kl_coefficient=0.5)
    extra = 0.0
    for each in examples:
        at = torch.tensor(np.flatnonzero(each.weights))
        with torch.no_grad():
            now = logprobs(moved(2), microbatch([each]), at)
        _, described = algorithm.losses(now, {name: torch.tensor(c)[at] for name, c in each.columns.items()})
        extra += 0.5 * (described["kl"] * (described["ratio"] - 1)).mean().item() / len(examples)
    assert abs(extra) > 10 * LOSS
    assert drawn.learned().loss == pytest.approx(ours(algorithm, examples, moved(2)).loss + extra, abs=LOSS)


def test_rloo_has_trls_gradient_on_policy(base: Path, tmp_path: Path) -> None:
    """Σ_t log π(x_t) of whole sequences; `constant` has 1 / L before it, and a loss of its own scale.

    On policy TRL's loss is −mean(A), which is 0, and ours −Σ A_i |y_i| / (L N): other numbers of the same gradient.
    """
    drawn = rollout(RLOOTrainer, RLOOConfig, base, tmp_path, beta=0.0, epsilon=0.2)
    advantages = rloo_advantages(drawn.rewards.view(-1, NUM_OF_EACH)).flatten()
    assert torch.allclose(advantages, drawn.inputs["advantages"], atol=LOSS)
    by_trl = drawn.learned(times=1)
    by_us = ours(grpo_of("constant"), examples_of(drawn, advantages, "constant"), moved(1))
    assert_same_gradient(by_us, by_trl, 1 / COMPLETION_TOKENS_MAX)
    lengths = torch.tensor([len(completion) for _, completion in drawn.rows])
    assert by_trl.loss == pytest.approx(-advantages.mean().item(), abs=LOSS)
    assert by_us.loss == pytest.approx(-(advantages * lengths).mean().item() / COMPLETION_TOKENS_MAX, abs=LOSS)


def test_rloo_off_policy_clips_a_sequence_in_trl_and_a_token_here(base: Path, tmp_path: Path) -> None:
    """And its divergence is taken off the reward, k1 summed over the completion (RLOO's paper, section 3)."""
    drawn = rollout(RLOOTrainer, RLOOConfig, base, tmp_path, beta=0.5, epsilon=0.2)
    whole = examples_of(drawn, torch.zeros(16), "constant")
    counted = [np.flatnonzero(each.weights) for each in whole]
    k1 = [(each.columns[POLICY] - each.columns[REFERENCE_T])[at].sum() for each, at in zip(whole, counted, strict=True)]
    advantages = rloo_advantages((drawn.rewards - 0.5 * torch.tensor(np.array(k1))).view(-1, NUM_OF_EACH)).flatten()
    assert torch.allclose(advantages, drawn.inputs["advantages"], atol=LOSS)
    ratios = []
    for each, at in zip(whole, counted, strict=True):
        with torch.no_grad():
            now = logprobs(moved(2), microbatch([each]), torch.tensor(at))
        ratios.append((now.numpy() - each.columns[POLICY][at]).sum())
    rho = torch.tensor(np.exp(np.array(ratios)))
    by_hand = -torch.minimum(rho * advantages, rho.clamp(0.8, 1.2) * advantages).mean().item()
    assert drawn.learned().loss == pytest.approx(by_hand, rel=1e-5, abs=LOSS)
