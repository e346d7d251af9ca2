"""The tree in the docstring is the tree in the code, and a message has all four parts."""

import inspect
import re

import pytest

from training import errors
from training.errors import PlumblineError, SampleError

CLASSES = [each for _, each in inspect.getmembers(errors, inspect.isclass) if issubclass(each, PlumblineError)]


def test_message_says_where_got_expected_and_hint() -> None:
    error = SampleError(
        "chat.jsonl:17", got="message 2 has role 'bot'", expected="system, user, assistant or tool", hint="rename it"
    )
    assert str(error) == (
        "chat.jsonl:17: message 2 has role 'bot'; expected system, user, assistant or tool. hint: rename it"
    )
    assert (error.where, error.got) == ("chat.jsonl:17", "message 2 has role 'bot'")
    assert (error.expected, error.hint) == ("system, user, assistant or tool", "rename it")


def test_docstring_draws_every_class_with_its_exit_code_below_its_parent() -> None:
    drawn: list[tuple[int, str, int]] = []
    for line in (errors.__doc__ or "").splitlines():
        if match := re.fullmatch(r" {4}([│├└─ ]*)([A-Z]\w+) +(\d+)(?:  .*)?", line):
            drawn.append((len(match[1]) // 4, match[2], int(match[3])))
    assert {name for _, name, _ in drawn} == {each.__name__ for each in CLASSES}
    parents: dict[int, str] = {}
    for depth, name, exit_code in drawn:
        parents[depth] = name
        drawn_class = getattr(errors, name)
        assert drawn_class.exit_code == exit_code
        assert drawn_class.__base__.__name__ == (parents[depth - 1] if depth else "Exception")


@pytest.mark.parametrize("each", CLASSES)
def test_no_error_exits_like_success_or_like_an_interrupted_run(each: type[PlumblineError]) -> None:
    assert each.exit_code not in (0, errors.EXIT_INTERRUPTED, 130)
