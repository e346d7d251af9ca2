"""The macros, run as the Python that Starlark nearly is: what they refuse, and what they hand to the rules."""

import json
import pathlib
import types
from typing import Any

import pytest

from tools.bazel.starlark import starlark
from tools.devices.check import FARM

BAZEL = pathlib.Path("tools/bazel")


class LoadFailure(Exception):
    """What Starlark's fail() is here."""


def fail(message: str) -> None:
    raise LoadFailure(message)


class Select(dict):
    """What select() is here: its choices, which a dictionary or a list that it is joined to keeps as they are."""

    def __ror__(self, other: dict[str, Any]) -> dict[str, Any]:
        return {**other, "select": dict(self)}

    def __radd__(self, other: list[Any]) -> list[Any]:
        return [*other, dict(self)]


def loaded(file: str, **names: Any) -> dict[str, Any]:
    """The global names of a .bzl file, given what its load statements would bring."""
    brought: dict[str, Any] = {"fail": fail, "load": lambda *_, **__: None, **names}
    return starlark((BAZEL / file).read_text(), **brought)


# As @plumbline_host says it of a machine.
HERE = {"gpu-amd": "gfx942, driver 6.12.12"}
TABLE = loaded("accelerators.bzl")


@pytest.fixture
def targets() -> list[dict[str, Any]]:
    """Everything that the macros declared."""
    return []


@pytest.fixture
def macros(targets: list[dict[str, Any]]):
    """A function that gives the macros as a BUILD file in `package` sees them."""

    def macros(package: str = "tests/unit/training") -> types.SimpleNamespace:
        native = types.SimpleNamespace(
            package_name=lambda: package,
            # A suite of everything in its package names no tests.
            test_suite=lambda **given: targets.append({"suite": given}) if "tests" in given else None,
        )
        encoder = types.SimpleNamespace(encode=lambda value: json.dumps(value, default=vars))
        rules = {
            name: lambda **attributes: targets.append(attributes)
            for name in ("_program_test", "_py_binary", "_py_library", "_py_test")
        }
        rules["_closure"] = None
        return types.SimpleNamespace(
            **loaded("defs.bzl", native=native, json=encoder, select=Select, FINGERPRINTS=HERE, **rules, **TABLE)
        )

    return macros


def test_a_test_carries_its_tier_and_accelerator_as_tags(macros, targets) -> None:
    macros("tests/subsystem").py_test(name="x_test", srcs=["x_test.py"])
    (target,) = targets
    assert target["tags"] == ["subsystem", "cpu"]
    assert target["target_compatible_with"] == []


def test_each_accelerator_makes_a_target_of_its_own(macros, targets) -> None:
    macros().py_test(name="x_test", srcs=["x_test.py"], accelerators=["cpu", "gpu-nvidia"])
    assert [target["name"] for target in targets] == ["x_test", "x_test.gpu-nvidia"]
    assert targets[1]["tags"] == ["unit", "gpu-nvidia"]
    assert targets[1]["target_compatible_with"] == ["//tools/bazel:gpu-nvidia"]


def test_the_test_alone_goes_to_the_pool_of_its_accelerator_and_cards(macros, targets) -> None:
    macros().py_test(name="x_test", srcs=["x_test.py"], accelerators=["cpu", "gpu-amd"], cards=4)
    assert [target["exec_properties"] for target in targets] == [{}, {"test.Pool": "gpu-amd-x4"}]
    assert [target["target_compatible_with"] for target in targets] == [[], ["//tools/bazel:gpu-amd-x4"]]
    assert ["multi-gpu" in target["tags"] for target in targets] == [False, True]


def test_what_is_asked_of_the_hardware_reaches_the_runner(macros, targets) -> None:
    macros().py_test(name="x_test", srcs=["x_test.py"], accelerators=["cpu", "gpu-amd"], cards=4)
    asked = [{name for name in target["env"] if name.startswith("PLUMBLINE")} for target in targets]
    assert asked[0] == {"PLUMBLINE_ACCELERATOR", "PLUMBLINE_CPUS"}
    assert (
        targets[1]["env"].items()
        >= {
            "PLUMBLINE_ACCELERATOR": "gpu-amd",
            "PLUMBLINE_CARDS": "4",
            "PLUMBLINE_CARD_GIB": str(TABLE["ACCELERATORS"]["gpu-amd"].memory_gib),
            "PLUMBLINE_DRIVER": TABLE["ACCELERATORS"]["gpu-amd"].driver,
            "PLUMBLINE_HARDWARE": HERE["gpu-amd"],
            "PLUMBLINE_POOL": "gpu-amd-x4",
            "PLUMBLINE_TORCH": "hip",
            "PLUMBLINE_VISIBLE": "ROCR_VISIBLE_DEVICES",
        }.items()
    )


def test_results_of_a_farm_are_filed_under_its_cards_where_they_are_named_and_else_under_its_word() -> None:
    of, cards = TABLE["farm_fingerprints"], ["gpu-amd", "gpu-nvidia"]
    assert of("1", cards) == {"gpu-amd": "farm:1", "gpu-nvidia": "farm:1"}
    assert of("gpu-amd=gfx942 0x74a1, 192 GiB, driver 6.12.12; 2", cards) == {
        "gpu-amd": "gfx942 0x74a1, 192 GiB, driver 6.12.12",
        "gpu-nvidia": "farm:2",
    }
    with pytest.raises(
        LoadFailure, match="PLUMBLINE_FARM: 'gpu-adm=x': expected some of gpu-amd, gpu-nvidia, or a word"
    ):
        of("gpu-adm=x", cards)
    assert '"farm:"' in (BAZEL / "accelerators.bzl").read_text()
    assert FARM == "farm:"


def test_platforms_have_the_cards_that_are_here_and_one_of_what_they_are_named_after(targets) -> None:
    native = types.SimpleNamespace(
        filegroup=lambda **_: None, platform=lambda **given: targets.append(given), constraint_setting=lambda **_: None
    )
    native.constraint_value = lambda **given: targets.append(given)
    macros = loaded("platforms.bzl", native=native, **TABLE)
    macros["accelerator_constraints"](name="constraints")
    constraints = {"//tools/bazel:" + each["name"] for each in targets}
    assert constraints == {f"//tools/bazel:{pool}" for pool in TABLE["pools"]() if pool != "cpu"}
    targets.clear()
    macros["accelerator_platforms"](name="platforms", here={"gpu-amd": 5, "gpu-intel": 1}, default="gpu-amd")
    offers = {each["name"]: each["constraint_values"] for each in targets}
    assert offers == {
        "rocm": ["//tools/bazel:gpu-amd", "//tools/bazel:gpu-amd-x4"],
        "xpu": ["//tools/bazel:gpu-intel"],
        "cuda": ["//tools/bazel:gpu-nvidia"],
        "host": ["//tools/bazel:gpu-amd", "//tools/bazel:gpu-amd-x4"],
    }


def test_a_machine_without_cards_offers_none(targets) -> None:
    native = types.SimpleNamespace(filegroup=lambda **_: None, platform=lambda **given: targets.append(given))
    loaded("platforms.bzl", native=native, **TABLE)["accelerator_platforms"](name="platforms", here={}, default="")
    assert [each["constraint_values"] for each in targets if each["name"] == "host"] == [[]]


def test_a_test_of_the_cpu_sees_no_card_of_the_platform_that_it_is_built_for(macros, targets) -> None:
    macros().py_test(name="x_test", srcs=["x_test.py"], accelerators=["cpu", "gpu-nvidia"])
    hidden = targets[0]["env"]["select"]
    assert hidden.pop("//conditions:default") == {}
    assert hidden["//tools/bazel:gpu-nvidia"] == {"CUDA_VISIBLE_DEVICES": "-1"}
    assert all(hidden.values())
    assert set(hidden) == {
        f"//tools/bazel:{accelerator}" for accelerator, row in TABLE["ACCELERATORS"].items() if row.cards
    }
    assert "select" not in targets[1]["env"]


def test_a_library_has_what_only_cards_can_use_where_there_are_cards(macros, targets) -> None:
    liger = ["@pypi_kernels//liger_kernel"]
    macros("training/models").py_library(name="models", deps=["@pypi//torch"], card_deps=liger)
    (target,) = targets
    *everywhere, chosen = target["deps"]
    assert everywhere == ["@pypi//torch"]
    assert chosen.pop("//conditions:default") == []
    assert set(chosen) == {f"//tools/bazel:{name}" for name, row in TABLE["ACCELERATORS"].items() if row.cards}
    assert all(each == liger for each in chosen.values())


def test_declared_cpus_reach_the_scheduler_and_the_runner(macros, targets) -> None:
    macros().py_test(name="x_test", srcs=["x_test.py"], cpus=2)
    assert "cpu:2" in targets[0]["tags"]
    assert targets[0]["env"]["PLUMBLINE_CPUS"] == "2"


def test_pytest_runs_exactly_the_listed_files(macros, targets) -> None:
    macros().py_test(name="x_test", srcs=["x_test.py", "y_test.py"])
    assert targets[0]["args"] == ["$(rootpath x_test.py)", "$(rootpath y_test.py)"]
    assert targets[0]["main"] == "//tools/bazel:pytest_runner.py"


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"tags": ["gpu"]}, "tag 'gpu': unknown; expected one of manual, material."),
        ({"tags": ["gpu-amd"]}, "tag 'gpu-amd': accelerators are not tags. hint: accelerators = [\"gpu-amd\"]"),
        ({"tags": ["unit"]}, "tag 'unit': the tier follows from the package."),
        (
            {"accelerators": ["nvidia"]},
            "accelerators: 'nvidia' is unknown; expected some of cpu, gpu-amd, gpu-intel, gpu-nvidia",
        ),
        ({"accelerators": []}, "accelerators: empty."),
        ({"accelerators": ["gpu-amd"], "cards": 3}, "cards: 3 of gpu-amd; expected one of 1, 4. hint: add a pool"),
        ({"cards": 4}, 'cards: 4, and no accelerator that has any. hint: accelerators = ["gpu-nvidia"]'),
        ({"accelerators": ["cpu", "cpu"]}, "accelerators: 'cpu' is named twice"),
        ({"srcs": []}, "srcs: empty. hint: name the test files"),
        ({"route": "gpu-adm"}, "route: 'gpu-adm'; expected one of gpu-amd, gpu-amd-x4, gpu-intel,"),
        ({"route": "cpu"}, "route: 'cpu'; expected one of gpu-amd, gpu-amd-x4, gpu-intel,"),
        (
            {"route": "gpu-amd", "accelerators": ["gpu-amd"]},
            "route: 'gpu-amd' of a test for gpu-amd; expected one of the cpu.",
        ),
    ],
)
def test_a_wrong_word_fails_when_the_file_is_loaded(macros, attributes, message) -> None:
    with pytest.raises(LoadFailure) as failure:
        macros().py_test(**{"name": "x_test", "srcs": ["x_test.py"], **attributes})
    assert message in str(failure.value)
    assert "//tests/unit/training:x_test" in str(failure.value)


def test_a_test_outside_the_tiers_fails(macros) -> None:
    with pytest.raises(LoadFailure, match="no tier for a test in this package"):
        macros("training").py_test(name="x_test", srcs=["x_test.py"])


@pytest.mark.parametrize("macro", ["py_library", "py_binary"])
def test_libraries_and_programs_refuse_unknown_tags_too(macros, macro) -> None:
    with pytest.raises(LoadFailure, match="tag 'fast': unknown"):
        getattr(macros("training"), macro)(name="x", srcs=["x.py"], tags=["fast"])


def test_libraries_and_programs_carry_the_cpu_tag(macros, targets) -> None:
    macros("training").py_library(name="x", srcs=["x.py"])
    macros("training").py_binary(name="y", srcs=["y.py"])
    assert [target["tags"] for target in targets] == [["cpu"], ["cpu"]]
    assert targets[1]["main"] == "y.py"


BUG = {
    "name": "off_by_one",
    "does": "It counts from one.",
    "file": "training/step.py",
    "guard": "//tests/unit/training:step_test",
    "original": "$(first)",
    "planted": "second",
    "test": "test_first",
}


def test_the_bugs_of_a_guard_are_a_target_that_runs_it(macros, targets) -> None:
    defs = macros("tests/negative/step")
    other = {"name": "other", "guard": "//tests/subsystem:ranks_test"}
    rows = [BUG, BUG | other, BUG | {"name": "twice", "test": "test_sum"}]
    defs.planted_bugs(name="step", bugs=[defs.bug(**row) for row in rows])
    assert [target["name"] for target in targets] == ["bugs.unit.training.step_test", "bugs.subsystem.ranks_test"]
    assert [target["data"] for target in targets] == [[BUG["guard"]], [other["guard"]]]
    assert [target["env"]["PLUMBLINE_GUARD"] for target in targets] == [BUG["guard"], other["guard"]]
    assert {(*target["tags"],) for target in targets} == {("negative", "cpu")}
    assert targets[0]["args"] == ["$(rootpath //tests/negative:guard_test.py)"]
    assert "$$(first)" in targets[0]["env"]["PLUMBLINE_BUGS"], "Bazel expands variables, and not in a row"
    assert [(row["name"], row["test"]) for row in json.loads(targets[0]["env"]["PLUMBLINE_BUGS"])] == [
        ("off_by_one", "test_first"),
        ("twice", "test_sum"),
    ]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"does": ""}, "does: empty. hint: a row says what is planted where, and who must see it"),
        ({"guard": "step_test"}, "guard 'step_test': expected a label like //tests/unit/training:step_test"),
        ({"planted": "$(first)"}, "planted: the original text. hint: plant another one"),
    ],
)
def test_a_bug_that_says_too_little_fails_when_the_file_is_loaded(macros, changed, message) -> None:
    with pytest.raises(LoadFailure) as failure:
        macros("tests/negative/step").bug(**BUG | changed)
    assert f"//tests/negative/step:off_by_one: {message}" in str(failure.value)


def test_no_bugs_at_all_fail(macros) -> None:
    with pytest.raises(LoadFailure, match=r"bugs: empty\. hint: plant one"):
        macros("tests/negative/step").planted_bugs(name="step", bugs=[])


def test_a_test_may_be_run_by_another(macros, targets) -> None:
    macros().py_test(name="x_test", srcs=["x_test.py"], visibility=["//tools:__pkg__"])
    assert targets[0]["visibility"] == ["//tools:__pkg__", "//tests:__subpackages__"]


CELLS = [
    (["cpu"], "blocking", "\nsft_ddp_x1\nsft_lora_fsdp_x4\n"),
    (["gpu-amd", "gpu-nvidia"], "full", "\nsft_fsdp_x4\n"),
]


def of_programs(targets) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """Programs, and the tests that run one of them, by their names."""
    named = {target["name"]: target for target in targets if "name" in target}
    programs = {name: target for name, target in named.items() if "main" in target}
    tests = {name: target for name, target in named.items() if name not in programs}
    assert {target["program"].removeprefix(":") for target in tests.values()} == programs.keys()
    return programs, tests


def test_each_smoke_cell_is_a_test_of_its_own_and_in_the_suite_of_its_accelerator(macros, targets) -> None:
    needs = {"lora": ["@plumbline_cpp//:available"], "sft": ["@other//:x"]}
    macros("tests/smoke").smoke_cells(
        name="smoke", srcs=["cell_test.py"], cells=CELLS, deps=[":runner"], requires=needs
    )
    programs, tests = of_programs(targets)
    assert list(tests) == [
        "smoke.sft_ddp_x1",
        "smoke.sft_lora_fsdp_x4",
        "smoke.sft_fsdp_x4.gpu-amd",
        "smoke.sft_fsdp_x4.gpu-nvidia",
    ]
    assert tests["smoke.sft_lora_fsdp_x4"]["tags"] == ["smoke", "cpu", "cpu:2", "needs:cpp"]
    assert tests["smoke.sft_lora_fsdp_x4"]["target_compatible_with"] == ["@plumbline_cpp//:available"]
    assert tests["smoke.sft_ddp_x1"]["target_compatible_with"] == []
    assert tests["smoke.sft_lora_fsdp_x4"]["env"]["PLUMBLINE_CELL"] == "sft_lora_fsdp_x4"
    assert tests["smoke.sft_ddp_x1"]["program"] == ":smoke.program"
    nvidia = tests["smoke.sft_fsdp_x4.gpu-nvidia"]
    assert nvidia["program"] == ":smoke.program.cards"
    assert "//tools/devices" in programs["smoke.program.cards"]["deps"]
    assert programs["smoke.program"]["deps"] == [":runner", "//tools/bazel:runner", "@pypi//pytest"]
    assert {(*test["args"],) for test in tests.values()} == {("tests/smoke/cell_test.py",)}
    assert nvidia["tags"] == ["manual", "smoke", "gpu-nvidia", "cpu:2", "multi-gpu"]
    assert nvidia["env"]["PLUMBLINE_CELL"] == "sft_fsdp_x4.gpu-nvidia"
    assert nvidia["target_compatible_with"] == ["//tools/bazel:gpu-nvidia-x4"]
    suites = {target["suite"]["name"]: target["suite"] for target in targets if "suite" in target}
    assert suites["full"]["tests"] == [":smoke.sft_ddp_x1", ":smoke.sft_lora_fsdp_x4"]
    assert [suites[f"full.{part}"]["tests"] for part in (1, 2)] == [[each] for each in suites["full"]["tests"]]
    assert "full.3" not in suites, "an empty suite would be every test of the package"
    assert suites["full.gpu-nvidia"] == {
        "name": "full.gpu-nvidia",
        "tags": ["manual"],
        "tests": [":smoke.sft_fsdp_x4.gpu-nvidia"],
    }


def test_a_pair_of_cells_of_the_cpu_goes_to_each_pool_of_cards_and_to_no_other(macros, targets) -> None:
    pair = ["sft_single_x1", "sft_lora_ddp_x2"]
    macros("tests/smoke").smoke_routes(name="routes", srcs=["cell_test.py"], cells=pair, deps=[":runner"])
    suite = targets[-1]
    programs, named = of_programs(targets)
    tests = [*named.values()]
    pools = [pool for pool, each in TABLE["pools"]().items() if each.cards]
    assert [each["name"] for each in tests] == [f"routes.{pool}.{cell}" for pool in pools for cell in pair]
    assert suite["suite"] == {"name": "routes", "tags": ["manual"], "tests": [f":{each['name']}" for each in tests]}
    for test, (pool, cell) in zip(tests, [(pool, cell) for pool in pools for cell in pair], strict=True):
        assert test["exec_properties"] == {"test.Pool": pool}
        assert test["tags"] == ["manual", "material", "smoke", "cpu", f"route:{pool}"]
        asked = {name: value for name, value in test["env"].items() if name.startswith("PLUMBLINE")}
        assert asked == {
            "PLUMBLINE_ACCELERATOR": "cpu",
            "PLUMBLINE_CELL": cell,
            "PLUMBLINE_CPUS": "1",
            "PLUMBLINE_ROUTE": pool,
        }
        assert test["target_compatible_with"] == [], "the cpu's wheels are there on every platform"
    assert ["//tools/devices" in program["deps"] for program in programs.values()] == [True]
    with pytest.raises(LoadFailure, match="cells: empty"):
        macros("tests/smoke").smoke_routes(name="routes", srcs=["cell_test.py"], cells=[])


def test_a_test_that_is_for_a_night_as_well_is_in_the_suites_of_the_cpu(macros, targets) -> None:
    macros("tests/smoke").smoke_cells(name="smoke", srcs=["cell_test.py"], cells=CELLS, also=[":every_test"])
    suites = {target["suite"]["name"]: target["suite"]["tests"] for target in targets if "suite" in target}
    assert suites["full"][-1] == ":every_test"
    assert suites["full.3"] == [":every_test"]
    assert ":every_test" not in suites["full.gpu-nvidia"]


def test_a_depth_that_nobody_runs_fails(macros) -> None:
    with pytest.raises(LoadFailure, match="depth 'deep': expected blocking or full"):
        macros("tests/smoke").smoke_cells(name="smoke", srcs=["cell_test.py"], cells=[(["cpu"], "deep", "sft_ddp_x1")])
