"""@plumbline_tree: the working tree as one archive, for checks that must see files which no target names."""

load("@plumbline_rules_python//:wheels.bzl", "PYTHON")

_FOLDERS = [".ci", ".github", "docs", "tests", "tools", "training"]

def _tree_repository_impl(rctx):
    root = rctx.path(rctx.attr.marker).dirname
    for entry in root.readdir(watch = "yes"):
        if not entry.is_dir and not entry.basename.startswith("bazel-"):
            rctx.watch(entry)
    for folder in _FOLDERS:
        if root.get_child(folder).exists:
            rctx.watch_tree(root.get_child(folder))
    result = rctx.execute([rctx.path(rctx.attr.python), "-B", rctx.path(rctx.attr._archive), root, "tree.tar"] + _FOLDERS)
    if result.return_code:
        fail("{}{}".format(result.stdout, result.stderr))
    rctx.file("BUILD.bazel", 'exports_files(["tree.tar"])\n')

_tree_repository = repository_rule(
    implementation = _tree_repository_impl,
    attrs = {
        "marker": attr.label(doc = "A file at the root of the working tree."),
        "python": attr.label(doc = "Interpreter that packs."),
        "_archive": attr.label(default = "//tools/lint:archive.py"),
    },
    doc = "Packs what git would not ignore; runs again whenever a file changes, comes or goes.",
)

def _tree_impl(_mctx):
    _tree_repository(
        name = "plumbline_tree",
        marker = "//:MODULE.bazel",
        python = PYTHON,
    )

tree = module_extension(
    implementation = _tree_impl,
    doc = "Makes @plumbline_tree.",
)
