"""A wheel as a Python dependency: one directory, and the digest of what is in it."""

load("@rules_python//python:defs.bzl", "PyInfo")

FormInfo = provider(doc = "In which form wheels enter actions.", fields = {"value": "`directory` or `tree`"})

_FORMS = ["directory", "tree"]

def _wheel_form_impl(ctx):
    if ctx.build_setting_value not in _FORMS:
        fail("{} = {}; expected one of {}".format(ctx.label, ctx.build_setting_value, ", ".join(_FORMS)))
    return FormInfo(value = ctx.build_setting_value)

wheel_form = rule(
    implementation = _wheel_form_impl,
    build_setting = config.string(flag = True),
    doc = """How a wheel is handed to an action.

`directory`, the default, is the source directory itself: it costs a local sandbox nothing, however many files it has. A remote
worker would find it empty, so remote builds use `tree`, a copy that Bazel knows file by file.
""",
)

def _wheel_impl(ctx):
    site = ctx.file.directory
    if ctx.attr._form[FormInfo].value == "tree":
        tree = ctx.actions.declare_directory(site.basename)
        ctx.actions.run_shell(
            inputs = [site, ctx.file.content],
            outputs = [tree],
            command = 'cp -RLp "$1/." "$2/"',
            arguments = [site.path, tree.path],
            mnemonic = "CopyWheel",
            progress_message = "Copying wheel %{label}",
        )
        site = tree
    deps = [dep[PyInfo] for dep in ctx.attr.deps]
    runfiles = ctx.runfiles(files = [site, ctx.file.content]).merge_all([dep[DefaultInfo].default_runfiles for dep in ctx.attr.deps])
    return [
        DefaultInfo(files = depset([site]), runfiles = runfiles),
        PyInfo(
            imports = depset(["{}/{}".format(ctx.label.workspace_name, site.basename)], transitive = [dep.imports for dep in deps]),
            transitive_sources = depset(transitive = [dep.transitive_sources for dep in deps]),
        ),
    ]

def _unresolved_impl(ctx):
    fail("\n\nNo torch for --config={lock}: requirements_lock_{lock}.txt is not resolved yet. hint: ./bazelw run //tools/pypi:lock -- {lock}\n".format(
        lock = ctx.attr.lock,
    ))

unresolved = rule(
    implementation = _unresolved_impl,
    attrs = {"lock": attr.string(doc = "Its name.", mandatory = True)},
    doc = "Stands where a wheel would, and says why it is not there.",
    provides = [PyInfo],
)

wheel = rule(
    implementation = _wheel_impl,
    attrs = {
        "content": attr.label(
            allow_single_file = True,
            doc = "Digest of the directory's content, which Bazel does not look into.",
            mandatory = True,
        ),
        "deps": attr.label_list(doc = "Wheels that this one requires.", providers = [PyInfo]),
        "directory": attr.label(allow_single_file = True, doc = "The site-packages directory.", mandatory = True),
        "_form": attr.label(default = "//tools/pypi:form"),
    },
    doc = "A wheel that was unpacked and compiled when it was fetched.",
)
