"""Where actions were is held against where they belong: a difference is red, and so is nothing at all."""

import json
from pathlib import Path

import pytest

from tools.bazel.starlark import starlark
from tools.ci.audit import Target
from tools.pools.jobs import Ran
from tools.pools.ran import main, plain, report, sent
from tools.pools.services import Worker
from tools.pools.table import TABLE

NAMES = starlark(Path(TABLE).read_text())
WORKERS = [Worker("cpu", 2, False), Worker("cpu", 2, False, number=2), Worker("gpu-amd", 1, True)]
WORKERS += [Worker("gpu-amd-x4", 1, True)]
TARGETS = {
    each.label: each
    for each in (
        Target("//tests/unit/a:x_test", frozenset({"cpu", "unit"})),
        Target("//tests/smoke:c_x4.gpu-amd", frozenset({"gpu-amd", "smoke"}), num_cards=4),
        Target("//tests/smoke:routes.y", frozenset({"cpu", "smoke", "route:gpu-amd"})),
    )
}
SENT = {"//tools/pools:routes.gpu-amd": "gpu-amd"}
RIGHT = [
    Ran("@@//tests/unit/a:x_test", "TestRunner", "worker-cpu-2", 1),
    Ran("//tests/smoke:c_x4.gpu-amd", "TestRunner", "worker-gpu-amd-x4", 2),
    Ran("//tests/smoke:routes.y", "TestRunner", "worker-gpu-amd", 1),
    Ran("//tools/pools:routes.gpu-amd", "Route", "worker-gpu-amd", 1),
    Ran("@@pypi//torch:torch", "CopyWheel", "worker-cpu", 1),
]


def told(*jobs: Ran, every: bool = False) -> tuple[list[str], int]:
    return report(jobs, WORKERS, TARGETS, SENT, NAMES, every=every)


def test_what_ran_where_it_belongs_is_listed_with_its_worker_and_pool() -> None:
    lines, num_astray = told(*RIGHT)
    assert num_astray == 0
    assert lines == [
        "right      //tests/unit/a:x_test TestRunner: worker-cpu-2, pool cpu",
        "right      //tests/smoke:c_x4.gpu-amd TestRunner: worker-gpu-amd-x4, pool gpu-amd-x4, simulated, at attempt 2",
        "right      //tests/smoke:routes.y TestRunner: worker-gpu-amd, pool gpu-amd, simulated",
        "     1 in cpu, other actions",
        "     1 in cpu, tests",
        "     1 in gpu-amd, other actions",
        "     1 in gpu-amd, tests",
        "     1 in gpu-amd-x4, tests",
        "all of them where they belong",
    ]
    assert len(told(*RIGHT, every=True)[0]) == len(lines) + 2


@pytest.mark.parametrize(
    ("ran", "said"),
    [
        (("//tests/unit/a:x_test", "TestRunner", "worker-gpu-amd"), "pool gpu-amd; expected cpu"),
        (("//tests/smoke:c_x4.gpu-amd", "TestRunner", "worker-gpu-amd"), "pool gpu-amd; expected gpu-amd-x4"),
        (("//tests/smoke:c_x4.gpu-amd", "TestRunner", "worker-cpu"), "pool cpu; expected gpu-amd-x4"),
        (("//tests/smoke:routes.y", "TestRunner", "worker-cpu"), "pool cpu; expected gpu-amd"),
        (("//tests/smoke:c_x4.gpu-amd", "PyTemplate", "worker-gpu-amd-x4"), "pool gpu-amd-x4; expected cpu"),
        (("//tools/pools:routes.gpu-amd", "Route", "worker-cpu"), "pool cpu; expected gpu-amd"),
        (("//tests/unit/a:x_test", "TestRunner", "worker-of-others"), "pool no pool of this cluster; expected cpu"),
    ],
)
def test_what_ran_elsewhere_is_red_with_both_pools(ran: tuple[str, str, str], said: str) -> None:
    lines, num_astray = told(*RIGHT, Ran(*ran, 1))
    assert num_astray == 1
    (line,) = [line for line in lines if line.startswith("astray ")]
    assert said in line
    assert ran[0] in line


def test_nothing_that_could_be_compared_is_red() -> None:
    for jobs in ([], [Ran("//gone:x_test", "TestRunner", "worker-cpu", 1)], [Ran("", "", "worker-cpu", 1)]):
        assert told(*jobs)[1] == 1
        assert "nothing ran that could be compared" in told(*jobs)[0][-1]


def test_pools_that_targets_name_for_all_of_their_actions_are_read() -> None:
    def rule(name: str, **properties: str) -> str:
        values = [{"key": key.replace("_", "."), "value": value} for key, value in properties.items()]
        return json.dumps(
            {"rule": {"name": name, "attribute": [{"name": "exec_properties", "stringDictValue": values}]}}
        )

    assert sent([rule("@@//a:b", Pool="gpu-amd"), rule("//a:c", test_Pool="gpu-intel"), ""]) == {"//a:b": "gpu-amd"}
    assert plain("@@pypi//torch:torch") == "@@pypi//torch:torch"


def test_where_no_cluster_runs_there_is_nothing_to_say(tmp_path, capsys) -> None:
    assert main(["--state", str(tmp_path)]) == 69
    assert "no cluster runs in" in capsys.readouterr().err
