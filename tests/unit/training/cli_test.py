"""What is typed becomes the config that is meant, and what is wrong becomes one line and an exit code."""

import gc
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import torch

from tests.support.chats import sums, write_jsonl
from training import cli, errors, recipes
from training.cli import EPILOG, expanded, field_docs, main, parser, resume_command, short_names, to_config
from training.config import CONFIGS, DataConfig, LoraConfig, ModelConfig, RecipeKind, RunConfig, SftConfig
from training.models.tiny import save_tiny, tiny_tokenizer

LEAST = ["sft", "--model", "m", "--data", "d", "--out", "o"]
CONFIG = SftConfig(ModelConfig("m"), DataConfig("d"), RunConfig("o"))


@pytest.fixture(autouse=True)
def _threads_are_put_back() -> Iterator[None]:
    """A run sets the threads of its process, and this process has other tests to run."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def typed(*words: str) -> SftConfig:
    parsed = parser().parse_args(expanded([*LEAST, *words]))
    return to_config(parsed["sft"])


def test_three_words_are_enough() -> None:
    assert typed() == CONFIG


def test_a_setting_may_be_given_in_full_or_short_with_dashes_or_underscores() -> None:
    expected = replace(CONFIG, optimizer=replace(CONFIG.optimizer, learning_rate_peak=0.5))
    for words in (
        ["--optimizer.learning_rate_peak", "0.5"],
        ["--optimizer.learning-rate-peak=0.5"],
        ["--learning_rate_peak=0.5"],
        ["--learning-rate-peak", "0.5"],
    ):
        assert typed(*words) == expected


@pytest.mark.parametrize("recipe", CONFIGS)
def test_every_setting_has_a_short_name(recipe: RecipeKind) -> None:
    full = set(short_names(recipe).values())
    for section, hint in get_type_hints(CONFIGS[recipe]).items():
        config = hint if is_dataclass(hint) else LoraConfig
        assert {f"{section}.{field.name}" for field in fields(config)} <= full


def test_each_recipe_is_a_command_with_its_own_settings_and_its_plan_can_be_shown(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert set(CONFIGS) == set(recipes.RECIPES) == set(get_args(RecipeKind)) == set(cli.COMMANDS) - {"plan"}
    for recipe in CONFIGS:
        assert main(["plan", recipe, *LEAST[1:], "--device", "cpu"]) == 0
        assert capsys.readouterr().out.startswith(f"recipe      {recipe}\n")
    assert main(["plan", "dpo", *LEAST[1:], "--loss", "simpo", "--preference.beta=3", "--device", "cpu"]) == 0
    assert "preference  simpo, beta 3, target margin 1.5\n" in capsys.readouterr().out


def test_every_flag_that_a_message_or_docstring_names_exists() -> None:
    names = {short: full for recipe in CONFIGS for short, full in short_names(recipe).items()}
    root = Path(cli.__file__).parent
    known = {*names, *names.values(), "lora", "config", "debug", "help"}
    named = {
        (path.name, flag.replace("-", "_").rstrip("."))
        for path in root.rglob("*.py")
        if "quickstart" not in path.parts
        for flag in re.findall(r"(?<![\w-])--([a-z][a-z_.-]+)", path.read_text(encoding="utf-8"))
    }
    assert len(named) > 20
    assert {(file, flag) for file, flag in named if flag not in known and not flag.startswith("section.")} == set()


def test_lora_alone_or_with_any_of_its_settings_trains_an_adapter() -> None:
    assert typed("--lora").lora == LoraConfig()
    assert typed("--lora", "--seed", "1").lora == LoraConfig()
    assert typed("--lora", "true").lora == typed("--lora=true").lora == LoraConfig()
    assert typed("--lora", "false").lora is typed("--lora=false").lora is None
    assert typed("--rank", "4").lora == LoraConfig(rank=4)
    assert typed("--lora", "--rank", "4", "--alpha=3").lora == LoraConfig(rank=4, alpha=3.0)
    assert typed("--target-modules", '["q_proj","v_proj"]').lora == LoraConfig(target_modules=("q_proj", "v_proj"))


def test_optimizer_and_kind_of_data_are_chosen_by_a_word() -> None:
    chosen = typed("--optimizer", "muon", "--kind", "text")
    assert (chosen.optimizer.kind, chosen.data.kind) == ("muon", "text")


def test_null_is_none() -> None:
    assert typed("--gradient-norm-max", "null").optimizer.gradient_norm_max is None


def test_file_of_settings_is_read_and_later_words_override_it(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("model: {path: other}\nlora: {rank: 4}\nbatch:\n  samples_per_step: 3\nrun: {seed: 5}\n")
    parsed = parser().parse_args(expanded(["sft", "--config", str(file), "--data", "d", "--out", "o", "--seed", "6"]))
    expected = replace(CONFIG, model=ModelConfig("other"), lora=LoraConfig(rank=4), run=RunConfig("o", seed=6))
    assert to_config(parsed["sft"]) == replace(expected, batch=replace(CONFIG.batch, samples_per_step=3))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--samples-per-stepp", "3"], "unrecognized arguments: --samples_per_stepp"),
        (["--samples-per-step", "many"], "batch.samples_per_step"),
        (["--precision", "fp8"], "fp8"),
        (["--kind"], "expected one argument"),
    ],
)
def test_what_cannot_be_read_exits_with_2_and_says_what(
    words: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*LEAST, *words])
    assert ended.value.code == errors.ConfigError.exit_code
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], 'expected "command" to be one of {sft,reward'),
        (["sf"], "invalid choice: 'sf' (choose from 'sft', 'reward'"),
        (["sft", "--model", "m"], "usage: training {sft,reward,"),
    ],
    ids=["none", "unknown", "one of them"],
)
def test_who_mistypes_a_command_is_told_all_of_them(
    words: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == errors.ConfigError.exit_code
    assert says in capsys.readouterr().err


def test_of_a_command_that_is_named_alone_a_parser_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    settings_parser = cli._settings_parser
    monkeypatch.setattr(cli, "_settings_parser", lambda name, says: made.append(name) or settings_parser(name, says))
    parser("dpo")
    assert made == ["dpo"]
    parser("plam")
    assert made[1:] == list(cli.COMMANDS)


def test_help_teaches_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["sft", "--help"])
    assert ended.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    for section, hint in get_type_hints(SftConfig).items():
        config = LoraConfig if section == "lora" else hint
        docs = field_docs(config)
        for field in fields(config):
            assert len(docs[field.name]) > 20, f"{section}.{field.name} has no docstring"
            # Lines of help are broken at hyphens too.
            assert docs[field.name].rstrip(".").replace(" ", "") in shown.replace(" ", ""), f"{section}.{field.name}"
    for line in EPILOG.splitlines():
        assert " ".join(line.split()) in shown


def test_help_lists_each_exit_code_of_the_error_tree() -> None:
    codes = {int(code) for code in re.findall(r"(?:^|  ) *(\d+)  [a-z]", EPILOG, re.MULTILINE)}
    branches = {each.exit_code for each in errors.PlumblineError.__subclasses__()}
    assert codes == branches | {0, errors.EXIT_INTERRUPTED}


def test_plan_prints_what_is_decided(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *LEAST[1:], "--lora", "--device", "cpu"]) == 0
    shown = capsys.readouterr().out
    assert "model       m, LoRA rank 16, alpha 32, dropout 0 on all-linear" in shown
    assert "rate        cosine from 0.0002" in shown


def test_plan_shows_what_the_data_come_to_and_the_first_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With what is learned of it marked; of prompts nothing is. What a run would stop at stops the plan as well."""
    monkeypatch.chdir(tmp_path)
    save_tiny("m")
    words = ["--model", "m", "--data", "chat.jsonl", "--out", "o", "--device", "cpu"]
    assert main(["plan", *words]) == 0
    assert capsys.readouterr().out.endswith("\nfirst       not shown, since there is no chat.jsonl here\n")
    write_jsonl(tmp_path / "chat.jsonl", sums(2))
    assert main(["plan", *words]) == 0
    assert capsys.readouterr().out.endswith(
        "\ndata        chat.jsonl: 2 samples read, skipped: none, truncated: 0, 2 examples"
        "\nexamples    2 to train on (58 tokens, 4 of them learned), 0 to validate on"
        "\nfirst       chat.jsonl:1, 29 tokens; learned is what stands between ⟦ and ⟧:"
        "\n            <|begin|><|turn|>user⏎0 + 0?<|end|>⏎<|turn|>assistant⏎⟦0<|end|>⟧⏎\n"
    )
    write_jsonl(tmp_path / "chat.jsonl", [{"prompt": "1 + 1?", "answer": "2"}])
    assert main(["plan", "grpo", *words]) == 0
    assert capsys.readouterr().out.endswith(
        "\nexamples    1 to train on (26 tokens, 0 of them learned), 0 to validate on"
        "\nfirst       chat.jsonl:1, 26 tokens:\n            <|begin|><|turn|>user⏎1 + 1?<|end|>⏎<|turn|>assistant⏎\n"
    )
    assert main(["plan", *words]) == errors.SampleError.exit_code
    assert capsys.readouterr().err.startswith("error: chat.jsonl:1: the sample has no messages")
    assert not (tmp_path / "o").exists()


def test_a_terminal_that_lacks_a_letter_ends_nothing(tmp_path: Path) -> None:
    """Here of a path; a rank that begins anew gets the rule from the environment."""
    code = "import sys; from training.cli import main; sys.exit(main(sys.argv[1:]))"
    words = [sys.executable, "-c", code, "plan", *LEAST[1:-1], "o-\u27e6"]
    environment = os.environ | {"PYTHONIOENCODING": "latin-1"}
    ran = subprocess.run(words, env=environment, cwd=tmp_path, capture_output=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, b"")
    assert b"\nout         o-\\u27e6; " in ran.stdout
    assert cli.ENVIRONMENT["PYTHONIOENCODING"] == ":backslashreplace"


@pytest.mark.parametrize("command", ["plan", "sft"])
def test_refusal_is_one_line_with_exit_code_2(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, *LEAST[1:], "--export", "merged"]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err == (
        "error: checkpoint.export: merged, without lora; expected model, auto or none. hint: add --lora to train an "
        "adapter\n"
    )


@pytest.mark.parametrize("attention", ["flex", "flash"])
def test_attention_in_a_kernel_of_accelerators_is_refused_on_a_cpu(
    attention: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*LEAST, "--attention", attention, "--precision", "bf16", "--device", "cpu"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"error: model.attention: {attention}, on cpu, w")
    assert said.err.endswith(
        "; expected documents, sdpa or eager. hint: leave it out: attention per document is exact everywhere\n"
    )


def test_impossible_value_is_one_line_with_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*LEAST, "--samples-per-step", "0"]) == 2
    assert capsys.readouterr().err.startswith("error: batch.samples_per_step: 0; expected")


def test_debug_shows_where_an_error_was_raised() -> None:
    with pytest.raises(errors.ConfigError):
        main([*LEAST, "--samples-per-step", "0", "--debug"])


@pytest.mark.parametrize(
    ("lines", "code", "says"),
    [
        ([], errors.DataError.exit_code, "error: "),
        (['{"messages": 3}'], errors.SampleError.exit_code, "chat.jsonl:1: "),
    ],
)
def test_unusable_data_exits_with_3(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    lines: Any,
    code: int,
    says: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    save_tiny("m")
    write_jsonl(tmp_path / "chat.jsonl", lines)
    assert main(["sft", "--model", "m", "--data", "chat.jsonl", "--out", "o", "--device", "cpu"]) == code
    assert says in capsys.readouterr().err


def test_missing_model_exits_with_4(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_jsonl(tmp_path / "chat.jsonl", sums(2))
    words = ["sft", "--model", str(tmp_path / "absent"), "--data", str(data), "--out", str(tmp_path / "o")]
    assert main(words) == errors.ModelError.exit_code
    assert capsys.readouterr().err.startswith(f"error: {tmp_path}/absent: ")


def _absent_data(place: Path) -> None:
    (place / "chat.jsonl").unlink()


def _lines(*lines: Any) -> Callable[[Path], object]:
    return lambda place: write_jsonl(place / "chat.jsonl", lines)


def _no_template(place: Path) -> None:
    save_tiny(place / "m", template="none")
    (place / "m/chat_template.jinja").unlink(missing_ok=True)


def _one_token_too_many(place: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(place / "m")


def _no_model(place: Path) -> None:
    (place / "m/config.json").unlink()


DOORS: dict[str, tuple[Callable[[Path], object], list[str], type[errors.PlumblineError], str]] = {
    "absent file": (_absent_data, [], errors.DataError, "chat.jsonl: "),
    "malformed JSON": (_lines('{"messages": ['), [], errors.SampleError, "chat.jsonl:1: "),
    "wrong role": (
        _lines({"messages": [{"role": "bot", "content": "?"}]}),
        [],
        errors.SampleError,
        "chat.jsonl:1: message 1 has role 'bot'",
    ),
    "nothing to learn": (
        _lines({"messages": [{"role": "user", "content": "?"}]}),
        [],
        errors.SampleError,
        "chat.jsonl:1: no message is an assistant's",
    ),
    "too long": (
        lambda place: None,
        ["--tokens-per-sample-max", "8"],
        errors.DataError,
        "chat.jsonl:1: the sample has",
    ),
    "no chat template": (_no_template, [], errors.ModelError, "m: the tokenizer has no chat template"),
    "another vocabulary": (_one_token_too_many, [], errors.ModelError, "m: the tokenizer has 261 tokens and the model"),
    "absent model": (_no_model, [], errors.ModelError, "m: the directory has no config.json"),
    "impossible setting": (lambda place: None, ["--rank", "0"], errors.ConfigError, "lora.rank: 0"),
    "no combination": (lambda place: None, ["--quantization", "nf4"], errors.ConfigError, "model.quantization: nf4"),
}


@pytest.mark.parametrize("door", DOORS)
def test_bad_input_is_one_line_of_four_parts_and_leaves_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], door: str
) -> None:
    spoil, words, kind, begins = DOORS[door]
    monkeypatch.chdir(tmp_path)
    save_tiny("m")
    write_jsonl(tmp_path / "chat.jsonl", sums(3))
    spoil(tmp_path)
    code = main(["sft", "--model", "m", "--data", "chat.jsonl", "--out", "o", "--device", "cpu", *words])
    assert code == kind.exit_code
    said = capsys.readouterr().err.splitlines()[-1]
    assert re.fullmatch(r"error: .+?: .+; expected .+\. hint: .+", said), said
    assert begins in said
    assert not (tmp_path / "o/checkpoints").exists()
    assert not (tmp_path / "o/metrics.jsonl").exists()


def test_missing_checkpoint_exits_with_5(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "o"
    assert main([*LEAST[:-1], str(out), "--resume", "must"]) == errors.CheckpointError.exit_code
    assert f"error: {out}/checkpoints: no checkpoint" in capsys.readouterr().err


def test_ctrl_c_outside_of_a_step_exits_with_130_and_says_what_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(plan: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(recipes, "train", interrupted)
    assert main([*LEAST[:-1], str(tmp_path / "o")]) == 130
    assert capsys.readouterr().err == "stopped at once; what came after the last checkpoint is lost\n"


def test_paths_are_meant_from_where_the_command_was_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    monkeypatch.setenv("BUILD_WORKING_DIRECTORY", str(tmp_path / "here"))
    main([*LEAST, "--resume", "must"])
    assert (tmp_path / "here" / "o").is_dir()
    assert Path(os.getcwd()) == tmp_path / "here"


def test_command_to_go_on_can_be_pasted_into_a_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BUILD_WORKING_DIRECTORY", raising=False)
    words = [*LEAST[:-1], "a b"]
    assert resume_command(words) == "python -m training sft --model m --data d --out 'a b' --resume must"
    assert typed("--resume", "never", "--resume", "must").checkpoint.resume == "must", "the last one counts"
    monkeypatch.setenv("BUILD_WORKING_DIRECTORY", "x")
    assert resume_command(words).startswith("./bazelw run //training -- sft ")


def test_what_is_imported_is_no_matter_of_the_garbage_collector_once_training_begins(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted(plan: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(recipes, "train", interrupted)
    was_looking = gc.isenabled()
    gc.unfreeze()
    main(LEAST)
    frozen = gc.get_freeze_count()
    assert frozen > 100_000
    left_by_the_run: list[list[str]] = [[] for _ in range(1000)]
    main(LEAST)
    assert gc.get_freeze_count() < frozen + len(left_by_the_run)
    assert gc.isenabled() == was_looking


@pytest.mark.parametrize(("given", "found"), [({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")])
def test_waiting_threads_let_go_of_the_core_unless_someone_has_said_otherwise(
    given: dict[str, str], found: str
) -> None:
    """Asked in a process of its own when torch is first imported, which is when it counts."""
    code = """if True:
        import os, sys
        class Asked:
            def find_spec(self, name, *rest):
                if name == "torch":
                    sys.exit(os.environ["OMP_WAIT_POLICY"])
        sys.meta_path.insert(0, Asked())
        from training.cli import main
        main(sys.argv[1:])
    """
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"} | given
    words = [sys.executable, "-c", code, *LEAST]
    ran = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert ran.stderr == f"{found}\n"


def test_words_are_those_of_the_process_by_default(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["training", "plan", *LEAST[1:], "--rank", "5"])
    assert main() == 0
    assert "LoRA rank 5" in capsys.readouterr().out


def test_field_docs_reads_the_string_under_each_field() -> None:
    docs = field_docs(DataConfig)
    assert docs["path"].startswith("JSONL file, one sample a line:")
    assert set(docs) == {field.name for field in fields(DataConfig)}
    assert get_args(get_type_hints(SftConfig)["lora"])[0] is LoraConfig
