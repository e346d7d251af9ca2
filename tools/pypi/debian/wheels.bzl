"""Where rules_python 0.22 put what it fetched."""

PYTHON = Label("@cpython//:bin/python3")

_HUBS = {
    "pypi": Label("@wheels_pypi//:BUILD.bazel"),
    "pypi_benchmark": Label("@wheels_pypi_benchmark//:BUILD.bazel"),
    "pypi_cuda": Label("@wheels_pypi_cuda//:BUILD.bazel"),
    "pypi_harness": Label("@wheels_pypi_harness//:BUILD.bazel"),
    "pypi_kernels": Label("@wheels_pypi_kernels//:BUILD.bazel"),
    "pypi_peers": Label("@wheels_pypi_peers//:BUILD.bazel"),
    "pypi_quickstart": Label("@wheels_pypi_quickstart//:BUILD.bazel"),
    "pypi_schemas": Label("@wheels_pypi_schemas//:BUILD.bazel"),
    "pypi_rocm": Label("@wheels_pypi_rocm//:BUILD.bazel"),
    "pypi_xpu": Label("@wheels_pypi_xpu//:BUILD.bazel"),
}

def fetched(_rctx, lock, package):
    """The build file of the repository into which rules_python unpacked a locked wheel.

    Args:
        _rctx: the repository context that asks.
        lock: name of the lock, as in MODULE.bazel.
        package: normalised name of the distribution, words joined by underscores.

    Returns:
        A label; making a path of it fetches the wheel.
    """
    return Label("@@{}_{}//:BUILD.bazel".format(_HUBS[lock].workspace_name, package))
