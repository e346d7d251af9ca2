import json
import math
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.unit.tools.ci import smoke_files
from tools.ci.cells import BadFile, Cell, parse_verdict, read_matrix, verdicts_in

LORA = smoke_files.cell("cpu", "fsdp", 2, ("lora",))


def changed(**changes: Any) -> str:
    return smoke_files.verdict(LORA, **changes)


def without(name: str) -> str:
    record = json.loads(smoke_files.verdict(LORA))
    del record[name]
    return json.dumps(record)


def test_a_verdict_says_what_its_file_says() -> None:
    verdict = parse_verdict(smoke_files.verdict(LORA), "verdict.json")
    assert (verdict.cell.name, verdict.cell.features, verdict.cell.cards) == ("sft_lora_fsdp_x2", ("lora",), 2)
    assert [claim.name for claim in verdict.claims][:2] == ["loss_falls", "resume_is_exact"]
    assert verdict.seconds == pytest.approx(17.0)
    assert verdict.curve == verdict.golden
    assert verdict.problem == ""


def test_a_loss_that_is_no_number_is_still_read() -> None:
    raw = changed(curve=[{"step": 1, "loss": None, "gradient_norm": float("inf")}], golden=None)
    verdict = parse_verdict(raw, "verdict.json")
    assert verdict.golden == ()
    assert math.isnan(verdict.curve[0].loss)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ("{", "v: is no JSON"),
        ("[]", "v: is a list; expected an object"),
        (changed(schema=2), "v: schema is 2; expected 1. hint: run its target again"),
        (changed(claims={}), "v: claims is {}; expected list"),
        (changed(claims=["ok"]), "v: claims[0] is 'ok'; expected an object"),
        (changed(claims=[{"name": "golden", "says": "", "holds": 1}]), "v: claims[0]: holds is 1; expected bool"),
        (changed(seed=True), "v: seed is True; expected int"),
        (changed(tolerance=float("inf")), "v: tolerance is inf; expected a finite number"),
        (changed(phases=[{"name": "steps"}]), "v: phases[0]: seconds is missing; expected int or float"),
        (changed(cell={"name": "a"}), "v: cell: recipe is missing; expected str"),
        (changed(completions=[{"prompt": 1, "rewards": {}}]), "v: completions[0]: prompt is 1; expected str or list"),
        (
            changed(completions=[{"prompt": "", "completion": "", "rewards": {"a": "b"}}]),
            "v: completions[0]: rewards: a is 'b'; expected int or float",
        ),
        *((without(name), f"v: {name} is missing") for name in ("cell", "target", "status", "claims", "phases")),
        *((without(name), f"v: {name} is missing") for name in ("curve", "tolerance", "seed", "replay", "versions")),
    ],
)
def test_a_verdict_that_lacks_something_is_refused_by_name(raw: str, message: str) -> None:
    with pytest.raises(BadFile) as error:
        parse_verdict(raw, "v")
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (
            {"claims": [smoke_files.claim("golden", "equal", 1, 0, holds=False, detail="off by 1")]},
            "golden: off by 1",
        ),
        ({"claims": [smoke_files.claim("a", "so", 1, 0, holds=False) for _ in range(3)]}, "a: so (and 2 more)"),
        ({"claims": []}, "it makes no claim, which proves nothing"),
        ({"status": "failed"}, "its status is 'failed' although every claim holds"),
    ],
)
def test_a_status_is_believed_only_where_the_claims_bear_it(changes: dict[str, Any], problem: str) -> None:
    assert parse_verdict(changed(**changes), "v").problem == problem


ROW = Cell("sft_lora_fsdp_x2", "sft", "cpu", "fsdp", 2, ("lora",), "blocking", LORA["target"], claims=("a", "b"))


@pytest.mark.parametrize(
    ("made", "problem"),
    [
        (("a", "b"), ""),
        (("b", "a"), ""),
        (("a",), "it makes 1 of 2 claims; without b"),
        (("c",), "it makes 0 of 2 claims; without a, b"),
        (("a", "b", "c"), "it claims c, which the matrix does not ask for once"),
        (("a", "a", "b"), "it claims a, which the matrix does not ask for once"),
    ],
)
def test_a_verdict_must_make_the_claims_that_the_matrix_has_of_its_cell(made: tuple[str, ...], problem: str) -> None:
    verdict = parse_verdict(changed(claims=[smoke_files.claim(name, "so", 0, 0) for name in made]), "v")
    assert verdict.problem == ""
    assert verdict.against(ROW) == problem


def test_a_matrix_that_says_nothing_of_claims_proves_nothing() -> None:
    verdict = parse_verdict(changed(), "v")
    assert verdict.against(replace(ROW, claims=())).startswith("nothing says which claims it must make")


def test_completions_are_read_as_they_were_drawn() -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2"}]
    verdict = parse_verdict(
        changed(
            completions=[
                {"prompt": "1+1", "completion": "2", "rewards": {"share": 0.5, "lost": None}},
                {"prompt": messages, "completion": "4", "rewards": {}},
            ]
        ),
        "v",
    )
    first, second = verdict.completions
    assert (first.prompt, first.completion, first.rewards["share"]) == ("1+1", "2", 0.5)
    assert math.isnan(first.rewards["lost"])
    assert (second.prompt, second.rewards) == ("system: Be brief.\nuser: 2+2", {})
    assert parse_verdict(changed(), "v").completions == ()


def test_verdicts_are_found_in_folders_and_archives_at_any_depth(tmp_path: Path) -> None:
    (tmp_path / "out" / "deep").mkdir(parents=True)
    (tmp_path / "out" / "deep" / "verdict.json").write_text("1")
    (tmp_path / "out" / "other.json").write_text("2")
    assert list(verdicts_in(tmp_path / "out")) == [(str(tmp_path / "out/deep/verdict.json"), b"1")]
    assert list(verdicts_in(tmp_path / "out", "other.json")) == [(str(tmp_path / "out/other.json"), b"2")]
    with zipfile.ZipFile(tmp_path / "out" / "outputs.zip", "w") as archive:
        archive.writestr("cell/verdict.json", "3")
    assert [raw for _, raw in verdicts_in(tmp_path / "out")] == [b"1", b"3"]
    (tmp_path / "broken.zip").write_bytes(b"PK")
    with pytest.raises(BadFile, match=r"broken\.zip: cannot be unpacked"):
        list(verdicts_in(tmp_path / "broken.zip"))


def written(folder: Path, *cells: dict[str, Any]) -> Path:
    (folder / "matrix.json").write_text(json.dumps({"schema": 1, "cells": cells}))
    return folder / "matrix.json"


def test_a_matrix_keeps_refused_cells_with_their_reason(tmp_path: Path) -> None:
    refused = smoke_files.cell("cpu", "single", 2, ())
    cells = read_matrix(written(tmp_path, LORA, refused))
    assert (cells[0].refusal, cells[0].depth) == (None, "blocking")
    assert cells[1].refusal is not None
    assert cells[1].refusal.hint == "choose ddp or fsdp"


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ([LORA, LORA], "two cells are named cpu/sft_lora_fsdp_x2"),
        ([{**LORA, "target": None}], "has neither a target nor a refusal; expected one of them"),
        ([{**LORA, "refusal": smoke_files.refusal("cpu", "single", 2, ())}], "has both a target and a refusal"),
        ([{**LORA, "cards": "2"}], "cells[0]: cards is '2'; expected int"),
        ([{**LORA, "target": None, "refusal": {"field": "x"}}], "cells[0]: got is missing"),
    ],
)
def test_a_matrix_that_contradicts_itself_is_refused(tmp_path: Path, cells: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(BadFile) as error:
        read_matrix(written(tmp_path, *cells))
    assert message in str(error.value)
