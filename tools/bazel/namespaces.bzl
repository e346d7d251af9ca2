"""@plumbline_namespaces: a constraint that says whether a test here can have a network of its own making.

Two machines are two network namespaces joined by a cable, made without root by `unshare`, `nsenter` and `ip`. Where that cannot be,
what needs it is shown as incompatible, never as passed.
"""

_BUILD = """\
# {reason}
alias(
    name = "available",
    actual = "{actual}",
    visibility = ["//visibility:public"],
)
"""

_TRY = ["unshare", "--user", "--map-root-user", "--net", "--", "ip", "link", "add", "eth0", "type", "veth"]

def _namespaces_repository_impl(rctx):
    missing = [program for program in ("ip", "nsenter", "unshare") if not rctx.which(program)]
    problem = "no {} on PATH".format(", ".join(missing)) if missing else None
    if not problem and rctx.execute(_TRY).return_code:
        problem = "no network namespaces with interfaces for ordinary users"
    rctx.file("BUILD.bazel", _BUILD.format(
        actual = "@platforms//:incompatible" if problem else "@platforms//os:linux",
        reason = problem or "found",
    ))

_namespaces_repository = repository_rule(
    implementation = _namespaces_repository_impl,
    doc = "Tries to make one, again whenever a Bazel server starts: it may have come since.",
    environ = ["PATH"],
    local = True,
)

def _namespaces_impl(_mctx):
    _namespaces_repository(name = "plumbline_namespaces")

namespaces = module_extension(
    implementation = _namespaces_impl,
    doc = "Makes @plumbline_namespaces.",
)
