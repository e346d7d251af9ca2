"""Rewards are found by their names, weighed and added up; one that raises is named with its sample, or counted."""

import asyncio
import fcntl
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from training.errors import ConfigError, RewardError
from training.rollout.rewards import Answered, load_rewards, score
from training.rollout.verifiers import exact, follows_schema, last_number, matches, passes_test

OWN = """
import asyncio

def is_brief(prompt, completion, **columns):
    return float(len(completion) < 4)

async def slow(prompt, completion, *, answer, **others):
    await asyncio.sleep(0)
    return float(answer)

def fails(prompt, completion, **columns):
    raise KeyError("answer")

def nan(prompt, completion, **columns):
    return float("nan")
"""


@pytest.fixture
def own(tmp_path: Path) -> str:
    path = tmp_path / "own.py"
    path.write_text(OWN)
    return str(path)


def answered(completion: str, **columns: Any) -> Answered:
    return Answered("1+1=", completion, columns, "prompts.jsonl:3")


def test_rewards_are_weighed_and_added_up(own: str) -> None:
    rewards = load_rewards(["training.rollout.verifiers:exact", f"0.5*{own}:is_brief", f"-2*{own}:slow"], judged)
    scored = score(rewards, [answered("2", answer=2), answered("two or so", answer=3)], stops_at_error=True)
    assert [each.total for each in scored] == [1 + 0.5 - 4, -6]
    assert scored[0].each == {
        "training.rollout.verifiers:exact": 1.0,
        f"{own}:is_brief": 1.0,
        f"{own}:slow": 2.0,
    }


@pytest.mark.parametrize(("name", "got"), [("fails", "KeyError: 'answer'"), ("nan", "ValueError: it returned nan")])
def test_a_reward_that_raises_is_named_with_its_sample_or_counted(own: str, name: str, got: str) -> None:
    rewards = load_rewards([f"{own}:{name}", f"{own}:is_brief"], judged)
    with pytest.raises(RewardError) as raised:
        score(rewards, [answered("2")], stops_at_error=True)
    assert str(raised.value) == (
        f"prompts.jsonl:3: the reward {own}:{name} raised {got}, of the completion '2'; expected a finite number. "
        "hint: correct the function or the line, or count such completions as 0 with --on-reward-error count"
    )
    (counted,) = score(rewards, [answered("2")], stops_at_error=False)
    assert (counted.total, counted.num_errors) == (1.0, 1)


def judged(directory: str) -> Callable[..., float]:
    """Stands for a reward model."""
    return lambda prompt, completion, **columns: float(len(directory))


def test_a_directory_is_a_reward_model(tmp_path: Path) -> None:
    (reward,) = load_rewards([f"0.5*{tmp_path}"], judged)
    (scored,) = score([reward], [answered("2")], stops_at_error=True)
    assert scored.total == 0.5 * len(str(tmp_path))


@pytest.mark.parametrize(
    ("named", "cause"),
    [
        ("nowhere.to.be:found", "ModuleNotFoundError: No module named 'nowhere'"),
        ("training.rollout.verifiers:exakt", "AttributeError: "),
        ("training.rollout.verifiers:DRAFT", "TypeError: DRAFT is no function"),
        ("much*training.rollout.verifiers:exact", "ValueError: could not convert string to float: 'much'"),
        ("missing.py:reward", "FileNotFoundError: "),
    ],
)
def test_a_reward_that_cannot_be_loaded_is_refused(named: str, cause: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load_rewards([named], judged)
    assert str(raised.value).startswith(f"rl.rewards: {named}, which cannot be loaded ({cause}")
    assert str(raised.value).endswith(
        "; expected module:function, file.py:function or a directory, with weight* in front if it is not 1. hint: "
        "check the name; paths of files start where the command was typed"
    )


def test_exact_and_last_number() -> None:
    assert exact("", " 42\n", answer=42) == 1.0
    assert exact("", "4 2", answer="42") == 0.0
    assert last_number("", "6+7=13,8+5+1=14:143", answer=143) == 1.0
    assert last_number("", "143, no: -7.5", answer="-7.5") == 1.0
    assert last_number("", "none", answer=1) == 0.0


def test_matches_the_whole_completion() -> None:
    assert matches("", "<a>x\ny</a>", pattern="<a>.*</a>") == 1.0
    assert matches("", "<a>x</a>!", pattern="<a>.*</a>") == 0.0


SCHEMA = {
    "type": "object",
    "properties": {"n": {"type": "integer"}, "tags": {"type": "array", "items": {"enum": ["a", "b"]}}},
    "required": ["n"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ('{"n": 1, "tags": ["a", "b"]}', 1.0),
        ('{"n": true}', 0.0),
        ('{"n": 1.5}', 0.0),
        ('{"tags": []}', 0.0),
        ('{"n": 1, "tags": ["c"]}', 0.0),
        ('{"n": 1, "more": 2}', 0.0),
        ('{"n": 1', 0.0),
        ("[1]", 0.0),
    ],
)
def test_follows_schema(completion: str, expected: float) -> None:
    assert follows_schema("", completion, schema=SCHEMA) == expected


@pytest.mark.parametrize(
    ("schema", "follow", "do_not"),
    [
        ({"type": ["string", "null"]}, ['"x"', "null"], ["1", "[]"]),
        ({"enum": [1]}, ["1", "1.0"], ["true", "2"]),
        ({"type": "integer"}, ["1", "1.0", "-3"], ["1.5", "true", '"1"']),
        ({"type": "number"}, ["1e3"], ["NaN", "Infinity", "false"]),
        ({"type": "string", "maxLength": 3}, ['"abc"'], ['"abcd"']),
        ({"type": "string", "format": "ipv4"}, ['"127.0.0.1"'], ['"localhost"']),
        (
            {"$defs": {"list": {"items": {"$ref": "#/$defs/list"}, "type": "array"}}, "$ref": "#/$defs/list"},
            ["[]", "[[], [[]]]"],
            ["[1]", "[" * 9000 + "]" * 9000, "[" * 400 + "]" * 400],
        ),
        (True, ["1"], ["one"]),
    ],
    ids=str,
)
def test_schemas_are_those_of_the_standard(schema: Any, follow: list[str], do_not: list[str]) -> None:
    for expected, completions in ((1.0, follow), (0.0, do_not)):
        for completion in completions:
            assert follows_schema("", completion, schema=schema) == expected, completion


@pytest.mark.parametrize(
    ("schema", "got"),
    [
        ({"properties": {"a": {"items": {"maxLenght": 3}}}}, r"\$\.properties\.a\.items: .*'maxLenght' was unexpected"),
        ({"type": "strin"}, r"\$\.type: 'strin' is not valid"),
        ({"format": "phone"}, r"\$\.format: 'phone' is not one of"),
        ({"$schema": "http://json-schema.org/draft-07/schema#"}, r"\$\['?\$schema'?\]: .* was expected"),
        ("string", r"\$: 'string' is not of type"),
    ],
)
def test_what_is_no_schema_is_no_reward_of_0(schema: Any, got: str) -> None:
    with pytest.raises(ValueError, match=f"^no schema of draft 2020-12, at {got}"):
        follows_schema("", '"x"', schema=schema)


def test_a_schema_elsewhere_is_not_fetched() -> None:
    with pytest.raises(Exception, match=r"Unresolvable: http://127\.0\.0\.1:9/schema"):
        follows_schema("", "1", schema={"$ref": "http://127.0.0.1:9/schema"})


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("def f(x):\n    return x + 1", 1.0),
        ("Sure:\n```python\ndef f(x):\n    return x + 1\n```\nThere.", 1.0),
        ("def f(x):\n    return x", 0.0),
        ("not python", 0.0),
        ("def f(x):\n    return [0] * 10**10", 0.0),
        ("open('big', 'wb').write(b'0' * 2**21)\ndef f(x): return x + 1", 0.0),
        ("import os\ndef f(x): return x + 1 + len(os.environ.get('HOME', ''))", 1.0),
        ("import sys\nsys.exit(0)", 0.0),
        ("import os\nos._exit(0)", 0.0),
    ],
)
def test_passes_test_runs_the_program_within_limits(completion: str, expected: float, monkeypatch: Any) -> None:
    monkeypatch.setenv("HOME", "elsewhere")
    assert passes_test("", completion, test="assert f(1) == 2") == expected


def test_a_program_that_does_not_end_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.rollout.verifiers.SECONDS_MAX", 1)
    assert passes_test("", "import time\ntime.sleep(60)", test="") == 0.0
    assert passes_test("", "while True: pass", test="") == 0.0


def test_what_a_program_has_started_ends_with_it(tmp_path: Path) -> None:
    """The other half of the fork holds the lock for as long as it lives."""
    lock = tmp_path / "lock"
    holding = f"import fcntl, os, time\nfile = open({str(lock)!r}, 'w')\nfcntl.flock(file, fcntl.LOCK_EX)\n"
    assert passes_test("", holding + "if os.fork() == 0: time.sleep(600)", test="") == 1.0
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)


FORGES = """
import builtins, gc, os, re, sys
builtins.exec = builtins.print = builtins.compile = lambda *given, **named: None
said = [open("/proc/self/cmdline").read(), str(dict(os.environ))]
for number in range(3, 20):
    try:
        said.append(os.pread(number, 10**6, 0).decode())
    except OSError:
        pass
frame = sys._getframe()
while frame:
    said += [str(frame.f_locals), str(frame.f_globals), str(frame.f_code.co_consts)]
    frame = frame.f_back
said += [str(each) for each in gc.get_objects() if type(each) in (list, tuple, dict)]
said.append(sys.stdin.read())
words = set(re.findall(r"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])", str(said)))
os.write(1, "".join(sorted(words)).encode())
os._exit(0)
"""


def test_a_program_that_looks_for_the_word_that_means_passed_does_not_find_it() -> None:
    """In its command line, its files, its callers' variables, and in all that the garbage collector knows."""
    assert passes_test("", FORGES, test="assert False") == 0.0
    assert passes_test("", "import builtins\nbuiltins.exec = print", test="assert False") == 0.0
    assert passes_test("", "x = 1\0", test="") == passes_test("", "x = '\ud800'", test="") == 0.0, "no Python"


def has_namespaces() -> bool:
    """Whether this system lets a process have its own."""
    asks = "import ctypes, sys; sys.exit(ctypes.CDLL(None).unshare(0x70000000) != 0)"
    return subprocess.run([sys.executable, "-c", asks], check=False).returncode == 0


def test_a_fork_bomb_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each fork holds the lock for as long as it lives; with namespaces those that have left their group end too."""
    monkeypatch.setattr("training.rollout.verifiers.SECONDS_MAX", 1)
    lock = tmp_path / "lock"
    bomb = f"""
import fcntl, os, time
file = open({str(lock)!r}, "w")
fcntl.flock(file, fcntl.LOCK_EX)
for _ in range(7):
    try:
        if os.fork() == 0 and {has_namespaces()}:
            os.setsid()
    except OSError:
        pass
time.sleep(600)
"""
    assert passes_test("", bomb, test="") == 0.0
    with lock.open("w") as file:
        for _ in range(100):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                time.sleep(0.1)
    pytest.fail("a fork is still there")


def test_a_program_with_namespaces_has_no_network_and_few_processes() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        connects = f"import socket\nsocket.create_connection({server.getsockname()!r}, 1)"
        assert passes_test("", connects, test="") == float(not has_namespaces())
    limited = "import resource\nassert resource.getrlimit(resource.RLIMIT_NPROC) == (64, 64)"
    assert passes_test("", limited, test="") == float(has_namespaces())


def test_async_rewards_wait_together(own: str) -> None:
    """Each waits until both have begun: one after the other they would wait for ever."""
    begun = asyncio.Barrier(2)

    async def together(prompt: Any, completion: str, **columns: Any) -> float:
        await begun.wait()
        return 1.0

    (reward,) = load_rewards(["training.rollout.verifiers:exact"], judged)
    scored = score([replace(reward, function=together)], [answered("a"), answered("b")], stops_at_error=True)
    assert [each.total for each in scored] == [1.0, 1.0]
