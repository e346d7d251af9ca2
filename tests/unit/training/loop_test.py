"""When the loop validates, saves and stops, with steps that only count themselves."""

import os
import signal
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path

import pytest

from training.loop import STOP_SIGNALS, Heard, Outcome, Patience, StopRequest, run
from training.metrics.progress import ProgressLine
from training.metrics.records import Records, StepRecord, ValidationRecord, read_records


class Calls:
    """Runs the loop and writes down, in order, what it called."""

    def __init__(
        self, out: Path, *, validates: bool = False, during: Callable[[int], object] = lambda step: None
    ) -> None:
        self.made: list[str] = []
        self.out = out
        self.validates = validates
        self.during = during
        self.losses: dict[int, float] = {}
        self.saving: int | None = None
        self.ready_after: int | None = None

    def run(
        self,
        num_steps: int,
        *,
        first_step: int = 0,
        checkpoints: int | None = None,
        validations: int | None = None,
        session: int | None = None,
        patience: Patience | None = None,
    ) -> Outcome:
        self.made.clear()
        path = self.out / "metrics.jsonl"
        with (
            Records(path, resumed_step=first_step) as records,
            ProgressLine(first_step=first_step, num_steps=num_steps, steps_between=1, file=StringIO()) as progress,
            StopRequest() as stop,
        ):
            return run(
                first_step=first_step,
                num_steps=num_steps,
                take_step=self.take_step,
                validate=self.validate if self.validates else None,
                saver=self,
                records=records,
                progress=progress,
                stop=stop,
                patience=patience or Patience(None),
                checkpoint_steps_between=checkpoints,
                validation_steps_between=validations,
                steps_this_session_max=session,
            )

    def take_step(self, step: int) -> StepRecord:
        self.made.append(f"step {step}")
        self.during(step)
        return StepRecord(step + 1, 0, 1.0, 1.0, 0.1, 1, 1, 1, 1, 0.1)

    def validate(self, step: int) -> ValidationRecord:
        self.made.append(f"validate {step}")
        return ValidationRecord(step, self.losses.get(step, 1.0), 1, 0.1)

    @property
    def is_ready(self) -> bool:
        return self.ready_after is None or f"step {self.ready_after}" in self.made

    def collect(self) -> None:
        if self.saving:
            self.made.append(f"collect {self.saving}")
        self.saving = None

    def save(self, step: int, *, goes_on: bool) -> None:
        assert max(record.step for record in read_records(self.out / "metrics.jsonl")) == step, (
            "records reach the disk before the checkpoint"
        )
        self.collect()
        self.made.append(f"save {step}" + (" beside" if goes_on else ""))
        self.saving = step if goes_on else None


def test_validates_at_both_ends_and_saves_at_the_end(tmp_path: Path) -> None:
    calls = Calls(tmp_path, validates=True)
    assert calls.run(2) == Outcome(2, None)
    assert calls.made == ["validate 0", "step 0", "step 1", "validate 2", "save 2"]


def test_intervals_count_steps_and_nothing_is_done_twice_at_the_end(tmp_path: Path) -> None:
    calls = Calls(tmp_path, validates=True)
    calls.run(4, checkpoints=2, validations=2)
    assert [each for each in calls.made if not each.startswith("step")] == [
        "validate 0",
        "validate 2",
        "save 2 beside",
        "collect 2",
        "validate 4",
        "save 4",
    ]


def test_a_save_beside_the_steps_is_collected_when_it_is_written_and_before_the_next(tmp_path: Path) -> None:
    calls = Calls(tmp_path)
    calls.ready_after = 3
    calls.run(6, checkpoints=2)
    assert calls.made == [
        *("step 0", "step 1", "save 2 beside", "step 2", "step 3", "collect 2", "save 4 beside"),
        *("step 4", "collect 4", "step 5", "save 6"),
    ]
    calls.ready_after = 5
    calls.run(6, checkpoints=2)
    assert calls.made[5:8] == ["collect 2", "save 4 beside", "step 4"], "the next save waits"
    calls.ready_after = 1
    calls.during = lambda step: step == 2 and os.kill(os.getpid(), signal.SIGTERM)
    calls.run(6, checkpoints=2)
    assert calls.made[3:] == ["step 2", "collect 2", "save 3"], "nothing goes on beside the last one"


@pytest.mark.parametrize("slow", [0, 1])
def test_ranks_collect_a_save_at_the_end_of_the_same_step(slow: int) -> None:
    said: list[tuple[str | None, bool]] = [(None, True), (None, True)]
    said[slow] = (None, False)
    stop = StopRequest(lambda own: [own if rank != slow else said[slow] for rank in range(2)])
    assert stop.agreed(is_ready=True) == (None, False)


def test_signal_that_others_have_obeyed_already_may_come_late() -> None:
    """On a busy machine it reached a rank after the stop that it had asked for, which then died of it."""
    before = signal.getsignal(signal.SIGUSR1)
    try:
        with StopRequest(lambda own: [("SIGUSR1", True), own], says=False) as stop:
            assert stop.agreed(is_ready=True) == ("SIGUSR1", True)
        signal.raise_signal(signal.SIGUSR1)
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_records_are_on_disk_before_each_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Calls(tmp_path)
    sync = Records.sync

    def noting(records: Records) -> None:
        sync(records)
        calls.made.append("sync")

    monkeypatch.setattr(Records, "sync", noting)
    calls.run(4, checkpoints=2)
    saves = [at for at, each in enumerate(calls.made) if each.startswith("save")]
    assert len(saves) == 2
    assert [calls.made[at - 1] for at in saves] == ["sync", "sync"]


def test_without_validation_data_none_is_asked_for(tmp_path: Path) -> None:
    calls = Calls(tmp_path)
    calls.run(1)
    assert calls.made == ["step 0", "save 1"]


def test_going_on_takes_the_steps_that_are_left(tmp_path: Path) -> None:
    calls = Calls(tmp_path, validates=True)
    calls.run(5, session=3)
    assert calls.run(5, first_step=3) == Outcome(5, None)
    assert calls.made == ["step 3", "step 4", "validate 5", "save 5"]
    steps = [record.step for record in read_records(tmp_path / "metrics.jsonl") if isinstance(record, StepRecord)]
    assert steps == [1, 2, 3, 4, 5]


def test_a_finished_run_does_nothing(tmp_path: Path) -> None:
    calls = Calls(tmp_path, validates=True)
    calls.run(2)
    assert calls.run(2, first_step=2) == Outcome(2, None)
    assert calls.made == []


def test_session_limit_saves_and_stops_unless_the_run_is_over_anyway(tmp_path: Path) -> None:
    calls = Calls(tmp_path)
    assert calls.run(5, session=2) == Outcome(2, "steps_this_session_max")
    assert calls.made == ["step 0", "step 1", "save 2"]
    assert calls.run(2, session=2) == Outcome(2, None)


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_signal_lets_the_step_finish_then_saves_and_stops(tmp_path: Path, number: signal.Signals) -> None:
    def signalled(step: int) -> None:
        if step == 1:
            os.kill(os.getpid(), number)

    calls = Calls(tmp_path, during=signalled)
    assert calls.run(5) == Outcome(2, number.name)
    assert calls.made == ["step 0", "step 1", "save 2"]


@pytest.mark.parametrize(
    ("losses", "least", "ends"),
    [
        ([3.0, 2.0, 1.0, 0.5, 0.4, 0.3], 0.0, None),
        ([3.0, 2.0, 2.0, 2.0, 1.0, 1.0], 0.0, 3),
        ([3.0, 2.0, 2.5, 1.0, 1.5, 1.5], 0.0, None),
        ([3.0, 2.9, 2.8, 2.7, 2.6, 2.5], 0.15, None),
        ([3.0, 2.95, 2.9, 2.0, 2.0, 2.0], 0.15, 2),
    ],
    ids=["falls", "equal is not better", "counted in a row", "small ones add up", "too small"],
)
def test_patience_ends_the_run_after_two_validations_that_are_not_better(
    tmp_path: Path, losses: list[float], least: float, ends: int | None
) -> None:
    calls = Calls(tmp_path, validates=True)
    calls.losses = dict(enumerate(losses))
    outcome = calls.run(5, validations=1, patience=Patience(2, least))
    assert outcome == (Outcome(ends, "patience") if ends else Outcome(5, None))
    assert outcome.is_finished
    assert calls.made[-1] == f"save {outcome.step}"


def test_patience_goes_on_from_what_was_heard_and_a_run_that_is_over_stays_so(tmp_path: Path) -> None:
    calls = Calls(tmp_path, validates=True)
    patience = Patience(3)
    assert calls.run(9, validations=1, session=2, patience=patience) == Outcome(2, "steps_this_session_max")
    assert patience.heard == Heard(best=1.0, num_since=2, step=2, loss=1.0)
    again = Patience(3, heard=patience.heard)
    assert calls.run(9, first_step=2, validations=1, patience=again) == Outcome(3, "patience")
    assert calls.run(9, first_step=3, validations=1, patience=again) == Outcome(3, "patience")
    assert calls.made == []


def test_signal_in_the_last_step_changes_nothing(tmp_path: Path) -> None:
    calls = Calls(tmp_path, during=lambda step: os.kill(os.getpid(), signal.SIGTERM))
    assert calls.run(1) == Outcome(1, None)


def test_signal_says_what_will_happen(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    Calls(tmp_path, during=lambda step: os.kill(os.getpid(), signal.SIGINT)).run(3)
    expected = "SIGINT: finishing this step, then saving. Ctrl-C again stops at once."
    assert capfd.readouterr().err.strip() == expected


def test_second_ctrl_c_stops_at_once(tmp_path: Path) -> None:
    def twice(step: int) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    calls = Calls(tmp_path, during=twice)
    with pytest.raises(KeyboardInterrupt):
        calls.run(3)
    assert calls.made == ["step 0"]


@pytest.fixture(autouse=True)
def _handlers_are_put_back() -> Iterator[None]:
    before = [signal.getsignal(each) for each in STOP_SIGNALS]
    yield
    assert [signal.getsignal(each) for each in STOP_SIGNALS] == before
