"""The environment that a test sees, settled before anything heavy is imported. Standard library only."""

from __future__ import annotations

import os
import pathlib
import random
import sys
from collections.abc import MutableMapping

# One thread pool per library would multiply; each reads its own variable, once, when it is first imported.
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "RAYON_NUM_THREADS",
)
# Hubs answer from here or not at all: the network is cut off, and a time-out would only hide that a test asked.
OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}
# Beginnings of the names of what Bazel's scripts and Python's are told of places.
OF_BAZEL = ("TEST_", "RUNFILES_", "JAVA_RUNFILES", "PYTHON", "XML_")
CACHE_VARIABLES = (
    "HF_HOME",
    "TORCH_HOME",
    "TORCHINDUCTOR_CACHE_DIR",
    "TRITON_CACHE_DIR",
    "XDG_CACHE_HOME",
    "MPLCONFIGDIR",
)


def straighten(environment: MutableMapping[str, str], path: list[str]) -> None:
    """Makes `//folder` `/folder` in Bazel's variables and where modules are found.

    A worker's root may be the action's own directory. Bazel's scripts put a slash behind it, and Python, pathlib and so
    pytest take what begins with two for another place than what begins with one.
    """
    for name, value in list(environment.items()):
        if value.startswith("//") and name != "TEST_TARGET" and name.startswith(OF_BAZEL):
            environment[name] = os.pathsep.join(f"/{each.lstrip('/')}" for each in value.split(os.pathsep))
    path[:] = [f"/{each.lstrip('/')}" if each.startswith("//") else each for each in path]


def settle_environment(scratch: pathlib.Path, cpus: int) -> None:
    """Points threads, homes, caches and modules of this process and its children at what the target declared.

    Args:
        scratch: directory of this test alone, gone afterwards.
        cpus: threads that a library may use.
    """
    os.environ.update(OFFLINE)
    os.environ.update({name: str(cpus) for name in THREAD_VARIABLES})
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if cpus > 1 else "false"
    os.environ.update({name: str(scratch / "caches" / name.lower()) for name in CACHE_VARIABLES})
    # A child imports what this process can. rules_python told it so itself until 1.7.
    os.environ.setdefault("PYTHONPATH", os.pathsep.join(sys.path))
    os.environ["HOME"] = str(scratch / "home")
    os.environ["TMPDIR"] = str(scratch / "tmp")
    for name in ("HOME", "TMPDIR"):
        pathlib.Path(os.environ[name]).mkdir(parents=True, exist_ok=True)


def seed_everything(seed: int) -> None:
    """Seeds each random generator that is loaded; called before every test, so that one alone runs as among others."""
    random.seed(seed)
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed(seed)
    if torch := sys.modules.get("torch"):
        torch.manual_seed(seed)
