"""What a verdict says it was made on is this machine, and these wheels."""

import json
import multiprocessing
import os
import platform
import re
from pathlib import Path

import pytest
import torch
import transformers

from tests.smoke import hardware
from tests.smoke.hardware import versions


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """The file, written by a process of its own, as a cell has it."""
    file = tmp_path_factory.mktemp("hardware") / "hardware.json"
    process = multiprocessing.get_context("fork").Process(target=hardware.hardware, args=(file,))
    process.start()
    process.join()
    assert process.exitcode == 0
    return json.loads(file.read_text())


def test_the_machine_is_this_one(written: dict[str, dict]) -> None:
    machine = written["hardware"]
    assert (machine["machine"], machine["kernel"]) == (platform.machine(), platform.release())
    assert machine["cores"] == len(os.sched_getaffinity(0))
    total = re.search(r"MemTotal: +(\d+) kB", Path("/proc/meminfo").read_text())
    assert total
    assert machine["memory_bytes"] == int(total[1]) * 1024
    assert machine["processor"]


def test_its_accelerators_are_those_that_torch_sees(written: dict[str, dict]) -> None:
    machine = written["hardware"]
    assert machine["num_accelerators"] == len(machine["accelerators"])
    assert machine["num_accelerators"] == torch.cuda.device_count() + torch.xpu.device_count()
    assert machine["torch_build"]["version"] == torch.__version__
    assert machine["torch_build"]["cuda"] == torch.version.cuda


def test_versions_are_those_of_what_is_imported(written: dict[str, dict]) -> None:
    assert written["versions"] == versions()
    assert versions()["python"] == platform.python_version()
    assert versions()["torch"] == torch.__version__
    assert versions()["transformers"] == transformers.__version__


def test_a_wheel_that_is_not_there_has_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "WHEELS", ("torch", "no-wheel-of-this-name"))
    assert versions().keys() == {"python", "torch"}


def test_a_processor_that_the_kernel_does_not_name_is_named_by_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on ARM, where /proc/cpuinfo has no such line."""
    monkeypatch.setattr(platform, "processor", lambda: "of some kind")
    (tmp_path / "cpuinfo").write_text("processor : 0\nmodel name : Example 9000: fast\n")
    assert hardware._value(tmp_path / "cpuinfo", "model name") == "Example 9000: fast"
    assert hardware._value(tmp_path / "cpuinfo", "Hardware") == "of some kind"
    assert hardware._value(tmp_path / "absent", "model name") == "of some kind"
