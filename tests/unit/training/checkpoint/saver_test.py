"""Training goes on while a copy is written; what is written is what a save without a thread writes, byte for byte."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from training.checkpoint.manifest import committed
from training.checkpoint.save import save
from training.checkpoint.saver import Content, Saver
from training.errors import CheckpointError
from training.metrics.records import CheckpointRecord


class Run:
    """Something that is trained: a weight that each step adds to, in place, as optimizers do."""

    def __init__(self, checkpoints: Path, on_boundary: Callable[[str], None] = lambda name: None) -> None:
        self.checkpoints = checkpoints
        self.on_boundary = on_boundary
        self.weight = torch.arange(1000.0).view(20, 50)
        self.steps = 0
        self.threads: list[threading.Thread] = []
        self.reported: list[CheckpointRecord] = []

    def saver(self, *, asynchronous: bool = True) -> Saver:
        return Saver(self.capture, self.write, self.reported.append, asynchronous=asynchronous)

    def capture(self) -> Content:
        return {"parameters": {"w": self.weight}, "random": {"cpu": torch.ones(3)}}, {"steps": self.steps}

    def write(self, step: int, content: Content) -> int:
        self.threads.append(threading.current_thread())
        tensors, state = content
        save(self.checkpoints, step, tensors=tensors, state=state, num_kept=2, on_boundary=self.on_boundary)
        return 8

    def take_steps(self, num: int) -> None:
        for _ in range(num):
            self.weight += 1
            self.steps += 1


def content(checkpoints: Path) -> dict[str, bytes]:
    return {str(each.relative_to(checkpoints)): each.read_bytes() for each in checkpoints.rglob("*") if each.is_file()}


def test_steps_are_taken_meanwhile_and_every_byte_is_as_without_a_thread(tmp_path: Path) -> None:
    steps_taken = threading.Event()

    def wait(name: str) -> None:
        assert steps_taken.wait(60), "training did not go on"

    beside, before = Run(tmp_path / "beside", wait), Run(tmp_path / "before")
    for run, asynchronous in ((before, False), (beside, True)):
        with run.saver(asynchronous=asynchronous) as saver:
            run.take_steps(10)
            saver.save(10, goes_on=True)
            assert saver.is_ready == (not asynchronous)
            # The first byte of the one in a thread is written after these.
            run.take_steps(5)
            steps_taken.set()
            run.take_steps(5)
            saver.save(20, goes_on=False)
    assert before.threads == [threading.main_thread()] * 2
    assert beside.threads[0] is not threading.main_thread()
    assert content(beside.checkpoints) == content(before.checkpoints)
    assert len(content(beside.checkpoints)) == 2 * 4 + 1


def test_one_is_written_at_a_time_and_each_is_reported(tmp_path: Path) -> None:
    writing: list[str] = []

    def on_boundary(name: str) -> None:
        writing.append(threading.current_thread().name)

    run = Run(tmp_path, on_boundary)
    with run.saver() as saver:
        for step in (10, 20, 30):
            run.take_steps(10)
            saver.save(step, goes_on=True)
        saver.collect()
        assert [each.step for each in run.reported] == [10, 20, 30]
    first_of = [writing.index(f"save of step {step}") for step in (10, 20, 30)]
    assert sorted(writing) == writing, "each thread begins when the one before has ended"
    assert first_of == sorted(first_of)
    assert all(each.bytes_written == 8 and each.seconds >= 0 for each in run.reported)
    assert all(each.seconds_stalled >= 0 for each in run.reported)


def test_without_a_thread_training_waits_for_all_of_it(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.take_steps(1)
    run.saver(asynchronous=False).save(1, goes_on=True)
    assert run.reported[0].seconds_stalled >= run.reported[0].seconds > 0


def failing(step: int) -> Callable[[str], None]:
    def on_boundary(name: str) -> None:
        if name == "commit" and threading.current_thread().name == f"save of step {step}":
            raise OSError(28, "No space left on device")

    return on_boundary


@pytest.mark.parametrize("collects", ["collect", "save", "exit"])
def test_a_failure_is_raised_where_it_is_collected_and_the_checkpoint_before_is_untouched(
    tmp_path: Path, collects: str
) -> None:
    run = Run(tmp_path, failing(20))
    saver = run.saver()
    run.take_steps(10)
    saver.save(10, goes_on=True)
    saver.collect()
    before = content(tmp_path)
    saver.save(20, goes_on=True)
    does: dict[str, Callable[[], Any]] = {
        "collect": saver.collect,
        "save": lambda: saver.save(30, goes_on=True),
        "exit": lambda: saver.__exit__(None, None, None),
    }
    with pytest.raises(CheckpointError, match=r"step-00000020: it cannot be written \(\[Errno 28\] No space left"):
        does[collects]()
    assert content(tmp_path) == before
    assert [each.step for each in run.reported] == [10]


def ends_while_saving(run: Run, error: BaseException, then: Callable[[], object] = lambda: None) -> None:
    """Raises what training would, beside a save."""
    run.take_steps(10)
    with run.saver() as saver:
        saver.save(10, goes_on=True)
        then()
        raise error


def test_an_error_of_training_does_not_lose_what_is_being_written(tmp_path: Path) -> None:
    failed = threading.Event()

    def wait(name: str) -> None:
        assert failed.wait(60)

    with pytest.raises(ValueError, match="boom"):
        ends_while_saving(Run(tmp_path, wait), ValueError("boom"), failed.set)
    assert [each.name for each in committed(tmp_path)] == ["step-00000010"]


def test_an_error_of_training_is_shown_rather_than_that_of_the_save(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="boom"):
        ends_while_saving(Run(tmp_path, failing(10)), ValueError("boom"))
    assert committed(tmp_path) == []


def test_second_ctrl_c_waits_for_nothing(tmp_path: Path) -> None:
    let_go = threading.Event()

    def wait(name: str) -> None:
        let_go.wait(60)

    run = Run(tmp_path, wait)
    with pytest.raises(KeyboardInterrupt):
        ends_while_saving(run, KeyboardInterrupt())
    assert run.threads[0].is_alive()
    assert run.threads[0].daemon, "nor does python at its end"
    let_go.set()
    run.threads[0].join()
