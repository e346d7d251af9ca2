"""The cards that the runner leased are those that the libraries of a test are shown.

It needs no torch, so that the way to the machines of an accelerator can be tried before there is a lock for it.
"""

import os

from tools.devices.check import LEASED
from tools.devices.detect import devices


def test_as_many_distinct_cards_are_leased_and_shown_as_were_asked_for() -> None:
    leased = os.environ[LEASED].split(",")
    assert len(set(leased)) == len(leased) == int(os.environ["PLUMBLINE_CARDS"])
    assert set(leased) <= {
        each.identity for each in devices() if each.accelerator == os.environ["PLUMBLINE_ACCELERATOR"]
    }
    assert len(os.environ[os.environ["PLUMBLINE_VISIBLE"]].split(",")) == len(leased)
