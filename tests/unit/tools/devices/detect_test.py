"""Which cards are found on machines whose drivers say so; the machines are folders, no card was ever asked."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.tools.devices.machines import amd, intel, nvidia_smi
from tools.bazel.starlark import starlark
from tools.devices.detect import PROBES, Device, by_accelerator, default, devices, fingerprint, hint
from tools.pools.table import TABLE

H100 = "GPU-5f1e, NVIDIA H100 80GB HBM3, 81559, 570.86.15"
KIND = "NVIDIA H100 80GB HBM3, 80 GiB, driver 570.86.15"
GIB = 2**30


def test_every_accelerator_of_the_table_has_a_probe() -> None:
    rows = starlark(Path(TABLE).read_text())["ACCELERATORS"]
    assert set(PROBES) == {accelerator for accelerator, row in rows.items() if row.cards}


def test_a_machine_without_cards_has_none(tmp_path) -> None:
    assert devices(tmp_path, "") == []


def test_nvidia_cards_are_those_that_the_drivers_program_lists(tmp_path) -> None:
    search = nvidia_smi(tmp_path / "bin", H100, "GPU-77aa, NVIDIA H100 80GB HBM3, 81559, 570.86.15")
    found = devices(tmp_path, str(search))
    assert found[0] == Device("gpu-nvidia", "GPU-5f1e", "NVIDIA H100 80GB HBM3", 81559 * 2**20, "570.86.15")
    assert [each.identity for each in found] == ["GPU-5f1e", "GPU-77aa"]


@pytest.mark.parametrize(
    ("lines", "code"),
    [
        (("NVIDIA-SMI has failed because it could not communicate with the NVIDIA driver.",), 9),
        ((H100,), 9),
        (("No devices were found",), 0),
        (("GPU-5f1e, NVIDIA GB10, [N/A], 580.1",), 0),
    ],
)
def test_a_driver_that_fails_or_knows_no_memory_has_no_card(tmp_path, lines, code) -> None:
    assert devices(tmp_path, str(nvidia_smi(tmp_path / "bin", *lines, code=code))) == []


def test_amd_cards_are_nodes_with_vector_units_in_the_order_of_their_numbers(tmp_path) -> None:
    found = devices(amd(tmp_path, 3), "")
    assert [each.identity for each in found] == [f"GPU-{0xABC0 + card:016x}" for card in range(3)]
    assert found[0] == Device("gpu-amd", "GPU-000000000000abc0", "gfx942 0x74a1", 192 * GIB, "6.12.12")


def test_an_amd_card_without_a_number_of_its_own_is_known_by_its_address(tmp_path) -> None:
    amd(tmp_path, 2)
    for file in tmp_path.glob("sys/class/kfd/kfd/topology/nodes/*/properties"):
        file.write_text(file.read_text().replace("unique_id 43969", "unique_id 0"))
    assert [each.identity for each in devices(tmp_path, "")] == ["GPU-000000000000abc0", "0000:01:00.0"]


def test_a_card_that_was_not_handed_to_this_container_is_not_counted(tmp_path) -> None:
    assert len(devices(amd(tmp_path, 4, reachable=2), "")) == 2


def test_intel_cards_have_memory_of_their_own_and_come_by_address(tmp_path) -> None:
    found = devices(intel(tmp_path), "")
    assert [each.identity for each in found] == ["0000:1b:00.0", "0000:9a:00.0"]
    assert {(each.accelerator, each.name, each.memory_bytes) for each in found} == {
        ("gpu-intel", "Intel 0x0bd5", 48 * GIB)
    }
    assert found[0].driver == f"xe {os.uname().release}"


def test_a_fingerprint_names_model_memory_and_driver_and_not_which_card_it_was(tmp_path) -> None:
    one, other = devices(tmp_path, str(nvidia_smi(tmp_path / "bin", H100, H100.replace("5f1e", "77aa"))))
    assert fingerprint([one]) == fingerprint([other]) == fingerprint([other, one])
    assert fingerprint([one]) == KIND
    for changed in ({"driver": "580.1"}, {"name": "NVIDIA H200"}, {"memory_bytes": 141 * GIB}):
        assert fingerprint([replace(one, **changed)]) != fingerprint([one])


def test_amd_cards_of_one_architecture_are_told_apart_by_their_number_and_by_their_memory(tmp_path) -> None:
    words = [
        fingerprint(devices(amd(tmp_path / "mi300x", 1), "")),
        fingerprint(devices(amd(tmp_path / "mi325x", 1, device_id=0x74A5), "")),
        fingerprint(devices(amd(tmp_path / "partition", 1, gib=24), "")),
    ]
    assert words[0] == "gfx942 0x74a1, 192 GiB, driver 6.12.12"
    assert len(set(words)) == 3


def test_of_two_kinds_of_cards_tests_are_given_one_and_the_others_are_named(tmp_path) -> None:
    older = "NVIDIA L4, 23034, 570.86.15"
    found = devices(tmp_path, str(nvidia_smi(tmp_path / "bin", f"GPU-a, {older}", H100, f"GPU-b, {older}")))
    assert fingerprint(found) == "NVIDIA L4, 22 GiB, driver 570.86.15"
    assert [each.identity for each in by_accelerator(found)["gpu-nvidia"]] == ["GPU-a", "GPU-b"]
    assert fingerprint(found[:2]) == KIND, "of as many, those with more memory"
    assert hint(found, ["gpu-nvidia"]) == (
        f"cards that no test is given: {KIND}; the results of a machine are of one kind of card"
    )


def test_without_a_word_tests_of_the_most_cards_run_that_there_is_a_torch_for(tmp_path) -> None:
    here = devices(amd(intel(tmp_path), 4), str(nvidia_smi(tmp_path / "bin", H100, H100)))
    every = ["cpu", *PROBES]
    assert default(here, every) == "gpu-amd"
    assert default(here, ["cpu", "gpu-intel", "gpu-nvidia"]) == "gpu-intel"
    assert default(here, ["cpu"]) == default([], every) == ""
    assert hint(here, every) == ""
    assert hint(here, ["cpu", "gpu-nvidia"]).startswith("cards of gpu-amd, gpu-intel, and no lock")


def test_bazel_is_told_in_json(tmp_path) -> None:
    search = nvidia_smi(tmp_path / "bin", H100)
    told = subprocess.run(
        [sys.executable, "tools/devices/detect.py", "cpu", "gpu-nvidia"],
        env={"PATH": str(search)},
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(told.stdout)
    assert found["default"] == "gpu-nvidia"
    assert "gpu-nvidia" in {each["accelerator"] for each in found["cards"]}
    assert found["fingerprints"]["gpu-nvidia"] == KIND
    assert found["counts"]["gpu-nvidia"] == 1
