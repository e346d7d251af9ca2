"""Conversations and documents as token ids and weights, through the tokenizer's own chat template.

Which tokens are the assistant's? Two ways to know, in this order:

1. The template says so, with `{% generation %}` markers around what the assistant writes.
2. Prefix rendering: the conversation before a turn, rendered with the generation prompt, ends where the turn's tokens
   begin; the conversation up to and with the turn ends where they end. This holds only if each of these texts is a
   prefix of the whole text, and that is checked. Templates that rewrite earlier turns later (many drop the reasoning of
   all turns but the last) fail the check and are refused by name: trained on, they would teach the wrong tokens.

The whole text is tokenized once and spans of characters are carried over to tokens, so ids are those of the whole
conversation. A token that begins before a turn and ends inside it is the prompt's.

No torch here: numpy, and a tokenizer of transformers that is handed in.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np

from training.data.example import Example
from training.data.samples import Sample, TextSample
from training.errors import DataError, EmptyWeightsError, SampleError, TemplateError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

GENERATION_MARKER = re.compile(r"\{%-?\s*generation\s*-?%\}")

S = TypeVar("S")

Span = tuple[int, int]
"""Characters from the first up to, not with, the second."""


@dataclass(frozen=True)
class Rendered:
    """Examples in the order of their samples, and a count of the samples that gave none."""

    examples: list[Example]
    num_skipped: int = 0
    skipped_reasons: dict[str, int] = field(default_factory=dict)
    """How many samples were skipped, by reason: {"no weight": 3}."""
    first_skipped: str | None = None
    """The whole message of the first skipped sample."""


class Renderer:
    """Turns conversations into examples with one tokenizer.

    Raises:
        TemplateError: the tokenizer has no chat template, or cannot tell which characters a token covers.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        self.tokenizer = tokenizer
        self.name = str(self.tokenizer.name_or_path or "tokenizer")
        if not self.tokenizer.chat_template:
            raise TemplateError(
                self.name,
                got="the tokenizer has no chat template",
                expected="a template that turns messages into text",
                hint="use the model's instruct variant, put a chat_template.jinja beside the tokenizer, or train on "
                "plain text with --kind=text",
            )
        if not self.tokenizer.is_fast:
            raise TemplateError(
                self.name,
                got="the tokenizer does not report which characters a token covers",
                expected="a fast tokenizer (a tokenizer.json)",
                hint="convert it once with transformers.AutoTokenizer and save it again",
            )
        self.special_ids = set(self.tokenizer.all_special_ids)

    def example(self, sample: Sample) -> Example:
        """The conversation's token ids, each weighted 1 if it counts and 0 if not.

        By default the assistant's turns count, from after the generation prompt to the token that ends the turn. With
        `unmask` everything counts but the system turns; text that the template adds by itself counts too.

        Raises:
            SampleError: the template refuses this conversation.
            TemplateError: the template does not let us tell whose tokens are whose.
            EmptyWeightsError: no token counts.
        """
        has_markers = GENERATION_MARKER.search(self._template(sample)) is not None
        if sample.unmask:
            token_ids, weights = self._all_but_system(sample)
        elif has_markers:
            token_ids, weights = self._by_markers(sample)
        else:
            token_ids, weights = self._by_prefix(sample)
        if any(message.role == "assistant" for message in sample.messages[: sample.num_given]):
            text = self._text(sample, len(sample.messages))
            _, starts = self._tokenize(text)
            weights[starts < len(self._prefix(sample, sample.num_given, text))] = 0
        weights[:1] = 0
        return Example(token_ids.astype(np.int32), weights.astype(np.float32), sample.where)

    def _by_markers(self, sample: Sample) -> tuple[np.ndarray, np.ndarray]:
        out = self._apply(
            sample,
            len(sample.messages),
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=True,
        )
        return np.array(out["input_ids"]), np.array(out["assistant_masks"])

    def _by_prefix(self, sample: Sample) -> tuple[np.ndarray, np.ndarray]:
        text = self._text(sample, len(sample.messages))
        token_ids, starts = self._tokenize(text)
        weights = np.zeros(len(token_ids))
        for index, message in enumerate(sample.messages):
            if message.role == "assistant":
                begin = len(self._prefix(sample, index, text, add_generation_prompt=True))
                end = len(self._prefix(sample, index + 1, text))
                weights[self._without_trailing_layout(token_ids, starts, text, (begin, end))] = 1
        return token_ids, weights

    def _all_but_system(self, sample: Sample) -> tuple[np.ndarray, np.ndarray]:
        text = self._text(sample, len(sample.messages))
        token_ids, starts = self._tokenize(text)
        weights = np.ones(len(token_ids))
        for index, message in enumerate(sample.messages):
            if message.role == "system":
                begin = len(self._prefix(sample, index, text)) if index else 0
                end = len(self._prefix(sample, index + 1, text))
                weights[(starts >= begin) & (starts < end)] = 0
        return token_ids, weights

    def _without_trailing_layout(self, token_ids: np.ndarray, starts: np.ndarray, text: str, span: Span) -> np.ndarray:
        """Indices of the turn's tokens, without white space that follows its end token.

        Most templates put a line feed after the token that ends a turn. Nobody generates it: generation has stopped.
        """
        indices = np.flatnonzero((starts >= span[0]) & (starts < span[1]))
        ends = [at for at, index in enumerate(indices) if int(token_ids[index]) in self.special_ids]
        if ends and ends[-1] + 1 < len(indices) and not text[starts[indices[ends[-1] + 1]] : span[1]].strip():
            return indices[: ends[-1] + 1]
        return indices

    def _prefix(self, sample: Sample, num_messages: int, whole: str, *, add_generation_prompt: bool = False) -> str:
        """The text of the first messages, checked to be a prefix of the whole."""
        if num_messages == 0:
            raise SampleError(
                sample.where,
                got="the conversation begins with an assistant message",
                expected="a message before it, since the template has no generation markers to find it by",
                hint="put a system or user message first, or skip bad samples with --on-bad-sample=skip",
            )
        shown = f"the first {num_messages} of {len(sample.messages)} messages"
        try:
            text = self._text(sample, num_messages, add_generation_prompt=add_generation_prompt)
        except SampleError as error:
            raise self._unstable(f"cannot render {shown} of {sample.where} alone ({error.got})") from error
        if not whole.startswith(text):
            raise self._unstable(
                f"renders {shown} of {sample.where} differently when the others follow, so it does not show which "
                "tokens are the assistant's"
            )
        return text

    def _unstable(self, got: str) -> TemplateError:
        return TemplateError(
            f"chat template of {self.name}",
            got=got,
            expected="a template whose rendering of the first messages begins the rendering of all",
            hint="add {% generation %} markers to the template, or split conversations so that each ends with the "
            "turn to learn",
        )

    def _template(self, sample: Sample) -> str:
        try:
            return self.tokenizer.get_chat_template(tools=list(sample.tools) or None)
        except ValueError as error:
            raise TemplateError(
                f"chat template of {self.name}",
                got=f"no template to choose ({error})",
                expected="one template, or one named default",
                hint="keep a single chat_template.jinja beside the tokenizer",
            ) from error

    def _text(self, sample: Sample, num_messages: int, *, add_generation_prompt: bool = False) -> str:
        return str(self._apply(sample, num_messages, tokenize=False, add_generation_prompt=add_generation_prompt))

    def _apply(self, sample: Sample, num_messages: int, **options: Any) -> Any:
        messages = [message.as_template_input() for message in sample.messages[:num_messages]]
        try:
            return self.tokenizer.apply_chat_template(messages, tools=list(sample.tools) or None, **options)
        except Exception as error:
            # Templates raise whatever they like: an error of their own, of jinja's, or a TypeError of some filter.
            raise SampleError(
                sample.where,
                got=f"the chat template of {self.name} refuses the conversation ({error})",
                expected="roles in an order that the template knows",
                hint="change the conversation, or skip bad samples with --on-bad-sample=skip",
            ) from error

    def _tokenize(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """Token ids, and the character each begins at."""
        out = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return np.array(out["input_ids"]), np.array([start for start, _ in out["offset_mapping"]])


def render_samples(
    tokenizer: "PreTrainedTokenizerBase", samples: Sequence[Sample], *, on_bad_sample: Literal["stop", "skip"] = "stop"
) -> Rendered:
    """An example for each conversation; those that cannot give one stop, or are counted; raises as `render_each`."""
    return render_each(tokenizer, samples, Renderer.example, on_bad_sample=on_bad_sample)


def render_each(
    tokenizer: "PreTrainedTokenizerBase",
    samples: Sequence[S],
    example_of: Callable[[Renderer, S], Example],
    *,
    on_bad_sample: Literal["stop", "skip"] = "stop",
) -> Rendered:
    """What `example_of` makes of each sample; those that cannot give an example stop, or are counted.

    Raises:
        TemplateError: always, since a template that cannot be trusted is no fault of one sample.
        SampleError, EmptyWeightsError: with `on_bad_sample="stop"`.
    """
    renderer = Renderer(tokenizer)
    examples: list[Example] = []
    reasons: Counter[str] = Counter()
    first_skipped: str | None = None
    for sample in samples:
        try:
            examples.append(example_of(renderer, sample))
        except (SampleError, EmptyWeightsError) as error:
            if on_bad_sample == "stop":
                raise
            reasons["no weight" if isinstance(error, EmptyWeightsError) else "refused by the chat template"] += 1
            first_skipped = first_skipped or str(error)
    if not examples:
        raise DataError(
            renderer.name,
            got=f"none of {len(samples)} conversations gave an example",
            expected="at least one",
            hint=first_skipped or "is this the right file?",
        )
    return Rendered(examples, reasons.total(), dict(reasons), first_skipped)


def render_blocks(
    tokenizer: "PreTrainedTokenizerBase", documents: Sequence[TextSample], *, tokens_per_block: int
) -> list[Example]:
    """Blocks of `tokens_per_block` tokens out of whole documents laid end to end; the last one is shorter.

    Each document begins with the tokenizer's BOS, if it has one, and ends with its EOS. Blocks are all full, so a step
    of n samples is a step of n · tokens_per_block tokens. Where a cut falls into a document, the next block begins with
    the last token of this one: so every token but a document's first is predicted exactly once. Documents that share a
    block neither attend to nor predict each other.

    Raises:
        DataError: the tokenizer has no EOS, without which a model never learns to stop.
    """
    assert tokens_per_block >= 2, tokens_per_block
    if tokenizer.eos_token_id is None:
        raise DataError(
            str(tokenizer.name_or_path or "tokenizer"),
            got="the tokenizer has no end-of-text token",
            expected="one, to end each document",
            hint="set eos_token in tokenizer_config.json",
        )
    begin = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    stream: list[int] = []
    is_start: list[bool] = []
    wheres: list[str] = []
    for document in documents:
        ids = [*begin, *tokenizer(document.text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        is_start += [True] + [False] * (len(ids) - 1)
        stream += ids
        wheres += [document.where] * len(ids)
    return _cut(np.array(stream, dtype=np.int32), np.array(is_start), wheres, tokens_per_block)


def _cut(stream: np.ndarray, is_start: np.ndarray, wheres: list[str], tokens_per_block: int) -> list[Example]:
    blocks = []
    begin = end = 0
    while end < len(stream):
        begin = end if end == 0 or is_start[end] else end - 1
        end = min(begin + tokens_per_block, len(stream))
        starts = is_start[begin:end].copy()
        starts[0] = True
        blocks.append(
            Example(
                stream[begin:end],
                (~starts).astype(np.float32),
                wheres[begin],
                np.flatnonzero(starts).astype(np.int32),
            )
        )
    return blocks
