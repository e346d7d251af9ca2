"""Whether an action goes where its pool says: `./bazelw build --config=remote //tools/pools:routes`."""

load("//tools/bazel:accelerators.bzl", "pools")

# Where a worker of ours writes the name of its pool; tools/pools/services.py names the same.
_MARKER = "/etc/plumbline-pool"

# Anywhere but on a cluster they fail.
_MANUAL = ["manual"]

def _route_impl(ctx):
    came = ctx.actions.declare_file(ctx.label.name + ".txt")
    ctx.actions.run_shell(
        inputs = [ctx.file._input],
        outputs = [came],
        arguments = [ctx.attr.pool, _MARKER, came.path, str(ctx.attr.seconds), ctx.file._input.path, str(ctx.attr.mib)],
        command = """\
sleep "$4"
cmp "$5" "$5"
[ "$1" != here ] || [ -e "$2" ] || { echo here > "$3"; exit; }
if read -r pool < "$2" && [ "$pool" = "$1" ]; then
  cat "$2" > "$3"
  [ "$6" = 0 ] || head -c "$6M" /dev/urandom >> "$3"
  exit
fi
echo "came to ${pool:-a machine without $2, so none of a pool}; expected pool $1. hint: --config=remote, and ./bazelw run //tools/pools:up" >&2
exit 1
""",
        mnemonic = "Route",
        progress_message = "Going to pool " + ctx.attr.pool,
        # Another value of a variable is another action, so that a drill meets no result of the one before.
        use_default_shell_env = True,
    )
    return [DefaultInfo(files = depset([came]))]

_route = rule(
    implementation = _route_impl,
    attrs = {
        "mib": attr.int(doc = "How much it leaves there."),
        "pool": attr.string(mandatory = True),
        "seconds": attr.int(doc = "How long it stays there."),
        "_input": attr.label(
            allow_single_file = True,
            default = "//tools/pools:requirements_lock.txt",
            doc = "Something that has to be uploaded.",
        ),
    },
)

def routes(name):
    """`<name>.<pool>` for each pool, `<name>` for all; `.nowhere`, which a cluster has to refuse, `.here` for none, `.slow` and `.large`.

    Args:
        name: of the filegroup of all.
    """
    for pool in list(pools()) + ["here", "nowhere"]:
        _route(
            name = "{}.{}".format(name, pool),
            exec_properties = {"Pool": pool},
            pool = pool,
            tags = _MANUAL,
        )
    _route(
        name = name + ".slow",
        exec_properties = {"Pool": "gpu-amd"},
        pool = "gpu-amd",
        seconds = 8,
        tags = _MANUAL,
    )
    _route(
        name = name + ".large",
        exec_properties = {"Pool": "cpu"},
        mib = 192,
        pool = "cpu",
        tags = _MANUAL,
    )
    native.filegroup(
        name = name,
        srcs = [":{}.{}".format(name, pool) for pool in pools()],
        tags = _MANUAL,
    )
