"""@plumbline_host: which accelerator cards this machine has, for platforms and for the keys of cached results."""

load("@plumbline_rules_python//:wheels.bzl", "PYTHON")
load("//tools/bazel:accelerators.bzl", "ACCELERATORS", "farm_fingerprints")

_BZL = """\
\"\"\"What tools/devices/detect.py found.\"\"\"

# Accelerator -> number of cards.
CARDS = {cards}

# The accelerator whose tests run without a --config, or nothing.
DEFAULT = {default}

# Accelerator -> their models and drivers.
FINGERPRINTS = {fingerprints}
"""

def _host_repository_impl(rctx):
    farm = rctx.os.environ.get("PLUMBLINE_FARM")
    if farm:
        # The cards are elsewhere. A pool that the farm lacks is refused by it, by name; what its cards are is what this says, if it does.
        cards = {accelerator: max(row.cards) for accelerator, row in ACCELERATORS.items() if row.cards}
        fingerprints = farm_fingerprints(farm, cards)
        default = ""
    else:
        resolved = [
            accelerator
            for accelerator, row in ACCELERATORS.items()
            if "\ntorch==" in rctx.read(Label("//:" + row.lock))
        ]
        result = rctx.execute([rctx.path(rctx.attr.python), "-B", rctx.path(rctx.attr._detect)] + resolved)
        if result.return_code:
            fail("{}{}".format(result.stdout, result.stderr))
        found = json.decode(result.stdout)
        fingerprints = found["fingerprints"]
        default = found["default"]
        if found["hint"]:
            print(found["hint"])  # buildifier: disable=print
        cards = found["counts"]
    rctx.file("BUILD.bazel", "")
    rctx.file("cards.bzl", _BZL.format(cards = repr(cards), default = repr(default), fingerprints = repr(fingerprints)))

_host_repository = repository_rule(
    implementation = _host_repository_impl,
    attrs = {
        "python": attr.label(doc = "Interpreter that looks."),
        "_detect": attr.label(default = "//tools/devices:detect.py"),
    },
    doc = "Looks again whenever a Bazel server starts.",
    environ = [
        "PATH",
        "PLUMBLINE_FARM",
    ],
    local = True,
)

def _host_impl(_mctx):
    _host_repository(
        name = "plumbline_host",
        python = PYTHON,
    )

host = module_extension(
    implementation = _host_impl,
    doc = "Makes @plumbline_host.",
)
