"""A launcher's variables become a world, or an error that names the one that is wrong."""

import pytest

from training.errors import ConfigError
from training.parallel.world import World, started_by_launcher

TORCHRUN = {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "node0",
    "MASTER_PORT": "29500",
}


def test_no_variables_is_no_launcher() -> None:
    assert started_by_launcher({"PATH": "/bin", "MASTER_ADDR": "node0"}) is None


def test_torchrun_says_all_of_it() -> None:
    assert started_by_launcher(TORCHRUN) == World(5, 8, 1, 4, "node0", 29500)


def test_without_local_variables_there_is_one_machine() -> None:
    least = {name: value for name, value in TORCHRUN.items() if not name.startswith("LOCAL")}
    assert started_by_launcher(least) == World(5, 8, 5, 8, "node0", 29500)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"WORLD_SIZE": None},
            "environment variable WORLD_SIZE: it is not set, while RANK or WORLD_SIZE is; expected ",
        ),
        ({"RANK": "first"}, "environment variable RANK: 'first'; expected a number, 0 or more. hint: start the ranks "),
        (
            {"MASTER_ADDR": None},
            "environment variable MASTER_ADDR: it is not set, while RANK is; expected the host of ",
        ),
        ({"MASTER_PORT": ""}, "environment variable MASTER_PORT: ''; expected a number"),
        ({"RANK": "8"}, "RANK, LOCAL_RANK: rank 8 of 8, 1 of 4 on this machine; expected ranks below their counts"),
        ({"LOCAL_RANK": "4"}, "RANK, LOCAL_RANK: rank 5 of 8, 4 of 4 on this machine"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(changed: dict[str, str | None], message: str) -> None:
    environment = {name: value for name, value in (TORCHRUN | changed).items() if value is not None}
    with pytest.raises(ConfigError) as refused:
        started_by_launcher(environment)
    assert str(refused.value).startswith(message)
