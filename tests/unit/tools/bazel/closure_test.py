"""What code of each weight drags into an action: the budgets, and that a wheel counts only where it is used."""

import json
import pathlib

import pytest

CLOSURES = json.loads(pathlib.Path("tests/unit/tools/bazel/closures.json").read_text())

# Wheels that a target may bring along, at most. A test adds pytest and what it needs: 5.
NOTHING = 0
NUMPY = 1
LIBRARY_BUDGETS = {
    "//training:config": NOTHING,
    "//training:errors": NOTHING,
    "//training:plan": NOTHING,
    "//training:schedule": NOTHING,
    "//training/data:pack": NOTHING,
    "//training/data:read": NOTHING,
    "//training/data:render": NUMPY,
}
HEAVY = {"accelerate", "deepspeed", "peft", "tokenizers", "torch", "transformers"}
# Inputs of a whole test, wheels and sources together; the interpreter is not among them.
TIER_BUDGETS = {
    "//tests/unit/tools/bazel:macros_test": 30,
    "//tools/lint:floors_test": 45,
    "//tests/benchmark/hermetic:torch_stack_1": 130,
}


@pytest.mark.parametrize(("target", "budget"), LIBRARY_BUDGETS.items())
def test_light_code_stays_light(target: str, budget: int) -> None:
    wheels = CLOSURES[target]["wheels"]
    assert len(wheels) <= budget, f"{target} now brings {', '.join(wheels)}"
    assert not set(wheels) & HEAVY


@pytest.mark.parametrize(("target", "budget"), TIER_BUDGETS.items())
def test_a_tier_stays_within_its_number_of_inputs(target: str, budget: int) -> None:
    assert CLOSURES[target]["num_inputs"] <= budget


def test_the_heaviest_test_has_two_inputs_for_each_wheel() -> None:
    stack, empty = (CLOSURES[f"//tests/benchmark/hermetic:{name}_1"] for name in ("torch_stack", "empty"))
    assert {"deepspeed", "peft", "torch", "transformers"} <= set(stack["wheels"])
    assert stack["num_inputs"] - empty["num_inputs"] == 2 * (len(stack["wheels"]) - len(empty["wheels"]))


def test_a_wheel_that_a_test_never_depended_on_cannot_make_it_run_again() -> None:
    assert "rich" in CLOSURES["//training/metrics:metrics"]["wheels"]
    assert "rich" not in CLOSURES["//tests/unit/tools/bazel:macros_test"]["wheels"]
    assert "rich" not in CLOSURES["//training/data:render"]["wheels"]
