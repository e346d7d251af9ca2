"""The only door to Python rules: `load("//tools/bazel:defs.bzl", "py_library", "py_binary", "py_test")`."""

load("@rules_python//python:defs.bzl", _py_binary = "py_binary", _py_library = "py_library", _py_test = "py_test")
load("//tools/bazel:accelerators.bzl", "accelerator_error", "tag_error", "tier_of")
load("//tools/bazel:closure.bzl", _closure = "closure")

closure = _closure

_RUNNER = "//tools/bazel:pytest_runner.py"
_RUNNER_DEPS = ["//tools/bazel:runner", "@pypi//pytest"]

# What an interpreter reads before its first line runs, for a test and for the processes that it starts.
_PYTHON_ENV = {
    "LC_ALL": "C.UTF-8",
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONHASHSEED": "0",
    "PYTHONNOUSERSITE": "1",
    "PYTHONSAFEPATH": "1",
}

def _root():
    """The root of this repository, as the `imports` of a target in the package being loaded."""
    return ["/".join([".." for _ in native.package_name().split("/")]) if native.package_name() else "."]

def _refuse(name, problem):
    if problem:
        fail("\n{}:{}: {}".format("//" + native.package_name(), name, problem))

def py_library(name, srcs = [], deps = [], tags = [], **kwargs):
    """A Python library.

    Args:
        name: the folder's name, or the module's where a heavy dependency is split off.
        srcs: its modules.
        deps: what they import directly.
        tags: from the closed set in accelerators.bzl.
        **kwargs: data, testonly and visibility, as everywhere.
    """
    _refuse(name, tag_error(tags))
    _py_library(name = name, srcs = srcs, deps = deps, imports = _root(), tags = tags + ["cpu"], **kwargs)

def py_binary(name, srcs, deps = [], tags = [], **kwargs):
    """A Python program.

    Args:
        name: the command's name in `bazelw run //package:name`.
        srcs: the main module first.
        deps: what it imports directly.
        tags: from the closed set in accelerators.bzl.
        **kwargs: args, data, env, main, testonly and visibility, as everywhere.
    """
    _refuse(name, tag_error(tags))
    main = kwargs.pop("main", srcs[0])
    _py_binary(name = name, srcs = srcs, deps = deps, imports = _root(), main = main, tags = tags + ["cpu"], **kwargs)

def py_test(name, srcs, accelerators = ["cpu"], cpus = 1, data = [], deps = [], env = {}, requires = [], size = "small", tags = [], **kwargs):
    """Runs pytest on exactly the listed files: one target for each accelerator.

    The cpu target has the given name, another accelerator's is `<name>.<accelerator>` and is skipped where the platform
    lacks it. No test collected, or every test skipped, is a failure.

    Args:
        name: usually the file's name without its ending.
        srcs: the test files.
        accelerators: what it runs on, from the table in accelerators.bzl.
        cpus: threads that torch and its libraries may use; Bazel schedules with the same figure.
        data: files that the tests read.
        deps: what they import directly; pytest itself is there.
        env: more environment variables; `$(rootpath ...)` is expanded.
        requires: more constraint values that must hold, or the target is skipped as incompatible.
        size: small (60 s), medium (5 min) or large (15 min).
        tags: from the closed set in accelerators.bzl.
        **kwargs: shard_count, timeout and visibility, as everywhere.
    """
    tier = tier_of(native.package_name())
    _refuse(name, tag_error(tags) or accelerator_error(accelerators))
    _refuse(name, None if srcs else "srcs: empty. hint: name the test files")
    _refuse(name, None if tier else "no tier for a test in this package. hint: move it below //tests/<tier>, or //tools/lint")
    for accelerator in accelerators:
        _py_test(
            name = name if accelerator == "cpu" else "{}.{}".format(name, accelerator),
            size = size,
            srcs = srcs + [_RUNNER],
            args = ["$(rootpath {})".format(src) for src in srcs],
            data = data,
            env = _PYTHON_ENV | {
                "PLUMBLINE_ACCELERATOR": accelerator,
                "PLUMBLINE_CPUS": str(cpus),
            } | env,
            imports = _root(),
            main = _RUNNER,
            # A report on a skipped target says why from its tags: Bazel's own event names the target and no constraint.
            tags = tags + [tier, accelerator] + (["cpu:{}".format(cpus)] if cpus > 1 else []) + [
                "needs:" + each.split("//")[0].removeprefix("@plumbline_")
                for each in requires
            ],
            target_compatible_with = requires + ([] if accelerator == "cpu" else ["//tools/bazel:" + accelerator]),
            deps = deps + [dep for dep in _RUNNER_DEPS if dep not in deps],
            **kwargs
        )
