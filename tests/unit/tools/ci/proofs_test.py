import json
from pathlib import Path
from typing import Any

import pytest

from tests.unit.tools.ci import smoke_files
from tools.ci.cells import BadFile, Verdict, parse_verdict
from tools.ci.checkout import Commit
from tools.ci.proofs import FOLDER, prove, read_ledger, read_ledgers
from tools.ci.store import fingerprint

CLEAN = Commit("0123456789abcdef", "A subject", "2026-11-25", changed=False)
LORA = smoke_files.cell("nvidia", "fsdp", 1, ("lora",))
PLAIN = smoke_files.cell("nvidia", "single", 1, ())
HARDWARE = {"machine": "x86_64", "accelerators": [{"name": "H100"}]}


def verdict(cell: dict[str, Any], problem: str = "", **changes: Any) -> tuple[Verdict, str]:
    return parse_verdict(smoke_files.verdict(cell, **{"hardware": HARDWARE, **changes}), "v"), problem


def test_proven_cells_are_entered_by_hardware_and_kept(tmp_path: Path) -> None:
    (path,) = prove(tmp_path, [verdict(LORA), verdict(PLAIN, "it failed")], CLEAN)
    assert path.name == f"{fingerprint(HARDWARE)}.json"
    later = Commit("fedcba", "Later", "2026-11-26", changed=False)
    assert prove(tmp_path, [verdict(PLAIN)], later) == [path]
    cells = read_ledger(path).cells
    assert list(cells) == ["nvidia/sft_lora_fsdp_x1.gpu-nvidia", "nvidia/sft_single_x1.gpu-nvidia"]
    assert cells["nvidia/sft_lora_fsdp_x1.gpu-nvidia"]["commit"] == CLEAN.id
    assert cells["nvidia/sft_single_x1.gpu-nvidia"]["commit"] == "fedcba"
    assert "resume_is_exact" in cells["nvidia/sft_single_x1.gpu-nvidia"]["claims"]


def test_each_kind_of_hardware_has_its_own_file(tmp_path: Path) -> None:
    other = {"machine": "x86_64", "accelerators": [{"name": "A100"}]}
    prove(tmp_path, [verdict(LORA), verdict(LORA, hardware=other)], CLEAN)
    assert [ledger.name for ledger in read_ledgers(tmp_path)] == sorted([fingerprint(HARDWARE), fingerprint(other)])


def test_a_changed_checkout_proves_no_commit(tmp_path: Path) -> None:
    with pytest.raises(BadFile, match="files differ from 0123456789; expected a clean checkout"):
        prove(tmp_path, [verdict(LORA)], Commit(CLEAN.id, "", "", changed=True))
    assert list(tmp_path.iterdir()) == []


def test_nothing_proven_is_an_error(tmp_path: Path) -> None:
    why = (
        r"none of 1 verdicts is proven; expected at least one\. nvidia/sft_lora_fsdp_x1\.gpu-nvidia: no claim\. hint: "
    )
    with pytest.raises(BadFile, match=why):
        prove(tmp_path, [verdict(LORA, "no claim")], CLEAN)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: "{", "is no ledger"),
        (lambda text: "[]", "is no ledger"),
        (lambda text: json.dumps({**json.loads(text), "schema": 2}), "schema is 2; expected 1"),
        (lambda text: json.dumps({**json.loads(text), "hardware": {"cores": 9}}), "expected its own name"),
        (lambda text: text.replace('"claims"', '"clams"'), "lacks a commit, a date or claims"),
    ],
)
def test_a_ledger_that_was_tampered_with_is_named(tmp_path: Path, change: Any, message: str) -> None:
    (path,) = prove(tmp_path, [verdict(LORA)], CLEAN)
    path.write_text(change(path.read_text()))
    with pytest.raises(BadFile) as error:
        read_ledgers(tmp_path)
    assert str(error.value).startswith(f"{path}: ")
    assert message in str(error.value)


def test_the_ledgers_that_are_checked_in_can_be_read() -> None:
    folder = Path(__file__).parents[4] / FOLDER
    assert len(read_ledgers(folder)) == len(list(folder.glob("*.json")))
