import pytest


@pytest.mark.xfail(reason="planted")
def test_passes_unexpectedly() -> None:
    assert True
