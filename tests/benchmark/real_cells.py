"""The cells with a real model and real data. Apart, because each needs wheels that no other test has."""

from tests.benchmark.cells import Cell, Words
from tests.benchmark.tasks.chat import CHAT
from tests.benchmark.tasks.reasoning import REASONING
from training.quickstart.chat import has_bf16

_ANY: Words = (
    *("--precision", "bf16" if has_bf16() else "fp32", "--device", "cpu", "--progress-steps-between", "10"),
    *("--samples-per-step", "4", "--tokens-per-rank-max", "2048", "--warmup-fraction", "0.1"),
)
_REAL: Words = (*_ANY, "--lora", "--rank", "16", "--learning-rate-peak", "1e-3")
_SEEDS = (0, 1, 2)
# The model as it comes answers none of the problems, and so nothing would ever be rewarded.
_BEGUN: Words = (*_ANY, "--learning-rate-peak", "1e-4", "--num-steps", "30")

CHAT_LORA = Cell(
    task=CHAT, features=("lora",), settings=(*_REAL, "--num-steps", "60"), seeds=_SEEDS, least={"win_rate": 0.9}
)
REASONING_LORA = Cell(
    task=REASONING, features=("lora",), settings=(*_REAL, "--num-steps", "100"), seeds=_SEEDS, least={"win_rate": 0.55}
)
REASONING_GRPO = Cell(
    task=REASONING,
    features=("lora",),
    recipe="grpo",
    settings=(
        *_REAL,
        *("--samples-per-step", "128", "--sequences-per-call", "64", "--completion-tokens-max", "16"),
        *("--learning-rate-peak", "1e-4", "--num-steps", "60"),
    ),
    seeds=_SEEDS,
    warm_up=_BEGUN,
    least={},
    least_gain={"exact_match": 0.05},
)
REASONING_DPO = Cell(
    task=REASONING,
    features=("lora",),
    recipe="dpo",
    settings=(*_REAL, "--samples-per-step", "16", "--learning-rate-peak", "1e-4", "--num-steps", "60"),
    seeds=_SEEDS,
    warm_up=_BEGUN,
    least={"reward_margin": 2.0, "win_rate": 0.6},
    # Most pairs it tells already: the wrong answer is one to another question.
    least_gain={"exact_match": 0.03},
)
