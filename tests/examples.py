"""How many examples hypothesis tries: a few in every run of the tests, many with STAND_IN_NIGHTLY=1.

Every run has fresh seeds, and hypothesis prints an example that fails and how to repeat it.
"""
from hypothesis import HealthCheck, settings

from random_cases import NIGHTLY


def examples(few: int, many: int) -> settings:
    # hypothesis itself takes the same seed for every run where it knows of a CI
    return settings(max_examples=many if NIGHTLY else few, deadline=None, derandomize=False, database=None,
                    print_blob=True, suppress_health_check=list(HealthCheck))
