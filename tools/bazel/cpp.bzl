"""@plumbline_cpp: a constraint that says whether this machine can compile C++ that Python loads.

torch's compiler calls g++ and includes Python.h. Where one of the two is missing, what needs them is shown as incompatible, never as
passed, and the plan refuses the setting.
"""

load("@plumbline_rules_python//:wheels.bzl", "PYTHON")

_BUILD = """\
# {reason}
alias(
    name = "available",
    actual = "{actual}",
    visibility = ["//visibility:public"],
)
"""

_HEADER = "import pathlib, sysconfig; print(pathlib.Path(sysconfig.get_path('include'), 'Python.h').is_file())"

def _cpp_repository_impl(rctx):
    problem = None if rctx.which("g++") else "no g++ on PATH"
    if rctx.execute([rctx.path(rctx.attr.python), "-c", _HEADER]).stdout.strip() != "True":
        problem = problem or "no Python.h of the interpreter"
    rctx.file("BUILD.bazel", _BUILD.format(
        actual = "@platforms//:incompatible" if problem else "@platforms//os:linux",
        reason = problem or "found",
    ))

_cpp_repository = repository_rule(
    implementation = _cpp_repository_impl,
    attrs = {"python": attr.label(doc = "Interpreter whose headers are asked for.")},
    doc = "Looks for g++ and Python's headers, again whenever a Bazel server starts: it may have come since.",
    environ = ["PATH"],
    local = True,
)

def _cpp_impl(_mctx):
    _cpp_repository(name = "plumbline_cpp", python = PYTHON)

cpp = module_extension(
    implementation = _cpp_impl,
    doc = "Makes @plumbline_cpp.",
)
