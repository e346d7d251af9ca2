import warnings


def test_our_own_warning_is_an_error() -> None:
    warnings.warn("planted", DeprecationWarning, stacklevel=1)
