"""Small arithmetic with shown work: sums of two numbers of three digits, added column by column.

    user:       386+457
    assistant:  6+7=13,8+5+1=14,3+4+1=8:843

The right-hand column comes first, with the carry written where it is added, so that each token can be told from a few
others: a model of a hundred thousand weights learns the method in a minute, or does not learn it, and which of the two
is what the benchmark asks. Nothing can be learned by heart that helps: a problem and its mirror image (457+386) are one
problem, and no problem is on both sides of the split.

Where rewards or pairs are to teach something, a model is first shown workings of which six in ten carry the wrong way
round: one where there is none, and none where there is one. It comes to work sums in both ways, and rather in the wrong
one. Which of them is right, only feedback says then: a reward for the right total, or a preference for one of two.

    chosen:     6+7=13,8+5+1=14,3+4+1=8:843
    rejected:   6+7=13,8+5=13,3+4=7:733
"""

import random
import re
from pathlib import Path
from typing import Any, NamedTuple

from tests.benchmark.tasks.task import Data, Problem, Sample, Task, asked
from training.models.tiny import tiny_model, tiny_tokenizer

SMALLEST, LARGEST = 100, 999
SHARE_WRONG = 0.6
"""Of the workings that a model is warmed up on."""
NUM_TRAINING, NUM_HELD_OUT = 8000, 200
HELD_OUT_SEED = -1
"""Not a seed that a run can have."""

Unordered = tuple[int, int]


class Sum(NamedTuple):
    """Two numbers to add."""

    a: int
    b: int

    @property
    def question(self) -> str:
        """The user's turn."""
        return f"{self.a}+{self.b}"

    @property
    def answer(self) -> str:
        """The assistant's turn: each column, then the sum."""
        return self.worked(wrongly=False)

    def worked(self, *, wrongly: bool) -> str:
        """Each column, then the sum; wrongly with a carry where there is none, and none where there is one."""
        columns, found, carry = [], 0, 0
        for at, (one, other) in enumerate(zip(reversed(str(self.a)), reversed(str(self.b)), strict=True)):
            if wrongly and at:
                carry = 1 - carry
            total = int(one) + int(other) + carry
            columns.append(f"{one}+{other}{'+1' if carry else ''}={total}")
            carry = total // 10
            found += (total - 10 * carry) * 10**at
        return f"{','.join(columns)}:{found + carry * 10 ** len(columns)}"

    @property
    def unordered(self) -> Unordered:
        """The same for both orders of the two numbers."""
        return min(self), max(self)


def sums(num: int, *, seed: int, without: frozenset[Unordered] = frozenset()) -> list[Sum]:
    """That many different problems, none of them in either order among `without`."""
    draw = random.Random(f"arithmetic {seed}")
    found: dict[Unordered, Sum] = {}
    while len(found) < num:
        problem = Sum(draw.randint(SMALLEST, LARGEST), draw.randint(SMALLEST, LARGEST))
        if problem.unordered not in without:
            found.setdefault(problem.unordered, problem)
    return list(found.values())


def final_number(text: str) -> str | None:
    """What stands after the last colon, if it is a number: the answer that is judged, whatever the work was."""
    match = re.search(r":(\d+)$", text)
    return match[1] if match else None


def judged(problem: Sum) -> Problem:
    """The sum as a question with its judge: 1 for the right number at the end, else 0."""
    right = str(problem.a + problem.b)
    return Problem(problem.question, lambda text: float(final_number(text) == right))


def is_right(prompt: Any, completion: str, *, answer: int, **others: Any) -> float:
    """The same judge as a reward of the command line's."""
    return float(final_number(completion) == str(answer))


def pair(problem: Sum) -> Sample:
    """The right working and the wrong one."""
    return {"prompt": problem.question, "chosen": problem.answer, "rejected": problem.worked(wrongly=True)}


def either(problem: Sum) -> Sample:
    """The sum with one of the two workings, drawn by the problem: rather the wrong one."""
    wrongly = random.Random(problem.question).random() < SHARE_WRONG
    return asked(problem.question, problem.worked(wrongly=wrongly))


def arithmetic_data(seed: int) -> Data:
    """Sums to train on, drawn by the seed, and 200 held out, the same for all."""
    held_out = sums(NUM_HELD_OUT, seed=HELD_OUT_SEED)
    training = sums(NUM_TRAINING, seed=seed, without=frozenset(each.unordered for each in held_out))
    return Data(
        training=[asked(each.question, each.answer) for each in training],
        held_out=[asked(each.question, each.answer) for each in held_out],
        problems=[judged(each) for each in held_out],
        prompts=[{"prompt": each.question, "answer": each.a + each.b} for each in training],
        warm_up=[either(each) for each in training],
        pairs=[pair(each) for each in training],
        held_out_pairs=[pair(each) for each in held_out],
    )


def write_model(directory: Path, seed: int) -> None:
    """Writes a Llama of 140,000 random weights over bytes, with its tokenizer."""
    model = tiny_model(
        "llama",
        seed=seed,
        hidden_size=64,
        intermediate_size=192,
        num_key_value_heads=4,
        # Between transformers' 0.02, from which this small a model starts slowly, and the tests' 0.1.
        initializer_range=0.05,
    )
    model.save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory)


ARITHMETIC = Task(
    "arithmetic",
    write_model,
    arithmetic_data,
    num_new_tokens_max=48,
    reward="tests.benchmark.tasks.arithmetic:is_right",
)
