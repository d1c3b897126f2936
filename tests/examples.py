"""How many examples hypothesis tries: a few in every run of the tests, many with STAND_IN_NIGHTLY=1.

Every run has fresh seeds, and hypothesis prints an example that fails and how to repeat it.
"""
import functools

import pytest
from hypothesis import HealthCheck, settings

from random_cases import NIGHTLY, noted


def examples(what: str, few: int, many: int):
    """Decorate what ``given`` calls.

    what: the kind of case, for the record of a nightly run.
    few, many: examples in every run, and in a nightly one.
    """
    def decorated(test):
        @functools.wraps(test)
        def counted(*args, **kwargs):
            with noted(what, "an example"):
                return test(*args, **kwargs)

        # hypothesis itself takes the same seed for every run where it knows of a CI
        chosen = settings(max_examples=many if NIGHTLY else few, deadline=None, derandomize=False, database=None,
                          print_blob=True, suppress_health_check=list(HealthCheck))
        return pytest.mark.nightly(chosen(counted))

    return decorated
