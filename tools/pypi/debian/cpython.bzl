"""This machine's own CPython as a toolchain.

The repository holds a link to the interpreter and a `pyvenv.cfg` beside it, which makes CPython treat the place as an
empty virtual environment: the machine's site-packages are out of sight, for tests and for whatever processes they start.
Both files are inputs of every action, so another build of CPython is another key in every cache.
"""

_PROBE = """
import json, os, sys
base = os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)
print(json.dumps({
    "build": sys.version.replace("\\n", " "),
    "executable": base,
    "implementation": sys.implementation.name,
    "version": "%d.%d.%d" % sys.version_info[:3],
}))
"""

_BUILD = """\
load("@rules_python//python:defs.bzl", "py_runtime")

exports_files(["bin/python3"])

py_runtime(
    name = "runtime",
    files = ["pyvenv.cfg"],
    interpreter = "bin/python3",
    python_version = "PY3",
    stub_shebang = "#!{executable} -IS",
    visibility = ["//visibility:public"],
)
"""

_MISSING = """

Plumbline needs CPython {wanted} and found none.
  tried: {tried}
  hint: install it (Debian and Ubuntu: `apt-get install python{wanted}`; anywhere: `uv python install {wanted}` or `pyenv install {wanted}`),
        or name one with PLUMBLINE_PYTHON=/path/to/python{wanted}
"""

def _cpython_repository_impl(rctx):
    wanted = rctx.read(rctx.attr.version_file).strip()
    named = rctx.os.environ.get("PLUMBLINE_PYTHON")
    name = "python" + wanted
    candidates = [named] if named else [name] + [directory + "/" + name for directory in ["/usr/bin", "/usr/local/bin", "/opt/python/bin"]]
    tried = []
    for candidate in candidates:
        path = candidate if "/" in candidate else rctx.which(candidate)
        if not path or not rctx.path(str(path)).exists:
            tried.append("{}: not there".format(candidate))
            continue
        probe = rctx.execute([path, "-I", "-S", "-c", _PROBE])
        if probe.return_code:
            tried.append("{}: does not run ({})".format(path, probe.stderr.strip().split("\n")[-1]))
            continue
        found = json.decode(probe.stdout)
        if found["implementation"] != "cpython" or not found["version"].startswith(wanted + "."):
            tried.append("{}: is {} {}".format(path, found["implementation"], found["version"]))
            continue
        executable = rctx.path(found["executable"])
        rctx.watch(executable)
        rctx.symlink(executable, "bin/python3")
        rctx.file("pyvenv.cfg", "\n".join([
            "home = {}".format(executable.dirname),
            "include-system-site-packages = false",
            "version = {}".format(found["version"]),
            "build = {}".format(found["build"]),
            "",
        ]))
        rctx.file("BUILD.bazel", _BUILD.format(executable = executable))
        return
    fail(_MISSING.format(wanted = wanted, tried = "; ".join(tried)))

_cpython_repository = repository_rule(
    implementation = _cpython_repository_impl,
    attrs = {"version_file": attr.label(allow_single_file = True, mandatory = True)},
    doc = "Finds the CPython that .python-version asks for.",
    environ = ["PATH", "PLUMBLINE_PYTHON"],
)

def _cpython_impl(_mctx):
    _cpython_repository(name = "cpython", version_file = "@@//:.python-version")

cpython = module_extension(
    implementation = _cpython_impl,
    doc = "Makes @cpython.",
)
