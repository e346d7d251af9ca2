"""Learning from rewards takes the same steps on one rank and on two, and goes on exactly, within a rollout too.

A reward that a tiny model can have at once: the share of digits in what it says.
"""

import json
import re
import shutil
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

import training.parallel.fsdp  # noqa: F401 - so that forked processes need not spend seconds on it
from tests.subsystem.processes import records_of, tensors_of
from tests.support.chats import write_jsonl
from tests.support.completion_server import serving
from tests.support.tolerances import LOGPROB_FP32, RANKS_FP32_RELATIVE
from training.checkpoint.manifest import POINTER
from training.config import (
    BatchConfig,
    CheckpointConfig,
    DataConfig,
    GrpoConfig,
    LoraConfig,
    ModelConfig,
    OptimizerConfig,
    ParallelConfig,
    PpoConfig,
    PpoSettings,
    RlConfig,
    RunConfig,
    ScheduleConfig,
)
from training.data.prompts import render_reply
from training.errors import ConfigError, EngineError, ModelError, RewardError, SampleError
from training.imports import import_lean
from training.metrics.records import StepRecord
from training.models import forward
from training.models.attention import DocumentStarts
from training.models.tiny import save_tiny
from training.parallel.deepspeed import preload
from training.plan import Machine, Plan, plan
from training.recipes import train
from training.rollout.generate import Completion, generate

preload("cpu")
import_lean("peft")  # Here for the same reason.

REWARD = """
def share(prompt, completion, *, of, **others):
    return sum(each in of for each in completion) / max(1, len(completion))

def raises(prompt, completion, *, of, **others):
    return 1 / 0

class Asks:
    # Asks for more until it has heard three turns.

    def __init__(self, prompt, *, of):
        self.heard = []

    def respond(self, completion):
        self.heard.append(completion)
        return None if len(self.heard) == 3 else [{"role": "tool", "content": str(len(self.heard))}]

class Fails(Asks):
    def respond(self, completion):
        return 1 / 0

def heard(prompt, completion, *, of, environment, turns):
    said = [each["content"] for each in turns if each["role"] == "assistant"]
    assert said[-1] == completion and environment.heard == said[: len(environment.heard)]
    return len(environment.heard) / 3 + share(prompt, "".join(said), of=of)
"""

PLACES: dict[str, dict[str, Any]] = {
    "ddp x2": {"backend": "ddp", "num_ranks": 2},
    "fsdp x2": {"backend": "fsdp", "num_ranks": 2},
    "zero 2 x2": {"backend": "deepspeed", "zero_stage": 2, "num_ranks": 2},
    "zero 3 x2": {"backend": "deepspeed", "zero_stage": 3, "num_ranks": 2},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model, prompts and rewards."""
    directory = tmp_path_factory.mktemp("rl")
    save_tiny(directory / "base")
    write_jsonl(directory / "prompts.jsonl", [{"prompt": "say " * n, "of": "0123456789abcdef"} for n in range(1, 6)])
    (directory / "rewards.py").write_text(REWARD)
    # An eighth of what it can say ends a turn: a random model seldom finds the one token that does.
    shutil.copytree(directory / "base", directory / "brief")
    (directory / "brief/generation_config.json").write_text(json.dumps({"eos_token_id": list(range(0, 256, 8))}))
    return directory


def planned(
    folder: Path, out: str, *, rl: dict[str, Any] | None = None, lora: bool = False, ppo: bool = False, **changed: Any
) -> Plan:
    """Eight steps of eight completions, in rollouts of two steps that are seen twice."""
    settings: dict[str, Any] = {
        "rewards": (f"{folder}/rewards.py:share",),
        **({} if ppo else {"group_size": 4}),
        "steps_per_rollout": 2,
        "epochs_per_rollout": 2,
        "completion_tokens_max": 8,
        "kl_coefficient": 0.05,
        "importance_max": 2.0,
        # On two ranks, two calls for the first and a filler for neither or one of them.
        "sequences_per_call": 5,
    }
    config: Any = PpoConfig if ppo else GrpoConfig
    config = config(
        ModelConfig(str(folder / "base")),
        DataConfig(str(folder / "prompts.jsonl")),
        RunConfig(str(folder / out), num_steps=8, device="cpu"),
        BatchConfig(samples_per_step=8, tokens_per_rank_max=128),
        OptimizerConfig(learning_rate_peak=3e-3),
        ScheduleConfig(shape="constant", warmup_fraction=0.0),
        lora=LoraConfig() if lora else None,
        parallel=ParallelConfig(ranks=changed.get("num_ranks", 1)),
        checkpoint=CheckpointConfig(steps_between=1, export="none"),
        rl=(PpoSettings if ppo else RlConfig)(**settings | (rl or {})),
    )
    answer = plan(config, Machine(num_threads=1))
    assert isinstance(answer, Plan)
    return replace(answer, num_kept=9, collective_seconds_max=60, **changed)


def completions(plan: Plan) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(plan.out) / "completions.jsonl").read_text("utf-8").splitlines()]


def steps(plan: Plan) -> list[dict[str, float]]:
    """What each step came to, without the time it took."""
    kept = []
    for record in records_of(Path(plan.out)):
        assert isinstance(record, StepRecord)
        values = record.metrics | {"loss": record.loss, "gradient norm": record.gradient_norm}
        kept.append({name: value for name, value in values.items() if not name.startswith("seconds")})
    return kept


@pytest.fixture(scope="module")
def alone(folder: Path) -> Plan:
    """A finished run of one process."""
    alone = planned(folder, "alone")
    train(alone)
    return alone


def test_the_records_say_what_a_rollout_came_to(alone: Plan) -> None:
    taken = steps(alone)
    said = completions(alone)
    assert len(taken) == 8
    assert [each["step"] for each in said] == [0] * 16 + [4] * 16
    for first in (0, 4):
        here = [each for each in said if each["step"] == first]
        assert taken[first]["reward_mean"] == pytest.approx(sum(each["reward"] for each in here) / 16, rel=1e-6)
        assert taken[first]["reward_std"] == pytest.approx(statistics.stdev(each["reward"] for each in here), rel=1e-6)
        assert taken[first]["length_mean"] == sum(each["num_tokens"] for each in here) / 16
        for group in range(0, 16, 4):
            assert len({each["where"] for each in here[group : group + 4]}) == 1
            assert abs(sum(each["advantage"] for each in here[group : group + 4])) < 1e-5
    assert len({each["where"] for each in said}) == 5, "in two rollouts of four prompts every prompt is asked"


def check_same_steps(ours: Plan, theirs: Plan) -> None:
    """Up to the order in which the terms of a sum are added."""
    assert [each["completion"] for each in completions(ours)] == [each["completion"] for each in completions(theirs)]
    for got, expected in zip(steps(ours), steps(theirs), strict=True):
        assert got.keys() == expected.keys()
        for name, value in expected.items():
            assert got[name] == pytest.approx(value, rel=20 * RANKS_FP32_RELATIVE, abs=2e-6), name


def test_a_prompt_that_a_group_shares_is_computed_once_and_changes_nothing(folder: Path, alone: Plan) -> None:
    assert alone.share_prompts
    apart = planned(folder, "apart", share_prompts=False)
    train(apart)
    check_same_steps(alone, apart)


def test_a_model_that_does_not_see_a_shared_prompt_ends_the_run_before_its_first_step(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forward, "DocumentStarts", lambda positions, prompts: DocumentStarts(positions))
    blind = planned(folder, "blind")
    with pytest.raises(ModelError, match="--share-prompts false"):
        train(blind)
    assert not (Path(blind.out) / "completions.jsonl").exists()


def test_the_first_step_is_on_policy_and_the_reference_is_where_it_began(alone: Plan) -> None:
    first, *later = steps(alone)
    assert first["ratio"] == pytest.approx(1.0, abs=1e-5)
    assert first["clip_fraction"] == 0.0
    assert first["kl"] == first["kl_rollout"] == pytest.approx(0.0, abs=1e-9)
    assert later[2]["kl_rollout"] > 1e-6, "after three steps of the rollout"
    assert later[3]["kl_rollout"] == pytest.approx(0.0, abs=1e-9), "on policy again"
    assert any(abs(each["ratio"] - 1) > 1e-4 for each in later)
    assert later[3]["kl"] > 1e-6, "in the first step after the next rollout, too"
    assert all(each["mismatch_max"] < 1e-4 for each in [first, *later])


@pytest.mark.parametrize(
    ("normalization", "advantage"),
    [("sequence", "group"), ("token", "group"), ("constant", "group"), ("constant", "rloo")],
)
def test_the_first_step_is_what_its_completions_come_to_by_hand(
    folder: Path, monkeypatch: pytest.MonkeyPatch, normalization: str, advantage: str
) -> None:
    """All completions of a rollout in one step, on policy: its loss is a mean of −A, its entropy one of surprise.

    Both by the weights that each normalization gives a token: 1 over its completion's, 1, and 1 over the most, 8.
    """
    drawn: list[Completion] = []

    def heard(*given: Any, **named: Any) -> list[Completion]:
        said = generate(*given, **named)
        drawn.extend(said)
        return said

    monkeypatch.setattr("training.rollout.episodes.generate", heard)
    rl = {"length_normalization": normalization, "advantage": advantage, "steps_per_rollout": 1}
    rl |= {} if advantage == "rloo" else {"divide_by_std": False}
    made = planned(
        folder,
        f"by hand {normalization} {advantage}",
        rl=rl,
        num_steps=1,
        samples_per_step=16,
        model_path=str(folder / "brief"),
    )
    train(made)
    (first,), said = steps(made), completions(made)
    lengths = [each["num_tokens"] for each in said]
    assert lengths == [len(each.token_ids) for each in drawn]
    assert len(set(lengths)) > 3
    rewards = [each["reward"] for each in said]
    expected = []
    for number, reward in enumerate(rewards):
        group = rewards[number // 4 * 4 : number // 4 * 4 + 4]
        others = (sum(group) - reward) / 3
        expected.append(reward - (others if advantage == "rloo" else sum(group) / 4))
    assert [each["advantage"] for each in said] == pytest.approx(expected, abs=1e-6)
    assert max(expected) > 0.05
    weights = {"sequence": [1 / n for n in lengths], "token": [1.0] * 16, "constant": [1 / 8] * 16}[normalization]
    divisor = sum(lengths) if normalization == "token" else 16
    loss = -sum(n * w * a for n, w, a in zip(lengths, weights, expected, strict=True)) / divisor
    assert first["loss"] == pytest.approx(loss, abs=1e-5)
    total = sum(n * w for n, w in zip(lengths, weights, strict=True))
    surprise = -sum(w * each.logprobs.sum() for w, each in zip(weights, drawn, strict=True)) / total
    assert first["entropy"] == pytest.approx(surprise, rel=1e-5)
    finished = [each["is_finished"] for each in said]
    assert finished == [each.is_finished for each in drawn]
    assert 0 < first["finished_fraction"] == sum(finished) / 16 < 1
    assert first["reward_std"] == pytest.approx(statistics.stdev(rewards), rel=1e-6)
    assert first["ratio"] == pytest.approx(1.0, abs=1e-5)


def test_in_bfloat16_the_sampler_is_off_by_a_third_digit_and_the_ratio_begins_at_1(folder: Path) -> None:
    """Seen of log-probabilities: 0.001 in the mean and 0.008 at most; in float32, 10⁻⁶."""
    made = planned(folder, "bf16", precision="bf16", num_steps=5)
    train(made)
    taken = steps(made)
    for first in (taken[0], taken[4]):
        assert 1e-4 < first["mismatch_mean"] < 1e-2
        assert 1e-3 < first["mismatch_max"] < 5e-2
        assert first["ratio"] == pytest.approx(1.0, abs=1e-2)
        assert first["clip_fraction"] == 0.0


@pytest.fixture(scope="module")
def alone_with_critic(folder: Path) -> Plan:
    """The same with PPO."""
    alone = planned(folder, "critic", ppo=True, exports=("model",))
    train(alone)
    return alone


def test_a_critic_learns_beside_the_policy_and_stays_out_of_the_export(alone_with_critic: Plan) -> None:
    first, *later = steps(alone_with_critic)
    assert first["value_mean"] == first["value_clip_fraction"] == 0.0
    assert first["explained_variance"] == pytest.approx(0.0, abs=1e-6)
    assert later[3]["value_mean"] != 0.0
    assert first["ratio"] == pytest.approx(1.0, abs=1e-5)
    assert first["kl"] == pytest.approx(0.0, abs=1e-6)
    assert later[3]["kl"] != pytest.approx(0.0, abs=1e-6)
    said = completions(alone_with_critic)
    assert [len({each["where"] for each in said[at : at + 5]}) for at in range(0, 30, 5)] == [5] * 6, "one of each"
    out = Path(alone_with_critic.out)
    saved = tensors_of(out / "checkpoints/step-00000008")
    assert any(name.endswith("critic.weight") and value.any() for name, value in saved.items())
    _, loading = AutoModelForCausalLM.from_pretrained(out / "model", output_loading_info=True)
    assert not any(loading.values())


@pytest.mark.parametrize(
    ("place", "ppo"),
    [(place, ppo) for place in PLACES for ppo in (False, True)],
)
def test_several_ranks_take_the_steps_of_one(
    folder: Path, alone: Plan, alone_with_critic: Plan, place: str, ppo: bool
) -> None:
    alone = alone_with_critic if ppo else alone
    together = planned(folder, f"{place} {ppo}", ppo=ppo, **PLACES[place])
    train(together)
    check_same_steps(together, alone)
    if place in ("fsdp x2", "zero 3 x2"):
        for record in records_of(Path(together.out)):
            assert isinstance(record, StepRecord)
            # A message takes that long; to enter a context that does nothing, a hundredth of it.
            assert 1e-4 < record.metrics["seconds_gathering"] < record.metrics["seconds_generating"]


@pytest.mark.parametrize(
    ("place", "lora", "ppo", "stopped_after"),
    [
        ("one process", False, False, 1),
        ("one process", False, False, 2),
        ("one process", False, False, 3),
        ("one process", False, False, 4),
        ("fsdp x2", True, False, 2),
        ("fsdp x2", True, False, 4),
        ("one process", False, True, 2),
        ("fsdp x2", True, True, 2),
    ],
)
def test_a_run_goes_on_exactly_in_the_middle_of_a_rollout_and_between_two(
    folder: Path, place: str, lora: bool, ppo: bool, stopped_after: int
) -> None:
    """A rollout is seen twice in two steps: after 1 and 3 its epoch is not over, after 2 it is, after 4 the rollout."""
    whole = planned(folder, f"whole {place} {lora} {ppo}", lora=lora, ppo=ppo, **PLACES.get(place, {}))
    if not Path(whole.out).exists():
        train(whole)
    parts = replace(whole, out=f"{whole.out} parts {stopped_after}")
    shutil.copytree(whole.out, parts.out)
    checkpoints = Path(parts.out) / "checkpoints"
    for later in checkpoints.glob("step-*"):
        if int(later.name.rpartition("-")[2]) > stopped_after:
            shutil.rmtree(later)
    (checkpoints / POINTER).write_text(f"step-{stopped_after:08d}\n", encoding="utf-8")
    train(replace(parts, resume="must"))
    assert steps(parts) == steps(whole)
    assert completions(parts) == completions(whole)
    name = "checkpoints/step-00000008"
    assert tensors_of(Path(parts.out) / name).keys() == tensors_of(Path(whole.out) / name).keys()
    theirs = tensors_of(Path(whole.out) / name)
    for key, value in tensors_of(Path(parts.out) / name).items():
        assert value.equal(theirs[key]), key


def test_ranks_without_a_pack_of_their_own_keep_in_step(folder: Path) -> None:
    """All completions fit into one pack, of which there is one for two ranks."""
    roomy = {"num_steps": 1, "tokens_per_rank_max": 2048}
    alone, together = (
        planned(folder, f"roomy {place}", **roomy, **PLACES.get(place, {})) for place in ("one process", "fsdp x2")
    )
    train(alone)
    train(together)
    for name, value in steps(alone)[0].items():
        assert steps(together)[0][name] == pytest.approx(value, rel=20 * RANKS_FP32_RELATIVE, abs=2e-6), name


def test_a_reward_that_raises_stops_the_run_or_is_counted(folder: Path) -> None:
    rewards = (f"{folder}/rewards.py:share", f"{folder}/rewards.py:raises")
    with pytest.raises(RewardError, match=r"prompts.jsonl:\d: the reward .*:raises raised ZeroDivisionError"):
        train(planned(folder, "stops", rl={"rewards": rewards}))
    counted = planned(folder, "counts", rl={"rewards": rewards, "on_reward_error": "count"}, num_steps=1)
    train(counted)
    assert steps(counted)[0]["reward_errors"] == 16


def test_a_completion_that_is_too_long_loses_reward(folder: Path) -> None:
    made = planned(folder, "overlong", rl={"overlong_tokens": 4}, num_steps=1)
    train(made)
    for each in completions(made):
        share, penalty = each["rewards"].values()
        assert penalty == -max(0, each["num_tokens"] - 4) / 4
        assert each["reward"] == pytest.approx(share + penalty)
    assert {each["num_tokens"] for each in completions(made)} >= {8}
    assert steps(made)[0]["reward_mean"] == pytest.approx(sum(e["reward"] for e in completions(made)) / 16, rel=1e-6)


def test_groups_of_equal_reward_are_drawn_again_of_other_prompts(folder: Path) -> None:
    """Of prompts without a character to say the reward is always 0; on two ranks the same are replaced."""
    lines = [{"prompt": "say " * n, "of": "0123456789abcdef" if n % 3 == 0 else ""} for n in range(1, 7)]
    path = str(write_jsonl(folder / "uniform.jsonl", lines))
    often = {"redraws_max": 30, "completion_tokens_max": 16}
    made = planned(folder, "redrawn", rl=often, num_steps=4, data_path=path)
    train(made)
    (first, *_), said = steps(made), completions(made)
    assert first["groups_redrawn"] > 0
    assert first["uniform_groups_fraction"] == 0.0
    assert {each["where"] for each in said} <= {f"{path}:3", f"{path}:6"}
    for group in range(0, 16, 4):
        assert len({each["where"] for each in said[group : group + 4]}) == 1
        assert len({each["reward"] for each in said[group : group + 4]}) > 1
    assert first["reward_mean"] == pytest.approx(sum(each["reward"] for each in said) / 16, rel=1e-6)
    together = planned(folder, "redrawn x2", rl=often, num_steps=4, data_path=path, **PLACES["ddp x2"])
    train(together)
    assert [each["completion"] for each in completions(together)] == [each["completion"] for each in said]
    assert steps(together)[0]["groups_redrawn"] == first["groups_redrawn"]


def test_a_rollout_of_nothing_but_equal_rewards_stops_the_run_if_others_were_asked_for(folder: Path) -> None:
    path = str(write_jsonl(folder / "nothing.jsonl", [{"prompt": "say", "of": ""}]))
    with pytest.raises(RewardError) as raised:
        train(planned(folder, "nothing", rl={"redraws_max": 2}, data_path=path))
    assert str(raised.value) == (
        "rollout 0: the rewards of each of 4 groups are all alike, 2 time(s) after they were replaced; expected a "
        "group in which one completion is better than another. hint: give prompts that the model solves sometimes, "
        "larger groups, or more of rl.redraws_max; if everything is solved, the run has done its work: its last "
        "checkpoint has it"
    )
    patient = planned(folder, "nothing but patient", data_path=path, num_steps=1)
    train(patient)
    assert steps(patient)[0]["uniform_groups_fraction"] == 1.0


@pytest.mark.parametrize(
    ("place", "lora", "ppo"),
    [("one process", False, False), ("fsdp x2", False, True), ("ddp x2", True, False), ("zero 3 x2", True, False)],
)
def test_a_server_that_gets_the_weights_draws_what_the_model_in_training_draws(
    folder: Path, place: str, lora: bool, ppo: bool
) -> None:
    itself = planned(folder, f"itself {lora} {ppo}", lora=lora, ppo=ppo)
    if not Path(itself.out).exists():
        train(itself)
    with serving(folder / "base") as server:
        rl = {"engine": server.address, "engine_sync": "adapter" if lora else "weights"}
        asks = planned(folder, f"asks {place} {lora}", lora=lora, ppo=ppo, rl=rl, **PLACES.get(place, {}))
        train(asks)
        assert len(server.models) == 1 + lora, "of adapters the last alone"
        assert server.paths.count("/v1/completions") == 32
    assert [each["completion"] for each in completions(asks)] == [each["completion"] for each in completions(itself)]
    assert max(each["mismatch_max"] for each in steps(asks)) < 1e-4
    for ours, theirs in zip(steps(asks), steps(itself), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=20 * RANKS_FP32_RELATIVE, abs=2e-6)


def test_a_server_that_keeps_its_weights_draws_from_another_model_and_the_records_say_so(folder: Path) -> None:
    with serving(folder / "base") as server:
        made = planned(folder, "keeps", rl={"engine": server.address})
        train(made)
    taken = steps(made)
    assert taken[0]["mismatch_max"] < 1e-4
    assert taken[4]["mismatch_max"] > 1e-2
    assert taken[4]["mismatch_mean"] > 100 * taken[0]["mismatch_mean"]


def test_a_server_that_is_not_there_or_tells_no_tokens_is_an_error_with_its_address(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(folder / "base") as server:
        address = server.address
        monkeypatch.setattr(server, "answer", lambda path, body: {"data": [{"id": "m"}], "choices": [{"logprobs": {}}]})
        with pytest.raises(EngineError) as raised:
            train(planned(folder, "tells nothing", rl={"engine": address}))
        assert str(raised.value) == (
            f"{address}: an answer in which tokens cannot be found (KeyError: 'tokens'); expected logprobs with tokens "
            "as token_id:N, and the log-probability of each. hint: take a server that knows "
            "return_tokens_as_token_ids, such as vLLM"
        )
        monkeypatch.setattr(server, "answer", lambda path, body: 1 / 0)
        with pytest.raises(
            EngineError, match=r"/models: HTTP Error 400: Bad Request: .*ZeroDivisionError.*; expected an"
        ):
            train(planned(folder, "refuses", rl={"engine": address}))
    with pytest.raises(EngineError) as raised:
        train(planned(folder, "not there", rl={"engine": address}))
    assert str(raised.value) == (
        f"{address}/models: <urlopen error [Errno 111] Connection refused>; expected an answer of the server that "
        "draws completions. hint: start it, or correct --engine; the run goes on from its last checkpoint"
    )


def with_environment(folder: Path, out: str, name: str = "Asks", **changed: Any) -> Plan:
    """Four steps of episodes with several turns."""
    rewards = f"{folder}/rewards.py"
    rl = {"environment": f"{rewards}:{name}", "rewards": (f"{rewards}:heard",), **changed.pop("rl", {})}
    place = PLACES.get(changed.pop("place", ""), {})
    return planned(folder, out, rl=rl, num_steps=4, model_path=str(folder / "brief"), **place, **changed)


@pytest.mark.parametrize("ppo", [False, True], ids=["grpo", "ppo"])
def test_an_environment_answers_and_only_what_the_model_said_is_learned(folder: Path, ppo: bool) -> None:
    alone = with_environment(folder, f"turns {ppo}", ppo=ppo)
    train(alone)
    said, taken = completions(alone), steps(alone)
    turns = [[turn["role"] for turn in each["turns"]] for each in said]
    assert {len(each) for each in turns} == {1, 3, 5}, "cut off in the first turn, in the second, or not before the end"
    assert all(each == ["assistant", "tool", "assistant", "tool", "assistant"][: len(each)] for each in turns)
    assert taken[0]["turns_mean"] == sum(each.count("assistant") for each in turns) / 16
    # Only where training reads what the model had read does it say the same of tokens in later turns.
    assert taken[0]["mismatch_max"] < 1e-4
    assert taken[0]["ratio"] == pytest.approx(1.0, abs=1e-5)
    assert taken[0]["length_mean"] == sum(each["num_tokens"] for each in said) / 16
    with serving(folder / "brief") as server:
        others = [
            with_environment(folder, f"turns {ppo} ddp", ppo=ppo, place="ddp x2", rl={"engine": server.address}),
            *(with_environment(folder, f"turns {ppo} {place}", ppo=ppo, place=place) for place in ["fsdp x2"]),
        ]
        for other in others:
            train(other)
            assert [each["turns"] for each in completions(other)] == [each["turns"] for each in said]
            for ours, theirs in zip(steps(other), taken, strict=True):
                assert ours["loss"] == pytest.approx(theirs["loss"], rel=20 * RANKS_FP32_RELATIVE, abs=2e-6)


def test_an_episode_ends_at_its_last_turn_and_where_a_turn_has_no_room(folder: Path) -> None:
    short = with_environment(folder, "two turns", rl={"turns_max": 2})
    train(short)
    assert {len(each["turns"]) for each in completions(short)} == {1, 3}
    assert not any(each["is_finished"] for each in completions(short))
    # The longest prompt leaves room for one turn and not for two.
    narrow = with_environment(folder, "narrow", tokens_per_sample_max=60)
    train(narrow)
    assert {len(each["turns"]) for each in completions(narrow) if each["where"].endswith(":5")} == {1}
    assert {len(each["turns"]) for each in completions(narrow)} > {1}


def test_an_environment_that_raises_is_named_with_its_line(folder: Path) -> None:
    with pytest.raises(RewardError) as raised:
        train(with_environment(folder, "fails", "Fails"))
    assert re.fullmatch(
        r".*prompts\.jsonl:\d: the environment .*rewards\.py:Fails raised ZeroDivisionError: division by zero, of the "
        r"completion .*; expected a reply, or None to end the episode\. hint: have it reply to what it does not "
        r"understand, so that the model can learn from that",
        str(raised.value),
    )
    with pytest.raises(ConfigError) as missing:
        train(with_environment(folder, "absent", "Absent"))
    assert str(missing.value) == (
        f"rl.environment: {folder}/rewards.py:Absent, which cannot be loaded (AttributeError: module "
        "'rewards_of_rewards' has no attribute 'Absent'); expected module:function or file.py:function. hint: check "
        "the name; paths of files start where the command was typed"
    )


def test_a_reply_is_what_the_template_has_between_two_turns(folder: Path) -> None:
    """However the turn before ended."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    asked = [{"role": "user", "content": "2 + 2"}]
    after = [{"role": "assistant", "content": "4"}, {"role": "tool", "content": "right"}]
    prompt = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template([*asked, *after], tokenize=False, add_generation_prompt=True)
    for turn in ("4<|end|>", "4"):
        ids = tokenizer(prompt + turn, add_special_tokens=False)["input_ids"]
        ids += render_reply(tokenizer, after[1:], ended_by=ids[-1], is_chat=True)
        assert ids == tokenizer(whole, add_special_tokens=False)["input_ids"]
    plain = render_reply(tokenizer, after[1:], ended_by=ids[-1], is_chat=False)
    assert tokenizer.decode(plain) == "right"


def test_a_policy_with_a_critic_learns(folder: Path) -> None:
    """In 80 steps. Seen: 0.03 to 0.6, of a reward whose most is 1."""
    rl = {"completion_tokens_max": 8, "kl_coefficient": 0.0, "sequences_per_call": 64}
    made = planned(folder, "learns", ppo=True, rl=rl, num_steps=80, samples_per_step=32, checkpoint_steps_between=None)
    train(made)
    first, *_, last = steps(made)
    assert first["reward_mean"] < 0.1
    assert last["reward_mean"] > 0.4
    assert last["value_mean"] > 0.1


def test_a_reward_model_is_a_reward(folder: Path) -> None:
    """With a weight, beside a function; what it said is what transformers says of the same conversation."""
    config = AutoConfig.from_pretrained(folder / "base", num_labels=1)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder / "judge")
    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "judge")
    rewards = (f"{folder}/rewards.py:share", f"2*{folder}/judge")
    made = planned(folder, "judged", rl={"rewards": rewards}, num_steps=1)
    train(made)
    model = AutoModelForSequenceClassification.from_pretrained(folder / "judge").eval()
    for each in completions(made):
        said = [{"role": "user", "content": each["prompt"]}, {"role": "assistant", "content": each["completion"]}]
        ids = tokenizer.apply_chat_template(said, return_tensors="pt", return_dict=True)["input_ids"]
        share, judged = each["rewards"].values()
        assert judged == pytest.approx(model(input_ids=ids).logits.item(), abs=LOGPROB_FP32)
        assert each["reward"] == pytest.approx(share + 2 * judged)
    assert f"reward {folder}/judge" in steps(made)[0]


def test_a_line_that_is_no_prompt_is_refused_by_its_number(folder: Path) -> None:
    path = write_jsonl(folder / "bad.jsonl", [{"prompt": "say"}, {"question": "say"}])
    with pytest.raises(SampleError) as raised:
        train(planned(folder, "refused", data_path=str(path)))
    assert str(raised.value) == (
        f"{path}:2: the sample has no prompt; expected a string or a list of messages under 'prompt'. hint: rename the "
        "column, or skip bad samples with --on-bad-sample=skip"
    )
