"""A test that runs a program which other tests run too, each with an environment of its own.

Whatever the program needs is analysed once. A test more costs Bazel a link, where a py_test costs a program: for a
matrix of thousands of cells that is most of the time until the first one runs.
"""

def _program_test_impl(ctx):
    program = ctx.attr.program[DefaultInfo]
    executable = ctx.actions.declare_file(ctx.label.name)
    ctx.actions.symlink(output = executable, target_file = program.files_to_run.executable, is_executable = True)
    return [
        DefaultInfo(executable = executable, runfiles = program.default_runfiles),
        RunEnvironmentInfo(environment = ctx.attr.env),
    ]

program_test = rule(
    implementation = _program_test_impl,
    attrs = {
        "env": attr.string_dict(doc = "Of the test, as it stands here: nothing in it is expanded."),
        "program": attr.label(cfg = "target", doc = "What is run.", executable = True, mandatory = True),
    },
    doc = "Passes if the program does.",
    test = True,
)
