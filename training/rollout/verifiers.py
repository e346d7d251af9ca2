"""Rewards that can be checked: 1.0 if a completion is what it should be, 0.0 if not.

Each is a reward as `training.rollout.rewards` calls it, and reads one column of the prompt's line. A person's own are
written in the same way, in a file of theirs.
"""

import json
import os
import re
import resource
import secrets
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from functools import lru_cache
from typing import Any

SECONDS_MAX = 5
"""Of a completion's program: processor time, and twice as long by the clock."""

BYTES_MAX = 2**30
"""Memory that it may address."""

PROCESSES_MAX = 64
"""Of a completion's program at a time."""

JUDGE = f"""
import ctypes, json, os, resource, sys, types

# Namespaces of users, processes and networks. In them processes are counted apart, elsewhere with all of the user's.
if ctypes.CDLL(None).unshare(0x70000000) == 0:
    resource.setrlimit(resource.RLIMIT_NPROC, ({PROCESSES_MAX}, {PROCESSES_MAX}))
    if child := os.fork():
        os._exit(os.waitpid(child, 0)[1] != 0)

def say(word, done, write=os.write, leave=os._exit):
    write(1, word.encode())
    leave(0)

def judge(parts):
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    codes = compile(parts.pop(0), "completion", "exec"), compile(parts.pop(0), "test", "exec")
    # No variable and no list has the word while they run: it waits for what they return, to be passed on with it.
    say(parts.pop(), list(map(exec, codes, (vars(main), vars(main)))))

judge(json.load(sys.stdin))
"""
"""What the process of a program runs: it reads program, test and a word, which it says once the test has ended."""

DRAFT = "https://json-schema.org/draft/2020-12/schema"


def exact(prompt: Any, completion: str, *, answer: Any, **others: Any) -> float:
    """1.0 if the completion is the answer, but for white space around it."""
    return float(completion.strip() == str(answer).strip())


def last_number(prompt: Any, completion: str, *, answer: Any, **others: Any) -> float:
    """1.0 if the last number of the completion is the answer: for answers with shown work before them."""
    numbers = re.findall(r"-?\d+(?:\.\d+)?", completion.replace(",", " "))
    return float(bool(numbers) and float(numbers[-1]) == float(answer))


def matches(prompt: Any, completion: str, *, pattern: str, **others: Any) -> float:
    """1.0 if the regular expression matches the whole completion."""
    return float(re.fullmatch(pattern, completion, re.DOTALL) is not None)


def follows_schema(prompt: Any, completion: str, *, schema: Any, **others: Any) -> float:
    """1.0 if the completion is JSON that follows the schema, by draft 2020-12 of JSON Schema.

    Raises:
        ValueError: that is no schema, or it has a keyword or a format that nobody would look at.
    """
    judge = _validator(json.dumps(schema))
    try:
        return float(judge.is_valid(json.loads(completion, parse_constant=_is_no_json)))
    except (json.JSONDecodeError, RecursionError):
        return 0.0


def _is_no_json(constant: str) -> None:
    """For NaN and the like, which Python would read."""
    raise json.JSONDecodeError("no JSON", constant, 0)


@lru_cache
def _validator(schema: str) -> Any:
    """What judges by the schema, which is JSON here, so that the next completion need not have it checked again."""
    # Here, as no other reward needs it.
    from jsonschema import Draft202012Validator
    from referencing import Registry

    # The draft's own schema of schemas, at every level of which nothing may be left over. It ignores what it does not
    # know, and with it a keyword in which a letter is wrong.
    strict = {
        "$schema": DRAFT,
        "$id": "urn:strict",
        "$dynamicAnchor": "meta",
        "$ref": DRAFT,
        "properties": {
            "$schema": {"const": DRAFT},
            "format": {"enum": sorted(Draft202012Validator.FORMAT_CHECKER.checkers)},
        },
        "unevaluatedProperties": False,
    }
    value = json.loads(schema)
    for error in Draft202012Validator(strict).iter_errors(value):
        raise ValueError(f"no schema of draft 2020-12, at {error.json_path}: {error.message}")
    # A registry of its own: without one, it would fetch what a schema refers to.
    return Draft202012Validator(value, registry=Registry(), format_checker=Draft202012Validator.FORMAT_CHECKER)


def passes_test(prompt: Any, completion: str, *, test: str, **others: Any) -> float:
    """1.0 if the completion's Python, followed by `test`, comes to the end of it without an error.

    A completion that exits before the test has not passed it. The program is the first block between ``` lines, or all
    of the completion. It runs in a process of its own, in an empty directory, without this process's environment, with
    limits on time, memory and the size of files. Where the system lets it have namespaces of its own, there is
    no network in them, there are few processes at a time (of root, as many as it likes), and all of them end with it.
    That stops accidents and cheap tricks. It is no jail: where completions may be hostile, run all of training in a
    container without a network.
    """
    block = re.search(r"```(?:python|py)?\n(.*?)```", completion, re.DOTALL)
    word = secrets.token_hex()
    # A file, whose size is limited, and not a pipe, which would be read into memory without end.
    with (
        tempfile.TemporaryDirectory() as directory,
        tempfile.TemporaryFile() as said,
        subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", JUDGE],
            cwd=directory,
            env={},
            stdin=subprocess.PIPE,
            stdout=said,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        ) as process,
    ):
        # Set from here: Python between fork and exec is not safe in a process with threads, as one that trains has.
        for limit, value in (
            (resource.RLIMIT_CPU, SECONDS_MAX),
            (resource.RLIMIT_AS, BYTES_MAX),
            (resource.RLIMIT_FSIZE, 2**20),
        ):
            resource.prlimit(process.pid, limit, (value, value))
        try:
            given = json.dumps([block[1] if block else completion, test, word])
            process.communicate(given.encode(), 2 * SECONDS_MAX)
        except subprocess.TimeoutExpired:
            return 0.0
        finally:
            # With whatever it has started; a group that is empty by now is no error.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        said.seek(0)
        return float(process.returncode == 0 and said.read().endswith(word.encode()))
