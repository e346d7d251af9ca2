"""What a target drags into an action, as JSON that a test can hold against a budget."""

_TOOLCHAIN = "@rules_python//python:toolchain_type"

def _closure_impl(ctx):
    closures = {}

    # One CPython is a link to the machine's, the other an archive of 2,000 files: neither is the target's doing.
    interpreter = {file.path: True for file in ctx.toolchains[_TOOLCHAIN].py3_runtime.files.to_list()}
    for target in ctx.attr.targets:
        files = [file for file in target[DefaultInfo].default_runfiles.files.to_list() if file.path not in interpreter]
        wheels = [file.path for file in files if file.basename == "site-packages"]
        closures["//{}:{}".format(target.label.package, target.label.name)] = {
            "num_inputs": len(files),
            "wheels": sorted([path.split("/")[-2].split("pypi__")[-1] for path in wheels]),
        }
    output = ctx.actions.declare_file(ctx.label.name + ".json")
    ctx.actions.write(output, json.encode_indent(closures) + "\n")
    return DefaultInfo(files = depset([output]), runfiles = ctx.runfiles([output]))

closure = rule(
    implementation = _closure_impl,
    attrs = {"targets": attr.label_list(doc = "Libraries, programs or tests, without accelerators.", mandatory = True)},
    doc = "Writes `<name>.json`: label -> number of runfiles, less the interpreter's, and names of wheels.",
    toolchains = [_TOOLCHAIN],
)
