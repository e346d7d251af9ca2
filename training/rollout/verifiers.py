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

TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}


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


def follows_schema(prompt: Any, completion: str, *, schema: dict[str, Any], **others: Any) -> float:
    """1.0 if the completion is JSON that follows the schema.

    Of JSON Schema: type, enum, properties, required, additionalProperties (true or false), items.

    Raises:
        ValueError: the schema has another keyword, which would be ignored.
    """
    try:
        value = json.loads(completion)
    except (json.JSONDecodeError, RecursionError):
        return 0.0
    return float(_follows(value, schema))


def _follows(value: Any, schema: dict[str, Any]) -> bool:
    known = {"type", "enum", "properties", "required", "additionalProperties", "items", "title", "description"}
    if unknown := schema.keys() - known:
        raise ValueError(f"the schema has {', '.join(sorted(unknown))}, of which nothing is known here")
    if "type" in schema:
        # In Python true is a number; in JSON it is not.
        kinds = TYPES[schema["type"]]
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            return False
    if "enum" in schema and value not in schema["enum"]:
        return False
    if isinstance(value, dict):
        named = schema.get("properties", {})
        if not set(schema.get("required", ())) <= value.keys():
            return False
        if schema.get("additionalProperties") is False and not value.keys() <= named.keys():
            return False
        return all(_follows(each, named[key]) for key, each in value.items() if key in named)
    if isinstance(value, list) and "items" in schema:
        return all(_follows(each, schema["items"]) for each in value)
    return True


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
