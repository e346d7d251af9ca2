"""@plumbline_buildifier: buildifier where one is to be had, and a constraint that says whether.

It is no wheel. npm's package carries the program for each system, pinned here by digest; else one on PATH serves. Where there is
neither, what needs it is shown as incompatible, never as passed, and `//tools/lint:build_files_test` still checks our own files.
"""

_VERSION = "8.2.1"
_PROGRAMS = {
    "linux amd64": ("buildifier-linux_amd64", "6ceb7b0ab7cf66fceccc56a027d21d9cc557a7f34af37d2101edb56b92fcfa1a"),
    "linux aarch64": ("buildifier-linux_arm64", "3baa1cf7eb41d51f462fdd1fff3a6a4d81d757275d05b2dd5f48671284e9a1a5"),
}

_BUILD = """\
exports_files(["buildifier"])

# {reason}
alias(
    name = "available",
    actual = "{actual}",
    visibility = ["//visibility:public"],
)
"""

def _from_npm(rctx):
    """Puts npm's program in place; returns why it could not, or None."""
    program, digest = _PROGRAMS.get("{} {}".format(rctx.os.name, rctx.os.arch), (None, None))
    npm = rctx.which("npm")
    if not program or not npm:
        return "no npm package for this system, or no npm"
    packed = rctx.execute([npm, "pack", "--silent", "--fetch-retries=0", "@bazel/buildifier@" + _VERSION], timeout = 120)
    if packed.return_code:
        return "npm pack failed"
    rctx.extract(packed.stdout.strip().split("\n")[-1], stripPrefix = "package")
    summed = rctx.execute(["sha256sum", program])
    if summed.return_code or summed.stdout.split(" ")[0] != digest:
        fail("{} of buildifier {} has digest {}; expected {}".format(program, _VERSION, summed.stdout.split(" ")[0], digest))
    rctx.symlink(program, "buildifier")
    return None

def _buildifier_repository_impl(rctx):
    problem = _from_npm(rctx)
    installed = rctx.which("buildifier")
    if problem and installed:
        rctx.symlink(installed, "buildifier")
        problem = None
    if problem:
        rctx.file("buildifier", "#!/bin/sh\necho 'no buildifier: {}' >&2\nexit 1\n".format(problem))
    rctx.file("BUILD.bazel", _BUILD.format(
        actual = "@platforms//:incompatible" if problem else "@platforms//os:linux",
        reason = problem or "found",
    ))

_buildifier_repository = repository_rule(
    implementation = _buildifier_repository_impl,
    doc = "Looks for buildifier in npm's registry, then on PATH.",
    environ = ["PATH"],
)

def _buildifier_impl(_mctx):
    _buildifier_repository(name = "plumbline_buildifier")

buildifier = module_extension(
    implementation = _buildifier_impl,
    doc = "Makes @plumbline_buildifier.",
)
