"""A test that takes as long as it takes to kill a worker."""

import time


def test_waits() -> None:
    time.sleep(8)
