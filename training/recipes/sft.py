"""Supervised fine-tuning: conversations, of which the assistant's turns are learned, or plain text."""

from transformers import PreTrainedTokenizerBase

from training.algorithms.sft import Sft
from training.data.example import Example
from training.data.render import render_blocks, render_samples
from training.data.samples import read_documents, read_samples
from training.metrics.summary import FileSummary, added
from training.plan import Plan
from training.reading import fitted


class SftRecipe:
    """What `training.run` asks of supervised fine-tuning."""

    def algorithm(self, plan: Plan) -> Sft:
        """The surprise at each token that has a weight."""
        return Sft()

    def read(self, plan: Plan, tokenizer: PreTrainedTokenizerBase, path: str) -> tuple[list[Example], FileSummary]:
        """Conversations rendered by the tokenizer's template, or documents cut into blocks."""
        if plan.data_kind == "text":
            documents = read_documents(path, on_bad_sample=plan.on_bad_sample)
            blocks = render_blocks(tokenizer, documents.samples, tokens_per_block=plan.tokens_per_sample_max)
            return blocks, FileSummary(
                path=path,
                num_samples_read=len(documents.samples) + documents.num_skipped,
                num_examples=len(blocks),
                num_truncated=0,
                samples_skipped=added(documents.skipped_reasons),
                first_skipped=documents.first_skipped,
                keys_ignored=added(documents.ignored_keys),
            )
        chats = read_samples(path, on_bad_sample=plan.on_bad_sample)
        rendered = render_samples(tokenizer, chats.samples, on_bad_sample=plan.on_bad_sample)
        return fitted(plan, chats, rendered)
