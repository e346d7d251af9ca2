"""What a test that asks for cards is told where they are too few, too small, others, or without driver or torch."""

from dataclasses import replace
from pathlib import Path

import pytest

from tools.devices.check import Asked, Place, asked_in, astray, only_the_route, place, problem
from tools.devices.detect import Device, kind

GIB = 2**30
CARDS = [Device("gpu-amd", f"GPU-{each}", "gfx942", 192 * GIB, "6.12.12") for each in range(4)]
LARGER = Device("gpu-amd", "GPU-4", "gfx942", 256 * GIB, "6.12.12")
OTHER = Device("gpu-nvidia", "GPU-9", "NVIDIA L4", 22 * GIB, "570.86")
KIND = "gfx942, 192 GiB, driver 6.12.12"
ASKED = Asked("gpu-amd", 4, 15, "6.12", "hip", KIND)
VERSION = "from typing import Optional\n__version__ = '2.13.0+rocm7.2'\ncuda: Optional[str] = None\n"
VERSION += "hip: Optional[str] = '7.2.26015'\nxpu: Optional[str] = None\n"


@pytest.fixture
def torch_version(tmp_path: Path) -> Path:
    """The version.py of a ROCm build, as the wheel has it."""
    (tmp_path / "version.py").write_text(VERSION)
    return tmp_path / "version.py"


def test_what_was_asked_for_is_no_problem(torch_version) -> None:
    assert problem(ASKED, [*CARDS, OTHER], None, torch_version) is None
    assert problem(ASKED, CARDS, None, None) is None, "a test that does not bring torch"
    assert problem(replace(ASKED, cards=1), CARDS, "GPU-2", None) is None
    assert problem(replace(ASKED, driver=""), CARDS, None, None) is None, "any driver"
    assert problem(ASKED, [*CARDS, LARGER], "GPU-0,GPU-1,GPU-2,GPU-3", None) is None, "none of them is the other one"


@pytest.mark.parametrize(
    ("asked", "found", "leased", "said"),
    [
        ({}, [], None, "cards: 0 of gpu-amd; expected 4 or more. hint: run it where they are"),
        ({}, [OTHER], None, "cards: 0 of gpu-amd, beside gpu-nvidia; expected 4 or more."),
        ({}, CARDS[:3], None, "cards: 3 of gpu-amd; expected 4 or more."),
        ({}, CARDS, "GPU-0,GPU-3", "cards: 2 of gpu-amd; expected 4 or more."),
        ({"cards": 1}, CARDS, "", "cards: 0 of gpu-amd; expected 1 or more."),
        ({"card_gib": 193}, CARDS, None, "memory: 192.0 GiB on gfx942; expected 193 or more. hint: memory_gib in"),
        ({"driver": "6.12.13"}, CARDS, None, "driver: 6.12.12 of gfx942; expected 6.12.13 or newer, for the build"),
        ({"driver": "7"}, CARDS, None, "driver: 6.12.12 of gfx942; expected 7 or newer"),
        ({"driver": "6.100"}, CARDS, None, "driver: 6.12.12 of gfx942; expected 6.100 or newer"),
        (
            {"hardware": "gfx90a, driver 6.12.12"},
            CARDS,
            None,
            f"hardware: {KIND}; expected gfx90a, driver 6.12.12, where a result would be filed.",
        ),
        ({"hardware": ""}, CARDS, None, f"hardware: {KIND}; expected none, where"),
        ({}, [*CARDS, LARGER], None, f"hardware: {kind(LARGER)}; expected {KIND}, where"),
        ({"cards": 1}, [*CARDS, LARGER], "GPU-4", f"hardware: {kind(LARGER)}; expected {KIND}, where"),
        ({"torch": "cuda"}, CARDS, None, "torch: version 2.13.0+rocm7.2, without cuda; expected a build for gpu-amd."),
    ],
)
def test_a_mismatch_says_what_is_there_and_what_was_expected(torch_version, asked, found, leased, said) -> None:
    told = problem(replace(ASKED, **asked), found, leased, torch_version)
    assert told is not None
    assert told.startswith(said)


def test_a_farms_cards_are_looked_at_there_though_whoever_asked_could_not_name_them(torch_version) -> None:
    asked = replace(ASKED, hardware="farm:1")
    assert problem(asked, CARDS, None, torch_version) is None
    assert problem(asked, CARDS[:1], None, torch_version) is not None


WORKER = Place("gpu-amd-x4", simulated=False, hardware=KIND)


def test_a_worker_is_asked_for_its_pool_and_for_its_cards_where_those_were_named() -> None:
    assert astray("gpu-amd-x4", KIND, WORKER) is None
    assert astray("gpu-amd-x4", "farm:1", WORKER) is None, "whoever asked could not name them"
    assert astray("gpu-amd-x4", KIND, None) is None, "no worker of ours: the cards themselves are looked at"
    assert str(astray("gpu-amd", KIND, WORKER)).startswith("pool: gpu-amd-x4; expected gpu-amd. hint:")
    told = str(astray("gpu-amd-x4", "gfx950, 288 GiB, driver 7.0", WORKER))
    assert told.startswith(
        f"hardware: the worker has {KIND}; expected gfx950, 288 GiB, driver 7.0, where a result would"
    )


@pytest.mark.parametrize("there", [WORKER, Place("cpu", False, ""), Place("gpu-intel", True, "")])
def test_what_a_worker_says_of_itself_is_read_as_it_was_meant(tmp_path, there) -> None:
    (tmp_path / "marker").write_text(there.text())
    assert place(tmp_path / "marker") == there
    assert there.text().startswith(f"{there.pool}\n"), "tools/pools/route.bzl reads the first line"


@pytest.mark.parametrize(
    ("here", "said"),
    [
        (None, "route: came to no worker of a pool; expected a worker of pool gpu-amd. hint: --config=remote"),
        (Place("cpu", False, ""), "route: came to a worker of pool cpu; expected a worker of pool gpu-amd."),
        (Place("gpu-amd-x4", True, ""), "route: came to a worker of pool gpu-amd-x4, which is simulated"),
        (Place("gpu-amd", False, KIND), "route: the worker of pool gpu-amd has cards; expected a simulated one."),
    ],
)
def test_a_route_is_shown_on_a_simulated_worker_of_its_pool_and_nowhere_else(here, said) -> None:
    with pytest.raises(LookupError, match="route: ") as failure:
        only_the_route("gpu-amd", here)
    assert str(failure.value).startswith(said)
    assert only_the_route("gpu-amd", Place("gpu-amd", True, "")).startswith("routing only, no card: ")


def test_the_words_of_the_macro_are_read() -> None:
    environment = {
        "PLUMBLINE_ACCELERATOR": "gpu-amd",
        "PLUMBLINE_CARDS": "4",
        "PLUMBLINE_CARD_GIB": "15",
        "PLUMBLINE_DRIVER": "6.12",
        "PLUMBLINE_TORCH": "hip",
        "PLUMBLINE_HARDWARE": ASKED.hardware,
    }
    assert asked_in(environment) == ASKED
