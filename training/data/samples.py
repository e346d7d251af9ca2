"""Reads JSONL files of conversations or documents, and says precisely what is wrong with a line.

A line is a sample. Of a conversation:

    {"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}], "unmask": false}

Decided here, because each of these has silently spoiled somebody's training:

- Keys of a *message* change what the model sees, so an unknown one is refused. Keys of a *sample* that are not ours
  (`id`, `source`, …) are bookkeeping: ignored, and counted in `SampleFile.ignored_keys`. One that looks like a
  misspelling of ours (`unmsak`) is refused, since ignoring it would change the loss.
- A key given twice is refused: JSON readers keep the last one, people mean either.
- A conversation has to end with an assistant turn, unless `unmask` lets every turn count. A last user turn that nobody
  answers usually means that the answers were cut off by whatever wrote the file.
- Blank lines are no samples and no errors. A byte order mark at the start of the file is dropped.
- Arguments of a tool call may be a JSON object or, as some services send them, a string that holds one; templates see
  the object either way.

Whole files are read: a million conversations fit in memory, and the loader needs every length to pack well. Standard
library only, so that checking a file does not cost an import of torch.
"""

import difflib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal, NoReturn, TypeVar

from training.errors import DataError, SampleError

OnBadSample = Literal["stop", "skip"]

ROLES = ("system", "user", "assistant", "tool")
SAMPLE_KEYS = ("messages", "unmask", "tools")
TEXT_KEYS = ("text", "document")
MESSAGE_KEYS = ("role", "content", "reasoning_content", "tool_calls", "tool_call_id", "name")
SKIP_HINT = "or skip bad samples with --on-bad-sample=skip"


@dataclass(frozen=True)
class Message:
    """One turn of a conversation; what a chat template may look at."""

    role: str
    content: str
    reasoning_content: str | None = None
    tool_calls: tuple[dict[str, Any], ...] = ()
    tool_call_id: str | None = None
    name: str | None = None

    def as_template_input(self) -> dict[str, Any]:
        """The message as chat templates expect it: a dictionary without the keys that are not set.

        Templates test `message.tool_calls is defined`; a key that is present and null takes the wrong branch in many.
        """
        values: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.reasoning_content is not None:
            values["reasoning_content"] = self.reasoning_content
        if self.tool_calls:
            values["tool_calls"] = list(self.tool_calls)
        if self.tool_call_id is not None:
            values["tool_call_id"] = self.tool_call_id
        if self.name is not None:
            values["name"] = self.name
        return values


@dataclass(frozen=True)
class Sample:
    """One conversation. `unmask` lets every turn but the system's count; `tools` are the schemas offered in it."""

    messages: tuple[Message, ...]
    unmask: bool
    where: str
    tools: tuple[dict[str, Any], ...] = ()
    num_given: int = 0
    """Of the first messages, how many never count: the prompt that a completion answers."""


@dataclass(frozen=True)
class TextSample:
    """One plain document, for continual pretraining."""

    text: str
    where: str


S = TypeVar("S")


@dataclass(frozen=True)
class SampleFile(Generic[S]):
    """The usable samples of a file, in its order, and a count of everything that is not among them."""

    path: str
    samples: list[S]
    num_skipped: int = 0
    skipped_reasons: dict[str, int] = field(default_factory=dict)
    """How many lines were skipped, by reason: {"unknown role": 3}."""
    first_skipped: str | None = None
    """The whole message of the first skipped line, so that a count never stands alone."""
    ignored_keys: dict[str, int] = field(default_factory=dict)
    """Keys of samples that nothing here reads, and on how many lines each stood."""


class RefusedError(Exception):
    """A line is refused; `reason` is the short name under which skipped lines are counted."""

    def __init__(self, reason: str, *, got: str, expected: str, hint: str) -> None:
        super().__init__(reason)
        self.reason, self.got, self.expected, self.hint = reason, got, expected, hint


def read_samples(path: str | Path, *, on_bad_sample: OnBadSample = "stop") -> SampleFile[Sample]:
    """The conversations of a JSONL file.

    Args:
        path: JSONL, UTF-8, one conversation a line; errors quote it as given, with the line number.
        on_bad_sample: `stop` raises at the first bad line, `skip` counts it and goes on.

    Raises:
        SampleError: a line is not a conversation to learn from.
        DataError: the file cannot be read, or has no usable line.
    """
    return read_lines(path, on_bad_sample, _sample)


def read_documents(path: str | Path, *, on_bad_sample: OnBadSample = "stop") -> SampleFile[TextSample]:
    """The plain documents of a JSONL file of `{"text": …}` or `{"document": …}`; otherwise as `read_samples`."""
    return read_lines(path, on_bad_sample, _document)


def read_lines(
    path: str | Path, on_bad_sample: OnBadSample, build: Callable[[dict[str, Any], str], tuple[S, list[str]]]
) -> SampleFile[S]:
    """The samples that `build` makes of the objects of a file.

    Args:
        path: JSONL, UTF-8.
        on_bad_sample: as of `read_samples`.
        build: a sample from an object and where it stands, and the keys that nothing reads; raises RefusedError.
    """
    samples: list[S] = []
    reasons: Counter[str] = Counter()
    ignored: Counter[str] = Counter()
    first_skipped: str | None = None
    for number, line in _lines(path):
        where = f"{path}:{number}"
        try:
            sample, unread_keys = build(_object(line), where)
        except RefusedError as refusal:
            error = SampleError(where, got=refusal.got, expected=refusal.expected, hint=refusal.hint)
            if on_bad_sample == "stop":
                raise error from None
            reasons[refusal.reason] += 1
            first_skipped = first_skipped or str(error)
        else:
            samples.append(sample)
            ignored.update(unread_keys)
    if not samples:
        raise DataError(
            str(path),
            got=f"no usable sample ({reasons.total()} skipped)" if reasons else "no sample",
            expected="at least one line with a sample",
            hint=first_skipped or "is this the right file?",
        )
    return SampleFile(str(path), samples, reasons.total(), dict(reasons), first_skipped, dict(ignored))


def _lines(path: str | Path) -> Iterator[tuple[int, bytes]]:
    """The lines that are not blank, with their numbers from 1. Split at line feeds alone, as JSONL is defined."""
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                text = (line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line).rstrip()
                if text.strip():
                    yield number, text
    except OSError as error:
        raise DataError(
            str(path),
            got=f"the file cannot be read ({error.strerror or error})",
            expected="a JSONL file",
            hint="check the path; relative paths start where the command was typed",
        ) from error


def _object(line: bytes) -> dict[str, Any]:
    """The line as a JSON object whose keys are unique at every depth."""
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RefusedError(
            "invalid UTF-8",
            got=f"byte {error.start + 1} of the line is not UTF-8 (0x{line[error.start]:02x})",
            expected="UTF-8 text",
            hint=f"convert the file, for instance with iconv -t utf-8, {SKIP_HINT}",
        ) from None
    value = _parse(text)
    if not isinstance(value, dict):
        raise RefusedError(
            "not an object",
            got=f"the line is a JSON {_json_type(value)}",
            expected='a JSON object such as {"messages": […]}',
            hint=f"write one object per line, not one list per file, {SKIP_HINT}",
        )
    return value


def _parse(text: str, subject: str = "") -> Any:
    try:
        return json.loads(text, object_pairs_hook=_unique_keys, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise RefusedError(
            "not JSON",
            got=f"{subject}not JSON at column {error.pos + 1} ({error.msg})",
            expected="one JSON object per line",
            hint=f"a sample must not span lines; json.dumps writes it on one, {SKIP_HINT}",
        ) from None
    except RecursionError:
        raise RefusedError(
            "not JSON",
            got=f"{subject}JSON nested too deeply to read",
            expected="one JSON object per line",
            hint=f"flatten it, {SKIP_HINT}",
        ) from None


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise RefusedError(
            "duplicate key",
            got=f"key '{twice}' stands twice in one object",
            expected="each key once",
            hint=f"remove one of them, {SKIP_HINT}",
        )
    return value


def _no_constant(name: str) -> NoReturn:
    raise RefusedError(
        "not JSON", got=f"{name}, which JSON does not have", expected="a number", hint=f"write null, {SKIP_HINT}"
    )


def _sample(value: dict[str, Any], where: str) -> tuple[Sample, list[str]]:
    unread = unread_keys(value, SAMPLE_KEYS)
    if "messages" not in value:
        raise RefusedError(
            "no messages",
            got="the sample has no messages",
            expected="a list under 'messages'",
            hint=f'plain documents are read with --kind=text; rename another column to "messages", {SKIP_HINT}',
        )
    listed = typed(value["messages"], list, "messages is", "a list of messages", "no messages")
    if not listed:
        raise RefusedError(
            "no messages",
            got="messages is an empty list",
            expected="at least one message",
            hint=f"remove the line, {SKIP_HINT}",
        )
    messages = tuple(parsed_message(message, f"message {number}") for number, message in enumerate(listed, start=1))
    unmask = value.get("unmask", False)
    unmask = typed(unmask, bool, "unmask is", "true or false", "unmask is not a boolean")
    _check_something_to_learn(messages, unmask)
    tools = typed(value.get("tools") or [], list, "tools is", "a list of tool schemas", "bad tools")
    for number, tool in enumerate(tools, start=1):
        typed(tool, dict, f"tool {number} is", "a JSON object (a tool schema)", "bad tools")
    return Sample(messages, unmask, where, tuple(tools)), unread


def _check_something_to_learn(messages: tuple[Message, ...], unmask: bool) -> None:
    roles = [message.role for message in messages]
    if unmask:
        if set(roles) == {"system"}:
            raise RefusedError(
                "nothing to learn",
                got="every message is a system message, which unmask leaves out",
                expected="a user, assistant or tool message",
                hint=f"add one, {SKIP_HINT}",
            )
    elif "assistant" not in roles:
        raise RefusedError(
            "nothing to learn",
            got="no message is an assistant's, so there is nothing to learn",
            expected="an assistant message at the end",
            hint=f'add the answer, let all turns count with "unmask": true, {SKIP_HINT}',
        )
    elif roles[-1] != "assistant":
        raise RefusedError(
            "last turn is not an assistant's",
            got=f"the last message has role '{roles[-1]}' and no answer",
            expected="an assistant message at the end",
            hint=f'add the answer or remove the turn, let all turns count with "unmask": true, {SKIP_HINT}',
        )


def parsed_message(value: Any, which: str) -> Message:
    """The message of a JSON value, which errors call `which`."""
    value = typed(value, dict, f"{which} is", "a JSON object with role and content", "message is not an object")
    unknown = [key for key in value if key not in MESSAGE_KEYS]
    if unknown:
        raise RefusedError(
            "unknown message key",
            got=f"{which} has the unknown key '{unknown[0]}'",
            expected=", ".join(MESSAGE_KEYS[:-1]) + f" or {MESSAGE_KEYS[-1]}",
            hint=f"rename or remove it, {SKIP_HINT}",
        )
    role = value.get("role")
    if role not in ROLES:
        raise RefusedError(
            "unknown role" if "role" in value else "no role",
            got=f"{which} has role '{role}'" if "role" in value else f"{which} has no role",
            expected="system, user, assistant or tool",
            hint=f"rename it, {SKIP_HINT}",
        )
    calls = _tool_calls(value.get("tool_calls"), which)
    reasoning = _optional_text(value, "reasoning_content", which)
    for key in ("reasoning_content", "tool_calls"):
        if value.get(key) and role != "assistant":
            raise RefusedError(
                f"{key} on another role",
                got=f"{which} has role '{role}' and {key}",
                expected=f"{key} on assistant messages only",
                hint=f"move it to the assistant's message, {SKIP_HINT}",
            )
    content = _content(value, which, may_be_absent=bool(calls))
    if role == "assistant" and not (content or reasoning or calls):
        raise RefusedError(
            "empty assistant message",
            got=f"{which} is an assistant message that says nothing",
            expected="content, reasoning_content or tool_calls",
            hint=f"remove the conversation or complete it, {SKIP_HINT}",
        )
    return Message(
        role=role,
        content=content,
        reasoning_content=reasoning or None,
        tool_calls=calls,
        tool_call_id=_optional_text(value, "tool_call_id", which),
        name=_optional_text(value, "name", which),
    )


def _content(value: dict[str, Any], which: str, *, may_be_absent: bool) -> str:
    """The content; a message that only calls tools may leave it out or null, as services send it."""
    content = value.get("content")
    if content is None and may_be_absent:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        hint = f"join the text parts into one string; images and audio are not supported, {SKIP_HINT}"
    else:
        hint = f"write the content as a string, {SKIP_HINT}"
    got = f"content of {which} is {_json_type(content)}" if "content" in value else f"{which} has no content"
    raise RefusedError("content is not a string", got=got, expected="a string", hint=hint)


def _tool_calls(value: Any, which: str) -> tuple[dict[str, Any], ...]:
    """The calls in one form, {"type": "function", "function": {"name": …, "arguments": {…}}} and the id if given."""
    if value is None:
        return ()
    calls = []
    for number, call in enumerate(typed(value, list, f"tool_calls of {which} is", "a list", "bad tool call"), start=1):
        here = f"tool call {number} of {which}"
        call = typed(call, dict, f"{here} is", "a JSON object", "bad tool call")
        function = typed(call.get("function", call), dict, f"function of {here} is", "a JSON object", "bad tool call")
        name = typed(function.get("name"), str, f"name of {here} is", "a string", "bad tool call")
        arguments = function.get("arguments", {})
        if isinstance(arguments, str):
            arguments = _parse(arguments, f"arguments of {here}: ")
        arguments = typed(arguments, dict, f"arguments of {here} are", "a JSON object", "bad tool call")
        calls.append(
            ({"id": call["id"]} if "id" in call else {})
            | {"type": "function", "function": {"name": name, "arguments": arguments}}
        )
    return tuple(calls)


def _document(value: dict[str, Any], where: str) -> tuple[TextSample, list[str]]:
    present = [key for key in TEXT_KEYS if key in value]
    if len(present) != 1:
        raise RefusedError(
            "no text" if not present else "both text and document",
            got="the sample has no text" if not present else "the sample has both 'text' and 'document'",
            expected="a string under 'text' or 'document'",
            hint=f"conversations are read with --kind=chat; rename the column, {SKIP_HINT}",
        )
    text = typed(value[present[0]], str, f"{present[0]} is", "a string", "text is not a string")
    if not text.strip():
        raise RefusedError(
            "empty text",
            got=f"{present[0]} is empty",
            expected="a document to learn",
            hint=f"remove the line, {SKIP_HINT}",
        )
    return TextSample(text, where), unread_keys(value, TEXT_KEYS)


def unread_keys(value: dict[str, Any], known: tuple[str, ...]) -> list[str]:
    """Keys that nothing reads; raises on one that looks like a known key misspelt."""
    unread = [key for key in value if key not in known]
    for key in unread:
        meant = difflib.get_close_matches(key.lower(), known, n=1, cutoff=0.75)
        if meant:
            raise RefusedError(
                "misspelt key",
                got=f"the sample has the key '{key}'",
                expected=f"'{meant[0]}', which it resembles",
                hint=f"rename it, or make it look less like one of ours, {SKIP_HINT}",
            )
    return unread


def _optional_text(value: dict[str, Any], key: str, which: str) -> str | None:
    text: str | None = value.get(key)
    return text if text is None else typed(text, str, f"{key} of {which} is", "a string", f"{key} is not a string")


V = TypeVar("V")


def typed(value: Any, kind: type[V], subject: str, expected: str, reason: str) -> V:
    """The value, if it is of the kind; raises with the subject and a verb as what it is about."""
    if isinstance(value, kind):
        return value
    raise RefusedError(
        reason,
        got=f"{subject} {_json_type(value)}",
        expected=expected,
        hint=f"see the format in the help of --data, {SKIP_HINT}",
    )


def _json_type(value: Any) -> str:
    """What JSON calls the type, since the person who wrote the file never saw Python's name for it."""
    names = {bool: "boolean", int: "number", float: "number", str: "string", list: "list", dict: "object"}
    return "null" if value is None else names[type(value)]
