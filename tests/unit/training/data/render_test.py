"""What the assistant says counts, whichever way it is found; templates that cannot tell are refused."""

import json
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.chats import TWO_TURNS, WITH_TOOL, chat
from training.data.render import Renderer, render_blocks, render_samples
from training.data.samples import Message, Sample, TextSample
from training.data.show import show
from training.errors import DataError, EmptyWeightsError, SampleError, TemplateError
from training.models.tiny import tiny_tokenizer

MARKERS, PLAIN = Renderer(tiny_tokenizer("markers")), Renderer(tiny_tokenizer("plain"))


def sample(value: dict[str, Any], where: str = "chat.jsonl:1") -> Sample:
    """The sample that the reader would make of a line."""
    messages = []
    for message in value["messages"]:
        calls = [
            call | {"function": call["function"] | {"arguments": json.loads(call["function"]["arguments"])}}
            for call in message.get("tool_calls", [])
        ]
        messages.append(Message(**message | {"content": message["content"] or "", "tool_calls": tuple(calls)}))
    return Sample(tuple(messages), value.get("unmask", False), where, tuple(value.get("tools", [])))


def with_template(template: str) -> Renderer:
    tokenizer = tiny_tokenizer("none")
    tokenizer.chat_template = template
    tokenizer.name_or_path = "some/model"
    return Renderer(tokenizer)


def learned(renderer: Renderer, value: dict[str, Any]) -> list[str]:
    """The pieces of text that count."""
    return re.findall("⟦(.*?)⟧", show(renderer.tokenizer, renderer.example(sample(value))), flags=re.DOTALL)


@pytest.mark.parametrize("renderer", [MARKERS, PLAIN], ids=["markers", "prefix"])
def test_the_assistants_words_and_their_end_count(renderer: Renderer) -> None:
    assert show(renderer.tokenizer, renderer.example(sample(TWO_TURNS))) == (
        "<|begin|><|turn|>system\nBe brief.<|end|>\n<|turn|>user\nWhat is 2 + 2?<|end|>\n"
        "<|turn|>assistant\n⟦4.<|end|>⟧\n<|turn|>user\nUnd auf Französisch? 🇫🇷<|end|>\n"
        "<|turn|>assistant\n⟦Quatre.<|end|>⟧\n"
    )


@pytest.mark.parametrize("renderer", [MARKERS, PLAIN], ids=["markers", "prefix"])
def test_reasoning_and_tool_calls_count_and_the_tools_answer_does_not(renderer: Renderer) -> None:
    assert learned(renderer, WITH_TOOL) == [
        '<think>I should look.</think><call>{"name": "weather", "arguments": {"city": "Oslo"}}</call><|end|>',
        "Minus three degrees.<|end|>",
    ]
    assert show(renderer.tokenizer, renderer.example(sample(WITH_TOOL))).startswith("<|begin|><|turn|>tools\n[{")


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="⟦⟧"), min_size=1, max_size=8)


@given(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=3), st.booleans())
@settings(max_examples=60)
def test_both_ways_agree_on_any_conversation(turns: list[tuple[str, str]], unmask: bool) -> None:
    messages = [message for turn in turns for message in chat(*turn)["messages"]]
    one, other = (renderer.example(sample({"messages": messages, "unmask": unmask})) for renderer in (MARKERS, PLAIN))
    assert one.token_ids.tolist() == other.token_ids.tolist()
    assert one.weights.tolist() == other.weights.tolist()
    if not unmask:
        # A byte is a token: the weights are as many as the answers' bytes and one end each.
        assert one.weight_sum == sum(len(answer.encode()) + 1 for _, answer in turns)


def test_the_ids_are_those_of_the_tokenizers_own_rendering() -> None:
    tokenizer = tiny_tokenizer()
    own = tokenizer.apply_chat_template(TWO_TURNS["messages"], tokenize=True, return_dict=False)
    for renderer in (MARKERS, PLAIN):
        assert renderer.example(sample(TWO_TURNS)).token_ids.tolist() == own


@pytest.mark.parametrize("renderer", [MARKERS, PLAIN], ids=["markers", "prefix"])
def test_unmask_lets_all_but_the_system_turn_count(renderer: Renderer) -> None:
    shown = show(renderer.tokenizer, renderer.example(sample(TWO_TURNS | {"unmask": True})))
    assert shown.startswith("<|begin|><|turn|>system\nBe brief.<|end|>\n⟦<|turn|>user\nWhat is 2 + 2?")
    assert shown.endswith("Quatre.<|end|>\n⟧")
    assert shown.count("⟦") == 1


def test_unmask_without_system_counts_all_but_the_first_token() -> None:
    example = PLAIN.example(sample(chat("a", "b", unmask=True)))
    assert example.weights.tolist() == [0.0] + [1.0] * (len(example) - 1)


def test_a_system_turn_in_the_middle_is_left_out_too() -> None:
    messages = [*chat("a", "b")["messages"], {"role": "system", "content": "S"}, *chat("c", "d")["messages"]]
    shown = show(PLAIN.tokenizer, PLAIN.example(sample({"messages": messages, "unmask": True})))
    assert "⟧<|turn|>system\nS<|end|>\n⟦" in shown


FORGETS_REASONING = """{% for m in messages %}{{ '[' + m.role + ']' }}\
{% if loop.last and m.reasoning_content %}{{ '(' + m.reasoning_content + ')' }}{% endif %}{{ m.content + '<|end|>' }}\
{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"""


def test_a_template_that_rewrites_earlier_turns_is_refused_by_name() -> None:
    renderer = with_template(FORGETS_REASONING)
    thinking = {"role": "assistant", "content": "b", "reasoning_content": "r"}
    one_turn = {"messages": [{"role": "user", "content": "a"}, thinking]}
    assert learned(renderer, one_turn) == ["(r)b<|end|>"]
    with pytest.raises(TemplateError) as caught:
        renderer.example(sample({"messages": one_turn["messages"] + chat("c", "d")["messages"]}))
    assert str(caught.value) == (
        "chat template of some/model: renders the first 2 of 4 messages of chat.jsonl:1 differently when the others "
        "follow, so it does not show which tokens are the assistant's; expected a template whose rendering of the "
        "first messages begins the rendering of all. hint: add {% generation %} markers to the template, or split "
        "conversations so that each ends with the turn to learn"
    )


def test_a_template_that_cannot_render_the_beginning_alone_is_refused_by_name() -> None:
    renderer = with_template(
        "{% if messages|length < 2 %}{{ raise_exception('too few') }}{% endif %}"
        "{% for m in messages %}{{ m.content }}{% endfor %}"
    )
    with pytest.raises(TemplateError, match=r"some/model: cannot render the first 1 of 2 messages .*too few"):
        renderer.example(sample(chat("a", "b")))


def test_a_template_that_refuses_a_conversation_is_the_samples_error() -> None:
    renderer = with_template("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(SampleError, match=r"chat.jsonl:1: the chat template of some/model refuses .*roles must alter"):
        renderer.example(sample(chat("a", "b")))


def test_a_conversation_that_begins_with_the_assistant_needs_markers() -> None:
    lone = {"messages": [{"role": "assistant", "content": "Hello."}]}
    assert learned(MARKERS, lone) == ["Hello.<|end|>"]
    with pytest.raises(SampleError, match="begins with an assistant message"):
        PLAIN.example(sample(lone))


def test_markers_around_nothing_are_refused_instead_of_training_on_nothing() -> None:
    renderer = with_template(
        "{% for m in messages %}{{ m.content }}"
        "{% if false %}{% generation %}x{% endgeneration %}{% endif %}{% endfor %}"
    )
    with pytest.raises(EmptyWeightsError, match="nothing to learn"):
        renderer.example(sample(chat("a", "b")))


def test_a_tokenizer_without_template_is_refused_with_a_hint() -> None:
    with pytest.raises(TemplateError, match=r"has no chat template; .*hint: use the model's instruct variant"):
        Renderer(tiny_tokenizer("none"))


def test_named_templates_are_chosen_as_the_tokenizer_chooses_them() -> None:
    tokenizer = tiny_tokenizer("none")
    tokenizer.chat_template = {"default": MARKERS.tokenizer.chat_template, "tool_use": "{{ 'tools' }}"}
    assert learned(Renderer(tokenizer), TWO_TURNS) == ["4.<|end|>", "Quatre.<|end|>"]
    tokenizer.chat_template = {"rag": "{{ '' }}"}
    with pytest.raises(TemplateError, match="no template to choose"):
        Renderer(tokenizer).example(sample(TWO_TURNS))


def test_skipping_counts_samples_and_names_the_first() -> None:
    lone = {"messages": [{"role": "assistant", "content": "Hello."}]}
    samples = [sample(lone, "chat.jsonl:1"), sample(TWO_TURNS, "chat.jsonl:2")]
    with pytest.raises(SampleError):
        render_samples(PLAIN.tokenizer, samples)
    rendered = render_samples(PLAIN.tokenizer, samples, on_bad_sample="skip")
    assert [example.where for example in rendered.examples] == ["chat.jsonl:2"]
    assert rendered.num_skipped == 1
    assert rendered.skipped_reasons == {"refused by the chat template": 1}
    assert rendered.first_skipped is not None
    assert rendered.first_skipped.startswith("chat.jsonl:1: the conversation begins")
    with pytest.raises(DataError, match="none of 1 conversations gave an example"):
        render_samples(PLAIN.tokenizer, samples[:1], on_bad_sample="skip")


def test_an_untrustworthy_template_is_not_skipped_sample_by_sample() -> None:
    thinking = {"role": "assistant", "content": "b", "reasoning_content": "r"}
    two_turns = {"messages": [{"role": "user", "content": "a"}, thinking, *chat("c", "d")["messages"]]}
    with pytest.raises(TemplateError):
        render_samples(with_template(FORGETS_REASONING).tokenizer, [sample(two_turns)], on_bad_sample="skip")


def documents(*texts: str) -> list[TextSample]:
    return [TextSample(text, f"book.jsonl:{number}") for number, text in enumerate(texts, start=1)]


TOKENIZER = tiny_tokenizer("none")


def test_blocks_by_hand() -> None:
    """B a b c E | B d E in blocks of 4: the second block repeats c, from which E is predicted."""
    one, two, three = render_blocks(TOKENIZER, documents("abc", "d"), tokens_per_block=4)
    begin, end = TOKENIZER.bos_token_id, TOKENIZER.eos_token_id
    a, b, c, d = TOKENIZER("abcd", add_special_tokens=False)["input_ids"]
    assert (one.token_ids.tolist(), one.weights.tolist()) == ([begin, a, b, c], [0, 1, 1, 1])
    assert (two.token_ids.tolist(), two.weights.tolist()) == ([c, end, begin, d], [0, 1, 0, 1])
    assert (three.token_ids.tolist(), three.weights.tolist()) == ([d, end], [0, 1])
    assert two.document_starts.tolist() == [0, 2]
    assert [block.where for block in (one, two, three)] == ["book.jsonl:1", "book.jsonl:1", "book.jsonl:2"]


TEXTS = st.lists(st.text(st.sampled_from("abcdefgh"), min_size=1, max_size=20), min_size=1, max_size=8)


@given(TEXTS, st.integers(2, 17))
@settings(max_examples=80)
def test_every_token_but_a_documents_first_is_predicted_exactly_once(texts: list[str], tokens_per_block: int) -> None:
    blocks = render_blocks(TOKENIZER, documents(*texts), tokens_per_block=tokens_per_block)
    predicted = np.concatenate([block.token_ids[block.weights > 0] for block in blocks])
    streams = [
        [TOKENIZER.bos_token_id, *TOKENIZER(text, add_special_tokens=False)["input_ids"], TOKENIZER.eos_token_id]
        for text in texts
    ]
    expected = [token for stream in streams for token in stream[1:]]
    assert predicted.tolist() == expected
    assert all(len(block) == tokens_per_block for block in blocks[:-1])


@given(TEXTS, st.integers(2, 17))
@settings(max_examples=40)
def test_no_token_is_predicted_from_another_document(texts: list[str], tokens_per_block: int) -> None:
    for block in render_blocks(TOKENIZER, documents(*texts), tokens_per_block=tokens_per_block):
        begins = np.flatnonzero(block.token_ids == TOKENIZER.bos_token_id)
        assert not block.weights[begins].any()
        assert set(begins.tolist()) <= set(block.document_starts.tolist())


def test_documents_need_an_end_token_and_no_begin_token() -> None:
    tokenizer = tiny_tokenizer("none")
    tokenizer.bos_token = None
    assert len(render_blocks(tokenizer, documents("ab"), tokens_per_block=9)[0]) == 3
    tokenizer.eos_token = None
    with pytest.raises(DataError, match="the tokenizer has no end-of-text token"):
        render_blocks(tokenizer, documents("ab"), tokens_per_block=9)
