"""Every line that cannot be trained on is refused with where, got, expected and hint; the others arrive whole."""

import contextlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.chats import TWO_TURNS, WITH_TOOL, chat, write_jsonl
from training.data.samples import ROLES, read_documents, read_samples
from training.errors import DataError, SampleError

SKIP = "or skip bad samples with --on-bad-sample=skip"


def messages(*pairs: tuple[Any, Any], **keys: Any) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in pairs], **keys}


def assistant(**keys: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", **keys}]}


def test_a_wrong_role_is_reported_as_the_house_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "chat.jsonl", [chat("a", "b")] * 16 + [messages(("user", "a"), ("bot", "b"))])
    with pytest.raises(SampleError) as caught:
        read_samples("chat.jsonl")
    assert str(caught.value) == (
        "chat.jsonl:17: message 2 has role 'bot'; expected system, user, assistant or tool. "
        "hint: rename it, or skip bad samples with --on-bad-sample=skip"
    )


BAD_LINES: dict[str, tuple[dict[str, Any] | str | bytes, str, str]] = {
    "not JSON": ('{"messages": [', "not JSON at column 15 (Expecting value)", "not JSON"),
    "two objects on a line": ("{} {}", "not JSON at column 4 (Extra data)", "not JSON"),
    "NaN": ('{"messages": NaN}', "NaN, which JSON does not have", "not JSON"),
    "nested too deeply": ("[" * 200_000, "JSON nested too deeply to read", "not JSON"),
    "a list": ("[1]", "the line is a JSON list", "not an object"),
    "a string": ('"hello"', "the line is a JSON string", "not an object"),
    "null": ("null", "the line is a JSON null", "not an object"),
    "a boolean": ("true", "the line is a JSON boolean", "not an object"),
    "a number": ("1.5", "the line is a JSON number", "not an object"),
    "invalid UTF-8": (b'{"messages": "\xff"}', "byte 15 of the line is not UTF-8 (0xff)", "invalid UTF-8"),
    "no messages": ({"id": 1}, "the sample has no messages", "no messages"),
    "null messages": ({"messages": None}, "messages is null", "no messages"),
    "messages an object": ({"messages": {}}, "messages is object", "no messages"),
    "empty messages": ({"messages": []}, "messages is an empty list", "no messages"),
    "message a string": ({"messages": ["hi"]}, "message 1 is string", "message is not an object"),
    "no role": ({"messages": [{"content": "a"}]}, "message 1 has no role", "no role"),
    "null role": (messages((None, "a")), "message 1 has role 'None'", "unknown role"),
    "role a list": (messages(([], "a")), "message 1 has role '[]'", "unknown role"),
    "no content": ({"messages": [{"role": "user"}]}, "message 1 has no content", "content is not a string"),
    "null content": (messages(("user", None)), "content of message 1 is null", "content is not a string"),
    "number as content": (messages(("user", 4)), "content of message 1 is number", "content is not a string"),
    "content in parts": (
        messages(("user", [{"type": "text", "text": "a"}])),
        "content of message 1 is list",
        "content is not a string",
    ),
    "unknown message key": (
        {"messages": [{"role": "user", "content": "a", "weight": 1}]},
        "message 1 has the unknown key 'weight'",
        "unknown message key",
    ),
    "key given twice": (
        '{"messages": [], "messages": []}',
        "key 'messages' stands twice in one object",
        "duplicate key",
    ),
    "message key given twice": (
        '{"messages": [{"role": "user", "content": "a", "content": "b"}]}',
        "key 'content' stands twice in one object",
        "duplicate key",
    ),
    "misspelt unmask": (chat("a", "b", unmaks=True), "the sample has the key 'unmaks'", "misspelt key"),
    "unmask a string": (chat("a", "b", unmask="yes"), "unmask is string", "unmask is not a boolean"),
    "unmask a number": (chat("a", "b", unmask=1), "unmask is number", "unmask is not a boolean"),
    "no assistant": (
        messages(("user", "a")),
        "no message is an assistant's, so there is nothing to learn",
        "nothing to learn",
    ),
    "last turn unanswered": (
        messages(("user", "a"), ("assistant", "b"), ("user", "c")),
        "the last message has role 'user' and no answer",
        "last turn is not an assistant's",
    ),
    "unmask with system alone": (
        messages(("system", "a"), unmask=True),
        "every message is a system message, which unmask leaves out",
        "nothing to learn",
    ),
    "assistant says nothing": (
        messages(("user", "a"), ("assistant", "")),
        "message 2 is an assistant message that says nothing",
        "empty assistant message",
    ),
    "reasoning not a string": (
        assistant(content="b", reasoning_content=["c"]),
        "reasoning_content of message 2 is list",
        "reasoning_content is not a string",
    ),
    "reasoning of a user": (
        {"messages": [{"role": "user", "content": "a", "reasoning_content": "b"}]},
        "message 1 has role 'user' and reasoning_content",
        "reasoning_content on another role",
    ),
    "tool calls of a user": (
        {"messages": [{"role": "user", "content": "a", "tool_calls": [{"name": "f"}]}]},
        "message 1 has role 'user' and tool_calls",
        "tool_calls on another role",
    ),
    "tool calls an object": (assistant(tool_calls={}), "tool_calls of message 2 is object", "bad tool call"),
    "tool call a string": (assistant(tool_calls=["f"]), "tool call 1 of message 2 is string", "bad tool call"),
    "tool call without name": (assistant(tool_calls=[{}]), "name of tool call 1 of message 2 is null", "bad tool call"),
    "function a string": (
        assistant(tool_calls=[{"function": "f"}]),
        "function of tool call 1 of message 2 is string",
        "bad tool call",
    ),
    "arguments a list": (
        assistant(tool_calls=[{"name": "f", "arguments": [1]}]),
        "arguments of tool call 1 of message 2 are list",
        "bad tool call",
    ),
    "arguments not JSON": (
        assistant(tool_calls=[{"name": "f", "arguments": "{"}]),
        "arguments of tool call 1 of message 2: not JSON at column 2 "
        "(Expecting property name enclosed in double quotes)",
        "not JSON",
    ),
    "tools an object": (chat("a", "b", tools={"name": "f"}), "tools is object", "bad tools"),
    "tool a string": (chat("a", "b", tools=["f"]), "tool 1 is string", "bad tools"),
    "tool_call_id a number": (
        {"messages": [{"role": "tool", "content": "a", "tool_call_id": 1}]},
        "tool_call_id of message 1 is number",
        "tool_call_id is not a string",
    ),
}


@pytest.mark.parametrize("name", BAD_LINES)
def test_a_bad_line_stops_with_its_place_and_four_parts(name: str, tmp_path: Path) -> None:
    line, got, _ = BAD_LINES[name]
    path = write_jsonl(tmp_path / "chat.jsonl", [chat("a", "b"), line])
    with pytest.raises(SampleError) as caught:
        read_samples(path)
    assert caught.value.where == f"{path}:2"
    assert caught.value.got == got
    assert caught.value.expected
    assert caught.value.hint.endswith(SKIP)


@pytest.mark.parametrize("name", BAD_LINES)
def test_a_bad_line_is_skipped_and_counted_by_reason(name: str, tmp_path: Path) -> None:
    line, got, reason = BAD_LINES[name]
    path = write_jsonl(tmp_path / "chat.jsonl", [line, chat("a", "b"), line])
    read = read_samples(path, on_bad_sample="skip")
    assert [sample.where for sample in read.samples] == [f"{path}:2"]
    assert read.num_skipped == 2
    assert read.skipped_reasons == {reason: 2}
    assert read.first_skipped is not None
    assert read.first_skipped.startswith(f"{path}:1: {got}; expected ")


def test_keys_of_others_are_ignored_and_counted(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "chat.jsonl", [chat("a", "b", id=1, source="x"), chat("c", "d", id=2)])
    assert read_samples(path).ignored_keys == {"id": 2, "source": 1}


def test_blank_lines_are_no_samples_and_keep_the_numbering(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "chat.jsonl", ["", chat("a", "b"), "  \t", chat("c", "d"), "\r"])
    read = read_samples(path)
    assert [sample.where for sample in read.samples] == [f"{path}:2", f"{path}:4"]
    assert read.num_skipped == 0


def test_byte_order_mark_and_windows_line_ends_are_read(tmp_path: Path) -> None:
    path = tmp_path / "chat.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(chat("a", "b")).encode() + b"\r\n")
    assert read_samples(path).samples[0].messages[1].content == "b"


def test_a_line_separator_inside_a_string_does_not_end_the_line(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "chat.jsonl", [chat("a\u2028b\u0085c", "d")])
    assert read_samples(path).samples[0].messages[0].content == "a\u2028b\u0085c"


def test_reasoning_tools_and_calls_arrive_in_the_form_templates_expect(tmp_path: Path) -> None:
    sample = read_samples(write_jsonl(tmp_path / "chat.jsonl", [WITH_TOOL])).samples[0]
    _, call, answer, _ = (message.as_template_input() for message in sample.messages)
    assert call == {
        "role": "assistant",
        "content": "",
        "reasoning_content": "I should look.",
        "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
        ],
    }
    assert answer == {"role": "tool", "content": '{"celsius": -3}', "tool_call_id": "c1", "name": "weather"}
    assert sample.tools == tuple(WITH_TOOL["tools"])


def test_a_flat_tool_call_is_the_same_call(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "chat.jsonl", [assistant(tool_calls=[{"name": "f", "arguments": {"x": 1}}])])
    assert read_samples(path).samples[0].messages[1].tool_calls == (
        {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}},
    )


def test_unmask_lets_a_conversation_end_with_anyone(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "chat.jsonl", [messages(("user", "a"), unmask=True), TWO_TURNS])
    assert [sample.unmask for sample in read_samples(path).samples] == [True, False]


def test_a_missing_file_and_a_directory_say_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none.jsonl: the file cannot be read \(No such file or directory\)"):
        read_samples(tmp_path / "none.jsonl")
    with pytest.raises(DataError, match=r"the file cannot be read \(Is a directory\)"):
        read_samples(tmp_path)


def test_a_file_without_samples_is_refused(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "chat.jsonl", [""])
    with pytest.raises(DataError, match="no sample; expected at least one line"):
        read_samples(path)


def test_a_file_of_bad_samples_alone_is_refused_even_when_skipping(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "chat.jsonl", ["x", "y"])
    with pytest.raises(DataError, match=r"no usable sample \(2 skipped\).*hint: .*chat.jsonl:1: not JSON at column 1"):
        read_samples(path, on_bad_sample="skip")


def test_documents_are_read_from_either_column(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "book.jsonl", [{"text": "one", "id": 7}, {"document": "two"}])
    read = read_documents(path)
    assert [(sample.text, sample.where) for sample in read.samples] == [("one", f"{path}:1"), ("two", f"{path}:2")]
    assert read.ignored_keys == {"id": 1}


@pytest.mark.parametrize(
    ("line", "got"),
    [
        ({"texts": "a", "x": 1}, "the sample has no text"),
        ({"text": "a", "document": "b"}, "the sample has both 'text' and 'document'"),
        ({"text": 1}, "text is number"),
        ({"text": None}, "text is null"),
        ({"document": " \n"}, "document is empty"),
        (chat("a", "b"), "the sample has no text"),
    ],
)
def test_a_bad_document_stops_with_its_place(line: dict[str, Any], got: str, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "book.jsonl", [line])
    with pytest.raises(SampleError) as caught:
        read_documents(path)
    assert (caught.value.where, caught.value.got) == (f"{path}:1", got)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["messages", "role", "content", "tools", "tool_calls", "function"]), inner)
    ),
    max_leaves=12,
)


@given(value=JSON_VALUES)
def test_any_json_gives_a_sample_or_a_named_error(value: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = write_jsonl(tmp_path_factory.mktemp("any") / "chat.jsonl", [json.dumps(value)])
    with contextlib.suppress(DataError):
        assert read_samples(path).samples


@given(
    turns=st.lists(st.tuples(st.sampled_from(ROLES), st.text(min_size=1)), max_size=4),
    answer=st.text(min_size=1),
    unmask=st.booleans(),
)
def test_a_good_conversation_arrives_unchanged(
    turns: list[tuple[str, str]], answer: str, unmask: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    said = [*turns, ("assistant", answer)]
    line = json.dumps(messages(*said, unmask=unmask))
    sample = read_samples(write_jsonl(tmp_path_factory.mktemp("good") / "chat.jsonl", [line])).samples[0]
    assert [(message.role, message.content) for message in sample.messages] == said
    assert sample.unmask is unmask


def test_reading_and_packing_need_neither_torch_nor_numpy() -> None:
    code = (
        "import sys, training.data.samples, training.data.pack; print('torch' in sys.modules, 'numpy' in sys.modules)"
    )
    path = {"PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=path)
    assert done.stdout.split() == ["False", "False"]
