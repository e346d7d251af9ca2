"""The model that both sides start from."""

from pathlib import Path

import pytest
from transformers import GenerationConfig

from tests.benchmark.peers.asking import BEGIN, PAD
from training.models.tiny import save_tiny, tiny_tokenizer


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose weights are those of `moved(0)`, with its tokenizer.

    One token in six ends a completion, so that a random model draws some of every length.
    """
    directory = save_tiny(tmp_path_factory.mktemp("base"))
    ends = [tiny_tokenizer("none").eos_token_id, *range(40)]
    GenerationConfig(bos_token_id=BEGIN, eos_token_id=ends, pad_token_id=PAD).save_pretrained(directory)
    return directory
