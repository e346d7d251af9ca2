"""The quickstart from end to end: model, data, answers, training, answers again, rewards, report. Read it in order.

Training goes the way of everybody's runs: words of the command line, through the command line's own parser, to a plan,
to the recipe. The same words are printed, so that a reader can type them.
"""

import io
import shutil
import time
from collections.abc import Callable, Iterable
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path

from training.checkpoint.lock import only_process
from training.errors import EXIT_INTERRUPTED
from training.metrics.progress import duration
from training.metrics.records import Record, StepRecord, ValidationRecord, read_records
from training.metrics.summary import RunSummary
from training.quickstart.answers import answers
from training.quickstart.folder import Place, State
from training.quickstart.report import Findings, Rewarded, describe, relative
from training.quickstart.rewarded import FOLDER, second_act
from training.quickstart.shell import say, train, typed
from training.quickstart.task import Data, Task, write_jsonl

PICTURE = "curves.png"

NUM_STEPS_MEASURED = 3
"""The first is slower than all others, so it is not counted."""

NUM_STEPS_MIN = 2
NUM_LINES_OF_PROGRESS = 20
NUM_VALIDATIONS = 4
"""After the one before the first step: enough to see the held-out loss bend."""

Draw = Callable[..., None]
"""`training.quickstart.plot.draw`, where matplotlib is there."""


def quickstart(task: Task, place: Place, *, draw: Draw | None) -> int:
    """Does everything that is left to do in the folder, and returns the exit code for the shell.

    Args:
        task: what is learned from what.
        place: the folder and what is done in it already.
        draw: writes the plot; None writes none, and says so.

    Raises:
        PlumblineError: of the branch that says what was wrong; see `training.errors`.
    """
    with only_process(place.folder):
        place.state.write(place.folder)
        return _quickstart(task, place.folder, place.state, draw)


def _quickstart(task: Task, folder: Path, state: State, draw: Draw | None) -> int:
    base, run = folder / "base", folder / "run"
    began = time.monotonic()
    if not base.exists():
        unfinished = folder / ".unfinished-base"
        shutil.rmtree(unfinished, ignore_errors=True)
        task.make_model(unfinished, state.seed)
        unfinished.rename(base)
    say("model", f"{task.model_source} → {relative(base)} ({duration(time.monotonic() - began)})")

    data = task.make_data(state.seed)
    write_jsonl(folder / "train.jsonl", data.training)
    write_jsonl(folder / "held_out.jsonl", data.held_out)
    say("data", f"{len(data.training)} to train on, {len(data.held_out)} held out: {data.source}")
    questions = [prompt.text for prompt in data.prompts]

    if state.before is None:
        say("before", f"{len(questions)} held-out prompts to the untrained model …")
        said = answers(base, questions, is_chat=task.is_chat, num_new_tokens_max=task.num_new_tokens_max)
        state = replace(state, before=tuple(said))
        state.write(folder)

    if state.num_steps is None:
        say("speed", f"{NUM_STEPS_MEASURED} steps to measure …")
        state = replace(state, num_steps=num_steps_for(task, folder, data, state))
        state.write(folder)
    assert state.num_steps is not None
    assert state.before is not None
    every = max(1, state.num_steps // NUM_LINES_OF_PROGRESS)
    words = [
        *sft_words(task, folder, state),
        *("--validation-steps-between", str(-(-state.num_steps // NUM_VALIDATIONS))),
        *("--progress-steps-between", str(every)),
    ]
    say("training", f"{state.num_steps} steps in about {duration(state.seconds)}; Ctrl-C saves. It is this command:")
    print(f"\n  {typed(words)}\n", flush=True)
    summary = train(words)
    if not summary.is_finished:
        print(f"\n{summary.num_steps} of {summary.num_steps_planned} steps are saved.")
        return EXIT_INTERRUPTED

    say("after", f"the same {len(questions)} prompts to the trained model …")
    after = answers(run / task.trained, questions, is_chat=task.is_chat, num_new_tokens_max=task.num_new_tokens_max)
    state, rewarded = second_act(task, folder, data, state)
    if rewarded is None:
        return EXIT_INTERRUPTED

    assert state.before is not None
    held_out = f"{len(data.held_out)} {task.held_out_are}"
    records = list(read_records(run / "metrics.jsonl"))
    if draw is not None:
        picture = folder / PICTURE
        draw(records, picture, title=task.title, loss_unit=task.loss_unit, held_out=held_out, rewarded=rewarded)
    losses = losses_table(records) if draw is None else ""
    found = findings(task, folder, summary, data, before=state.before, after=after, losses=losses, rewarded=rewarded)
    text = describe(found)
    (folder / "report.txt").write_text(text + "\n", encoding="utf-8")
    replace(state, is_finished=True).write(folder)
    print(f"\n{text}")
    return 0


def num_steps_for(task: Task, folder: Path, data: Data, state: State) -> int:
    """As many steps as fit the time, judging by the speed of a few that are thrown away.

    The fastest of them counts, since whatever else the machine does makes a step slower and none faster. Told by
    tokens, not by steps: a few steps need not be of the usual length.
    """
    scratch = folder / ".measured"
    shutil.rmtree(scratch, ignore_errors=True)
    words = [*sft_words(task, folder, replace(state, num_steps=NUM_STEPS_MEASURED)), "--export", "none"]
    words[words.index("--out") + 1] = str(scratch)
    at = words.index("--validation-path")
    with redirect_stdout(io.StringIO()):
        summary = train([*words[:at], *words[at + 2 :]])
    if summary.stopped_by is not None:
        raise KeyboardInterrupt
    steps = [each for each in read_records(scratch / "metrics.jsonl") if isinstance(each, StepRecord)][1:]
    shutil.rmtree(scratch)
    tokens_per_second = max(each.tokens_per_second for each in steps)
    samples_per_step = int(words[words.index("--samples-per-step") + 1])
    tokens_per_step = summary.data.num_tokens / summary.data.num_training * samples_per_step
    say("speed", f"{tokens_per_second:,.0f} tokens/s")
    return max(NUM_STEPS_MIN, round(state.seconds * tokens_per_second / tokens_per_step))


def sft_words(task: Task, folder: Path, state: State) -> list[str]:
    """The command line of the run, from `sft` on."""
    here = {name: relative(folder / name) for name in ("base", "train.jsonl", "held_out.jsonl", "run")}
    return [
        *("sft", "--model", here["base"], "--data", here["train.jsonl"], "--validation-path", here["held_out.jsonl"]),
        *("--out", here["run"], *task.settings),
        *("--num-steps", str(state.num_steps), "--seed", str(state.seed), "--device", "cpu"),
    ]


def findings(
    task: Task,
    folder: Path,
    summary: RunSummary,
    data: Data,
    *,
    before: Iterable[str],
    after: Iterable[str],
    losses: str,
    rewarded: Rewarded,
) -> Findings:
    """What the run has to say, put together."""
    run = folder / "run"
    assert summary.validation_loss_first is not None
    assert summary.validation_loss_last is not None
    files = {
        "adapter": "what was trained: LoRA matrices, to load onto the base model with peft",
        "merged": "the whole trained model, for transformers",
        "model": "the trained model, for transformers",
        "metrics.jsonl": "every step and both held-out losses",
        "checkpoints": "to go on from",
    }
    written = {relative(run / name): what for name, what in files.items() if (run / name).exists()}
    written[relative(folder / FOLDER)] = "the same of the second act, and every completion with its reward"
    pictures = {} if losses else {relative(folder / PICTURE): "losses of the first act and rewards of the second"}
    mine = "chat.jsonl" if task.is_chat else "text.jsonl"
    own = ["--model", relative(folder / "base"), "--data", mine, "--out", "my-run"]
    line = '{"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}'
    if task.is_chat:
        own += ["--lora"]
    else:
        line = '{"text": "…"}'
        own += ["--kind", "text", "--tokens-per-sample-max", "256"]
    return Findings(
        title=task.title,
        loss_unit=task.loss_unit,
        held_out=f"{len(data.held_out)} {task.held_out_are}",
        loss_before=summary.validation_loss_first,
        loss_after=summary.validation_loss_last,
        num_steps=summary.num_steps,
        num_tokens=summary.num_tokens,
        seconds=summary.seconds,
        prompts=data.prompts,
        before=list(before),
        after=list(after),
        losses=losses,
        rewarded=rewarded,
        files=pictures | written,
        commands={
            f"your own data: {mine} with lines like {line}": typed(["sft", *own]),
            "what these settings come to, without training": typed(["plan", *own]),
            "every setting, with its unit and default": typed(["sft", "--help"]),
        },
    )


def losses_table(records: Iterable[Record]) -> str:
    """The losses as text, for where no plot can be drawn."""
    lines = [f"{'step':>6}  {'loss':>8}"]
    every = list(records)
    num_steps = sum(isinstance(each, StepRecord) for each in every)
    for each in every:
        if isinstance(each, ValidationRecord):
            lines.append(f"{each.step:>6}  {each.loss:8.4f}  held out")
        elif isinstance(each, StepRecord) and each.step % max(1, num_steps // NUM_LINES_OF_PROGRESS) == 0:
            lines.append(f"{each.step:>6}  {each.loss:8.4f}")
    return "\n".join(lines)
