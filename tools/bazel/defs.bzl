"""The only door to Python rules: `load("//tools/bazel:defs.bzl", "py_library", "py_binary", "py_test", "smoke_cells")`."""

load("@plumbline_host//:cards.bzl", "FINGERPRINTS")
load("@rules_python//python:defs.bzl", _py_binary = "py_binary", _py_library = "py_library", _py_test = "py_test")
load("//tools/bazel:accelerators.bzl", "ACCELERATORS", "accelerator_error", "cards_error", "pool_of", "pools", "route_error", "tag_error", "tier_of")
load("//tools/bazel:closure.bzl", _closure = "closure")
load("//tools/bazel:program_test.bzl", _program_test = "program_test")

closure = _closure

_RUNNER = "//tools/bazel:pytest_runner.py"
_RUNNER_DEPS = ["//tools/bazel:runner", "@pypi//pytest"]

_CARD_DEPS = ["//tools/devices"]

# What an interpreter reads before its first line runs, for a test and for the processes that it starts.
_PYTHON_ENV = {
    "LC_ALL": "C.UTF-8",
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONHASHSEED": "0",
    "PYTHONNOUSERSITE": "1",
    "PYTHONSAFEPATH": "1",
}

def _root():
    """The root of this repository, as the `imports` of a target in the package being loaded."""
    return ["/".join([".." for _ in native.package_name().split("/")]) if native.package_name() else "."]

def _hidden():
    """Keeps a test of the cpu from the cards of the platform that it is built for, with whose torch it would find them."""
    return _by_accelerator({accelerator: row.hidden for accelerator, row in ACCELERATORS.items()}, {})

def _by_accelerator(values, without):
    """Of the accelerator with cards whose platform a target is built for, its value; `without` where there is none."""
    return select({
        "//tools/bazel:" + accelerator: values[accelerator]
        for accelerator, row in ACCELERATORS.items()
        if row.cards
    } | {"//conditions:default": without})

def _refuse(name, problem):
    if problem:
        fail("\n{}:{}: {}".format("//" + native.package_name(), name, problem))

def _with_runner(deps, cards):
    """Dependencies and those of the runner, which looks at the cards before it collects a test that asks for some."""
    return deps + [dep for dep in _RUNNER_DEPS + (_CARD_DEPS if cards else []) if dep not in deps]

def _asked(accelerator, cards, cpus, env, requires = [], route = "", tags = []):
    """The attributes of a test that say what it asks for: where it goes, what it finds there, how people pick it."""
    row = ACCELERATORS[accelerator]
    pool = pool_of(accelerator, cards)
    return {
        "env": _PYTHON_ENV | {
            "PLUMBLINE_ACCELERATOR": accelerator,
            "PLUMBLINE_CPUS": str(cpus),
        } | ({
            "PLUMBLINE_CARDS": str(cards),
            "PLUMBLINE_CARD_GIB": str(row.memory_gib),
            "PLUMBLINE_DRIVER": row.driver,
            # In the key of a result, so that a pass on one model of card or driver is not shown for another.
            "PLUMBLINE_HARDWARE": FINGERPRINTS.get(accelerator, ""),
            "PLUMBLINE_POOL": pool,
            "PLUMBLINE_TORCH": row.torch,
            "PLUMBLINE_VISIBLE": row.visible,
        } if row.cards else {}) | ({"PLUMBLINE_ROUTE": route} if route else {}) | env | (_hidden() if not row.cards else {}),
        # `test.` keeps it to the test itself. The cpu's pool is what --config=remote gives to all else.
        "exec_properties": {"test.Pool": route or pool} if route or row.cards else {},
        # A report on a skipped target says why from its tags: Bazel's own event names the target and no constraint.
        "tags": tags + [tier_of(native.package_name()), accelerator] + (["cpu:{}".format(cpus)] if cpus > 1 else []) + (["multi-gpu"] if row.cards and cards > 1 else []) + (["route:" + route] if route else []) + [
            "needs:" + each.split("//")[0].removeprefix("@plumbline_")
            for each in requires
        ],
        "target_compatible_with": requires + (["//tools/bazel:" + pool] if row.cards else []),
    }

def _program(name, srcs, data, deps, cards):
    """The runner with test files, as a program for `program_test`; returns what such a test says of it."""
    _py_binary(
        name = name,
        testonly = True,
        srcs = srcs + [_RUNNER],
        data = data,
        imports = _root(),
        main = _RUNNER,
        # Manual: what asks for the tests builds it, and nobody else has a use for it.
        tags = ["cpu", "manual"],
        deps = _with_runner(deps, cards),
    )
    return {
        "args": ["{}/{}".format(native.package_name(), src) for src in srcs],
        "program": ":" + name,
        "size": "large",
        "visibility": ["//tests:__subpackages__"],
    }

# Of the full depth on the cpu: a part is some hundreds of cells, at most a night for a machine of two cores.
_PARTS = 8

def py_library(name, srcs = [], deps = [], card_deps = [], tags = [], **kwargs):
    """A Python library.

    Args:
        name: the folder's name, or the module's where a heavy dependency is split off.
        srcs: its modules.
        deps: what they import directly.
        card_deps: what they find beside that where there are cards, and do without elsewhere.
        tags: from the closed set in accelerators.bzl.
        **kwargs: data, testonly and visibility, as everywhere.
    """
    _refuse(name, tag_error(tags))
    if card_deps:
        deps = deps + _by_accelerator({each: card_deps for each in ACCELERATORS}, [])
    _py_library(name = name, srcs = srcs, deps = deps, imports = _root(), tags = tags + ["cpu"], **kwargs)

def py_binary(name, srcs, deps = [], tags = [], **kwargs):
    """A Python program.

    Args:
        name: the command's name in `bazelw run //package:name`.
        srcs: the main module first.
        deps: what it imports directly.
        tags: from the closed set in accelerators.bzl.
        **kwargs: args, data, env, main, testonly and visibility, as everywhere.
    """
    _refuse(name, tag_error(tags))
    main = kwargs.pop("main", srcs[0])
    _py_binary(name = name, srcs = srcs, deps = deps, imports = _root(), main = main, tags = tags + ["cpu"], **kwargs)

def py_test(name, srcs, accelerators = ["cpu"], cards = 1, cpus = 1, data = [], deps = [], env = {}, requires = [], route = "", size = "small", tags = [], visibility = [], **kwargs):
    """Runs pytest on exactly the listed files: one target for each accelerator.

    The cpu target has the given name, another accelerator's is `<name>.<accelerator>`: it is skipped where the platform
    lacks it, its test runs in the accelerator's pool, and what builds it stays in the cpu's. No test collected, or every test skipped, is a failure.

    Args:
        name: usually the file's name without its ending.
        srcs: the test files.
        accelerators: what it runs on, from the table in accelerators.bzl.
        cards: how many of an accelerator's cards it needs, one of the numbers in the table.
        cpus: threads that torch and its libraries may use; Bazel schedules with the same figure.
        data: files that the tests read.
        deps: what they import directly; pytest itself is there.
        env: more environment variables; `$(rootpath ...)` is expanded.
        requires: more constraint values that must hold, or the target is skipped as incompatible.
        route: a pool of cards that a test of the cpu is sent to: it shows the way there, where the pool is simulated, and
            fails anywhere else.
        size: small (60 s), medium (5 min) or large (15 min).
        tags: from the closed set in accelerators.bzl.
        visibility: who may see it beside other tests, of which some run it: planted bugs need a guard.
        **kwargs: shard_count and timeout, as everywhere.
    """
    tier = tier_of(native.package_name())
    _refuse(name, tag_error(tags) or accelerator_error(accelerators) or cards_error(accelerators, cards) or route_error(accelerators, route))
    _refuse(name, None if srcs else "srcs: empty. hint: name the test files")
    _refuse(name, None if tier else "no tier for a test in this package. hint: move it below //tests/<tier>, or //tools/lint")
    for accelerator in accelerators:
        _py_test(
            name = name if accelerator == "cpu" else "{}.{}".format(name, accelerator),
            size = size,
            srcs = srcs + [_RUNNER],
            args = ["$(rootpath {})".format(src) for src in srcs],
            data = data,
            imports = _root(),
            main = _RUNNER,
            visibility = visibility + ["//tests:__subpackages__"],
            deps = _with_runner(deps, route or ACCELERATORS[accelerator].cards),
            **(kwargs | _asked(accelerator, cards, cpus, env, requires, route, tags))
        )

def bug(name, does, file, guard, original, planted, test, raises = []):
    """A bug that somebody made or nearly made, and the test that must see it: a row for `planted_bugs`.

    Args:
        name: of the case of its guard's target, which `--test_filter` may name.
        does: what is wrong, in a sentence; who had it, where that is known.
        file: path of the file that is edited, from the root.
        guard: label of the test target that must turn red. It depends on the file, and has the name of its test file.
        original: text that stands in the file exactly once.
        planted: text that is put in its place.
        test: name of the guard's test function, with an id in brackets if one set of parameters is enough.
        raises: names of errors by which the guard may fail, beside an assertion.

    Returns:
        The row.
    """
    for field, value in {"name": name, "does": does, "file": file, "guard": guard, "original": original, "test": test}.items():
        _refuse(name or "bug", None if value else "{}: empty. hint: a row says what is planted where, and who must see it".format(field))
    _refuse(name, None if ":" in guard and guard.startswith("//") else "guard {}: expected a label like //tests/unit/training:step_test".format(repr(guard)))
    _refuse(name, "planted: the original text. hint: plant another one" if original == planted else None)
    return struct(name = name, does = does, file = file, guard = guard, original = original, planted = planted, test = test, raises = raises)

def planted_bugs(name, bugs):
    """A test for each guard: it turns red for each of its bugs, and is green on a copy without one.

    `bugs.<guard>` depends on the guard's target alone, and so on what the guard depends on: a pass stays cached until a
    row, the guard or the code below it changes. Bugs of one guard share a target, since one process imports for all.

    Args:
        name: of the suite of all of them.
        bugs: rows made by `bug`.
    """
    _refuse(name, None if bugs else "bugs: empty. hint: plant one")
    guards = {}
    for row in bugs:
        guards.setdefault(row.guard, []).append(row)
    for guard, rows in guards.items():
        py_test(
            name = "bugs." + guard.removeprefix("//tests/").replace("/", ".").replace(":", "."),
            # Torch and its libraries take seconds to import, guards wait for ranks, and a machine may be busy.
            size = "large",
            srcs = ["//tests/negative:guard_test.py"],
            # As data, the guard brings its sources and wheels without becoming a part of this test.
            data = [guard],
            env = {
                "PLUMBLINE_BUGS": json.encode(rows).replace("$", "$$"),
                "PLUMBLINE_GUARD": guard,
            },
            deps = ["//tests/negative:planting"],
        )
    native.test_suite(name = name)

def smoke_cells(name, srcs, cells, also = [], data = [], deps = [], requires = {}):
    """One test for each cell of the smoke matrix, named `<name>.<cell>`, and one suite of all for each accelerator.

    All run one program, `<name>.program`, or `<name>.program.cards` if they ask for cards. Cells that block changes are
    in `...`. The others are manual, and run with the suite: `full` has every cell of the cpu, `full.<accelerator>` those
    of another. `full.1` to `full.8` have an eighth of the cpu's each, so that as many machines can share a night.

    Args:
        name: first part of every name.
        srcs: the test file, which finds in PLUMBLINE_CELL which cell it is to run.
        cells: the generated table: accelerators, depth, and names of cells, a line each. Names end in `_x<cards>`.
        also: other tests that are in the suites of the cpu.
        data: files that the tests read.
        deps: what they import directly.
        requires: for a feature, more constraint values that must hold for cells with it, as of py_test.
    """
    suites = {}
    programs = {}
    for accelerators, depth, names in cells:
        _refuse(name, None if depth in ("blocking", "full") else "depth {}: expected blocking or full".format(repr(depth)))
        for accelerator in accelerators:
            suffix = "" if accelerator == "cpu" else "." + accelerator
            kind = ".program" if accelerator == "cpu" else ".program.cards"
            if kind not in programs:
                programs[kind] = _program(name + kind, srcs, data, deps, cards = bool(suffix))
            for cell in names.strip().split("\n"):
                ranks = int(cell.rpartition("_x")[2])
                cards = ranks if suffix else 1
                _refuse(cell, accelerator_error([accelerator]) or cards_error([accelerator], cards))
                _program_test(
                    name = "{}.{}{}".format(name, cell, suffix),
                    **(programs[kind] | _asked(
                        accelerator,
                        cards,
                        # Two ranks wait for each other about half of the time.
                        cpus = 2 if ranks > 2 else 1,
                        env = {"PLUMBLINE_CELL": cell + suffix},
                        requires = [each for feature, needs in requires.items() if "_{}_".format(feature) in cell for each in needs],
                        # Thousands of cells, which `...` would bring along; the suites bring them.
                        tags = ["manual"] if depth == "full" else [],
                    ))
                )
                suites.setdefault("full" + suffix, []).append(":{}.{}{}".format(name, cell, suffix))
    if also:
        suites.setdefault("full", []).extend(also)
    every = suites.get("full", [])
    for part in range(_PARTS):
        if every[part::_PARTS]:
            suites["full.{}".format(part + 1)] = every[part::_PARTS]
    for suite, tests in suites.items():
        native.test_suite(name = suite, tags = ["manual"], tests = tests)

def smoke_routes(name, srcs, cells, data = [], deps = []):
    """Some cells of the cpu, sent to each pool of cards of a local cluster: `<name>.<pool>.<cell>`, and `<name>` for all.

    They are the real cells, with the cpu's wheels: a model is trained, killed and resumed on the pool's worker. What they
    prove is that a test goes where its pool says and runs there, and of a card nothing, which their verdicts say. On a
    worker that has cards, or anywhere but on one of that pool, they fail. All are manual, for they need a cluster.

    Args:
        name: first part of every name, and the suite of all.
        srcs: the test file, which finds in PLUMBLINE_CELL which cell it is to run.
        cells: names of cells of the cpu.
        data: files that the tests read.
        deps: what they import directly.
    """
    _refuse(name, None if cells else "cells: empty. hint: name a pair of the cpu's")
    tests = []
    program = _program(name + ".program", srcs, data, deps, cards = True)
    for pool, each in pools().items():
        for cell in cells if each.cards else []:
            # Manual, for it fails without a cluster; material, for no lane of CI has one.
            _program_test(
                name = "{}.{}.{}".format(name, pool, cell),
                **(program | _asked("cpu", 1, 1, {"PLUMBLINE_CELL": cell}, route = pool, tags = ["manual", "material"]))
            )
            tests.append(":{}.{}.{}".format(name, pool, cell))
    native.test_suite(name = name, tags = ["manual"], tests = tests)
