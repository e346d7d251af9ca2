def check_that_pytest_does_not_collect() -> None:
    raise AssertionError
