"""@plumbline_chromium: the machine's Chromium, and a constraint that says whether it has one.

A browser is no wheel and none of ours to download. Where there is none, what needs it is shown as incompatible, never as passed,
and the rest of what is tested of a page is tested by reading it.
"""

_NAMES = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"]

_BUILD = """\
exports_files(["chromium"])

# {found}
alias(
    name = "available",
    actual = "{actual}",
    visibility = ["//visibility:public"],
)
"""

def _chromium_repository_impl(rctx):
    found = None
    for name in _NAMES:
        found = found or rctx.which(name)
    version = rctx.execute([found, "--version"]).stdout.strip() if found else ""

    # A script, since the program finds its own files from the path that it is started by. A new version makes it another.
    command = 'exec "{}" "$@"'.format(found) if found else "echo 'no chromium' >&2\nexit 1"
    rctx.file("chromium", "#!/bin/sh\n# {}\n{}\n".format(version, command), executable = True)
    rctx.file("BUILD.bazel", _BUILD.format(
        actual = "@platforms//os:linux" if version else "@platforms//:incompatible",
        found = version or "none of {} is on PATH".format(", ".join(_NAMES)),
    ))

_chromium_repository = repository_rule(
    implementation = _chromium_repository_impl,
    doc = "Looks for a Chromium on PATH, again whenever a Bazel server starts: it may have come since.",
    environ = ["PATH"],
    local = True,
)

def _chromium_impl(_mctx):
    _chromium_repository(name = "plumbline_chromium")

chromium = module_extension(
    implementation = _chromium_impl,
    doc = "Makes @plumbline_chromium.",
)
