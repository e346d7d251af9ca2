"""What a model says of pairs: worked by hand from scores, and against transformers' own loss and head."""

import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from tests.benchmark.pairs import (
    Scores,
    conversations,
    log_likelihoods,
    pairs_right,
    preference_figures,
    ranking_figures,
    rewards,
)
from tests.benchmark.sampler import prompt_ids
from tests.support.tolerances import LOGPROB_FP32, LOSS_SUM_FP32_RELATIVE
from training.models.tiny import tiny_model, tiny_tokenizer

PAIRS = [
    {"prompt": "2+3", "chosen": "5", "rejected": "23"},
    {"prompt": "what is 4+4?", "chosen": "it is 8", "rejected": "four"},
]


def test_figures_of_preferences_are_those_of_a_hand() -> None:
    base = [Scores(-2.0, -1.0), Scores(-3.0, -5.0), Scores(-4.0, -4.0)]
    trained = [Scores(-1.0, -4.0), Scores(-3.0, -5.0), Scores(-6.0, -5.0)]
    # Margins before: -1, 2, 0; after: 3, 2, -1. So they moved by 4, 0, -1.
    assert preference_figures(trained, base) == {
        "reward_margin": pytest.approx(1.0),
        "win_rate": pytest.approx(1.5 / 3),
        "pairs_right": pytest.approx(2 / 3),
    }


def test_figures_of_a_ranking_are_those_of_a_hand() -> None:
    scores = [Scores(1.0, 0.0), Scores(0.0, 0.0), Scores(-3.0, 1.0)]
    expected = (math.log(1 + math.exp(-1)) + math.log(2) + math.log(1 + math.exp(4))) / 3
    assert ranking_figures(scores) == {"pairs_right": 0.5, "pair_surprise": pytest.approx(expected)}
    assert ranking_figures([Scores(0.0, 1e4)])["pair_surprise"] == 1e4, "no overflow"
    assert pairs_right([Scores(1.0, 0.0)]) == 1.0


def test_a_likelihood_is_the_one_that_transformers_computes(tmp_path: Path) -> None:
    model, tokenizer = tiny_model(seed=3), tiny_tokenizer()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    for pair, found in zip(PAIRS, log_likelihoods(tmp_path, PAIRS), strict=True):
        for messages, said in zip(conversations(pair), found, strict=True):
            ids = tokenizer.apply_chat_template(messages, return_dict=True)["input_ids"]
            num_asked = len(prompt_ids(tokenizer, messages[:1]))
            # What follows the end of the turn, nobody says.
            ids = ids[: ids.index(tokenizer.eos_token_id, num_asked) + 1]
            labels = [-100] * num_asked + ids[num_asked:]
            with torch.no_grad():
                loss = model(input_ids=torch.tensor([ids]), labels=torch.tensor([labels])).loss
            assert said == pytest.approx(-float(loss) * (len(ids) - num_asked), rel=LOSS_SUM_FP32_RELATIVE)


def test_a_reward_is_what_the_head_says_after_the_last_token(tmp_path: Path) -> None:
    tiny_model(seed=4).save_pretrained(tmp_path / "base")
    tokenizer = tiny_tokenizer()
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=1)
    model.config.pad_token_id = tokenizer.pad_token_id
    torch.nn.init.normal_(model.score.weight)
    model.save_pretrained(tmp_path / "reward")
    tokenizer.save_pretrained(tmp_path / "reward")
    for pair, found in zip(PAIRS, rewards(tmp_path / "reward", PAIRS), strict=True):
        for messages, said in zip(conversations(pair), found, strict=True):
            ids = tokenizer.apply_chat_template(messages, return_dict=True)["input_ids"]
            with torch.no_grad():
                hidden = model.eval().model(input_ids=torch.tensor([ids])).last_hidden_state[0, -1]
                assert said == pytest.approx(float(hidden @ model.score.weight[0]), abs=LOGPROB_FP32)
