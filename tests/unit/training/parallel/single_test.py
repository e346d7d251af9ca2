"""One process shares with nobody, and knows where it is."""

import os
import sysconfig
from pathlib import Path

import pytest
import torch
from torch import nn

from training.parallel.backend import Backend
from training.parallel.single import Single, machine


def test_norm_is_over_all_gradients_and_skips_weights_without_one() -> None:
    model = nn.Linear(2, 2)
    model.weight.grad = torch.tensor([[3.0, 0.0], [0.0, 4.0]])
    backend: Backend = Single("cpu", "fp32")
    assert backend.gradient_norm(model.parameters()).item() == 5.0


def test_backward_adds_to_the_gradients() -> None:
    weight = nn.Parameter(torch.tensor(2.0))
    backend = Single("cpu", "fp32")
    backend.backward(weight * 3, is_last=False)
    backend.backward(weight * 4, is_last=True)
    assert weight.grad is not None
    assert weight.grad.item() == 7.0


def test_sums_are_its_own() -> None:
    backend: Backend = Single("cpu", "fp32")
    assert (backend.rank, backend.num_ranks, backend.sum_over_ranks(2.5)) == (0, 1, 2.5)
    assert backend.device == torch.device("cpu")


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_precision_is_that_of_matrix_products(precision: str, dtype: torch.dtype) -> None:
    backend = Single("cpu", "fp32" if precision == "fp32" else "bf16")
    with backend.computing():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


def test_machine_has_the_threads_that_this_process_may_use() -> None:
    found = machine()
    assert found.num_threads == len(os.sched_getaffinity(0))
    assert ("cuda" in found.accelerators) == torch.cuda.is_available()


@pytest.mark.parametrize("lacks", ["nothing", "compiler", "headers"])
@pytest.mark.parametrize(("language", "variable"), [("c", "CC"), ("cpp", "CXX")])
def test_machine_compiles_where_there_are_a_compiler_and_the_headers_of_this_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, language: str, variable: str, lacks: str
) -> None:
    compiler = tmp_path / "some-compiler"
    compiler.write_text("#!/bin/sh\n")
    compiler.chmod(0o755)
    monkeypatch.setenv(variable, str(tmp_path / "none" if lacks == "compiler" else compiler))
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    if lacks != "headers":
        (tmp_path / "Python.h").touch()
    assert getattr(machine(), f"compiles_{language}") == (lacks == "nothing")


def test_where_none_is_named_any_that_triton_takes_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    (tmp_path / "Python.h").touch()
    assert not machine().compiles_c
    (tmp_path / "clang").write_text("#!/bin/sh\n")
    (tmp_path / "clang").chmod(0o755)
    assert machine().compiles_c
