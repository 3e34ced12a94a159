"""Malformed Hugging Face folders are converted or refused by one error: no traceback, no hang, no memory taken."""

import resource

import pytest

from tests.harness.huggingface.malformed_folders import outcomes


def check(first, count):
    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = outcomes(count, first)
    assert not [each for each in found if each.result not in ("converted", "refused")]
    assert all("\n" not in each.message for each in found)
    assert {each.result for each in found} == {"converted", "refused"}
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base < 1 << 20  # KiB


def test_some_malformed_folders():
    check(0, 30)


@pytest.mark.slow
@pytest.mark.quick
@pytest.mark.timeout(600)
def test_six_hundred_malformed_folders():
    check(30, 600)
