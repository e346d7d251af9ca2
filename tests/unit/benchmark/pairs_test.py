"""The figures of pairs, worked by hand, and the scores behind them, held against the trainer's own."""

import math
from functools import partial
from pathlib import Path

import pytest
import torch

from tests.benchmark.pairs import Scores, log_likelihoods, preference_figures, ranking_figures, rewards
from tests.benchmark.tasks.arithmetic import Sum, pair
from tests.support.chats import write_jsonl
from training.algorithms.preference import document_logprobs
from training.data.batch import microbatch
from training.data.pairs import pair_example, read_pairs
from training.data.render import Renderer
from training.models.forward import logprobs, values
from training.models.load import Head, load_model
from training.models.tiny import tiny_model, tiny_tokenizer

PAIRS = [pair(Sum(386, 457)), pair(Sum(999, 111))]


def test_of_a_preference_the_figures_are_those_of_the_papers() -> None:
    base = [Scores(-4.0, -3.0), Scores(-2.0, -2.0), Scores(-1.0, -5.0)]
    trained = [Scores(-3.0, -6.0), Scores(-2.0, -2.0), Scores(-2.0, -5.0)]
    # δ is 3 − (−1) = 4, then 0, then 3 − 4 = −1.
    figures = preference_figures(trained, base)
    assert figures == {"reward_margin": 1.0, "win_rate": 1.5 / 3, "pairs_right": 2.5 / 3}
    assert preference_figures(base, base) == {"reward_margin": 0.0, "win_rate": 0.5, "pairs_right": 1.5 / 3}


def test_of_a_ranking_the_surprise_is_bradley_terrys() -> None:
    figures = ranking_figures([Scores(1.0, 0.0), Scores(0.0, 2.0)])
    expected = (math.log(1 + math.exp(-1)) + math.log(1 + math.exp(2))) / 2
    assert figures == {"pairs_right": 0.5, "pair_surprise": pytest.approx(expected)}
    assert ranking_figures([Scores(-1e4, 1e4)])["pair_surprise"] == 2e4, "without overflow"


@pytest.mark.parametrize("head", ["language", "new value"])
def test_a_pairs_scores_are_those_that_training_sees(tmp_path: Path, head: Head) -> None:
    tiny_model("llama", seed=3).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    loaded = load_model(str(tmp_path), head=head)
    # With a head, the model that is read again is one with the same head.
    loaded.model.save_pretrained(tmp_path)
    model = loaded.model.eval()
    read = read_pairs(write_jsonl(tmp_path / "pairs.jsonl", PAIRS)).samples
    for number, found in enumerate((rewards if head == "new value" else log_likelihoods)(tmp_path, PAIRS)):
        packed = microbatch([pair_example(Renderer(loaded.tokenizer), read[number])])
        with torch.no_grad():
            if head == "new value":
                ours = values(model, packed, packed.document_starts_D1[1:].long() - 1)
            else:
                ours, _ = document_logprobs(partial(logprobs, model), packed)
        assert list(found) == pytest.approx(ours.tolist(), abs=1e-3)
        assert abs(found.margin) > 0.01, "the sides can be told apart"
