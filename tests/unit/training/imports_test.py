"""Heavy packages are imported without torch's compiler, which they ask for as they are imported."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from training.imports import import_lean

COMPILER = "torch._inductor.compile_fx"


def loads_compiler(code: str) -> bool:
    """Whether torch's compiler is loaded in a fresh process after some lines."""
    path = os.pathsep.join(path for path in sys.path if path)
    program = f"{code}\nimport sys\nprint({COMPILER!r} in sys.modules, 'bitsandbytes' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": path}
    run = subprocess.run(
        [sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    compiler, package = run.stdout.split()
    assert package == "True"
    return compiler == "True"


def test_an_adapter_and_a_quantized_model_are_imported_without_it() -> None:
    lean = "from training.imports import import_lean\nimport_lean('bitsandbytes')\nimport_lean('peft')"
    assert not loads_compiler(lean)


def test_it_would_come_along_which_is_why() -> None:
    """If this turns red, plain imports do as well, and `import_lean` may go."""
    assert loads_compiler("import bitsandbytes")


def test_what_is_to_be_compiled_is_left_as_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ["import torch", "@torch.compile", "def one(): return 1", "@torch.compile(dynamic=False)"]
    (tmp_path / "decorated.py").write_text("\n".join([*lines, "def two(): return 2", "raised = 1 / ZERO\n"]))
    monkeypatch.syspath_prepend(tmp_path)
    compiled = torch.compile
    with pytest.raises(NameError):
        import_lean("decorated")
    assert torch.compile is compiled, "whatever goes wrong"
    (tmp_path / "decorated.py").write_text("\n".join([*lines, "def two(): return 2\n"]))
    import_lean("decorated")
    for function in (getattr(sys.modules["decorated"], name) for name in ("one", "two")):
        assert function.__code__.co_filename == str(tmp_path / "decorated.py"), "and no wrapper of torch's"
    assert torch.compile is compiled
