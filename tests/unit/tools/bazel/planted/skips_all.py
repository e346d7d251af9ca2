import pytest


@pytest.mark.skip(reason="planted")
def test_skipped() -> None:
    raise AssertionError


def test_skips_itself() -> None:
    pytest.skip("planted")
