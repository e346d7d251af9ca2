"""A verdict is green only if every claim that was owed was looked at, once, and holds."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.smoke.matrix import Cell
from tests.smoke.verdict import Claim, Phase, Point, failures, verdict, write

OWED = {"loss_falls": "the loss falls.", "resume_is_exact": "the run goes on as if it had not been killed."}
HOLD = [Claim(name, says, True, measured=1, bound=2) for name, says in OWED.items()]


def judged(claims: list[Claim], curve: Sequence[Point] = (Point(1, 5.5, 0.5),), **hardware: float) -> dict[str, Any]:
    return verdict(
        Cell("sft", "nvidia", "fsdp", 4, ("lora",)),
        expected=OWED,
        claims=claims,
        phases=[Phase("set up", 1.5, 60.0, 1024, 2048)],
        curve=curve,
        golden=None,
        tolerance=1e-4,
        seed=0,
        versions={"torch": "2"},
        hardware={"machine": "x86_64", **hardware},
        replay="./bazelw test X",
        completions=[{"prompt": "1 + 1?", "completion": "2", "rewards": {"exact": 1.0}}],
    )


def test_all_claims_that_hold_are_a_proof(tmp_path: Path) -> None:
    content = judged(HOLD)
    assert content["status"] == "proven"
    assert json.loads(write(content, tmp_path / "new").read_text()) == content
    assert content["cell"] == {
        "name": "sft_lora_fsdp_x4.gpu-nvidia",
        "recipe": "sft",
        "variant": "nvidia",
        "framework": "fsdp",
        "cards": 4,
        "features": ["lora"],
    }
    assert content["target"] == "//tests/smoke:smoke.sft_lora_fsdp_x4.gpu-nvidia"
    assert content["phases"] == [
        {"name": "set up", "seconds": 1.5, "seconds_max": 60.0, "bytes_written": 1024, "bytes_max": 2048}
    ]
    assert content["completions"] == [{"prompt": "1 + 1?", "completion": "2", "rewards": {"exact": 1.0}}]
    assert content["curve"] == [{"step": 1, "loss": 5.5, "gradient_norm": 0.5}]


@pytest.mark.parametrize(
    ("claims", "said"),
    [
        ([], "resume_is_exact: the run goes on as if it had not been killed. measured None, bound None. it was not"),
        (HOLD[:1], "it was not evaluated"),
        ([*HOLD, HOLD[0]], "loss_falls: the loss falls. measured 1, bound 2. evaluated twice"),
        ([*HOLD, Claim("new", "it is new.", True)], "no claim of this kind of cell"),
        ([HOLD[0], Claim("resume_is_exact", "goes on.", False, 3, 4, "step 6")], "measured 3, bound 4. step 6"),
    ],
)
def test_a_claim_that_is_missing_repeated_unknown_or_false_is_a_failure(claims: list[Claim], said: str) -> None:
    content = judged(claims)
    assert content["status"] == "failed"
    assert said in failures(content)
    assert failures(content).endswith("replay: ./bazelw test X")


def test_numbers_that_json_has_not_are_words_in_claims_and_null_in_curves(tmp_path: Path) -> None:
    nan, infinite = float("nan"), float("inf")
    claim = Claim("loss_falls", "x.", False, {"losses": [5.5, nan], "exports": ({"difference": infinite},)}, -infinite)
    content = json.loads(write(judged([claim], [Point(1, 5.5, nan), Point(2, infinite, 1.0)]), tmp_path).read_text())
    assert content["claims"][0]["measured"] == {"losses": [5.5, "nan"], "exports": [{"difference": "inf"}]}
    assert content["claims"][0]["bound"] == "-inf"
    assert content["curve"] == [
        {"step": 1, "loss": 5.5, "gradient_norm": None},
        {"step": 2, "loss": None, "gradient_norm": 1.0},
    ]
    assert content["status"] == "failed"


def test_they_are_no_verdict_where_none_can_be(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write(judged(HOLD, cores=float("nan")), tmp_path)
