"""Options of the suite: what is slow is shared out evenly and completely, and the order can be drawn."""

from argparse import ArgumentTypeError

import pytest
from suite_options import share_of, slow_share

SLOW = {f"test_{number}": seconds for number, seconds in enumerate((300, 40, 40, 200, 40, 40, 40, 100, 40, 40))}


def test_every_slow_test_is_in_one_share():
    shares = [slow_share(SLOW, k, 5) for k in range(1, 6)]
    assert sorted(name for share in shares for name in share) == sorted(SLOW)
    assert shares == [slow_share(dict(reversed(SLOW.items())), k, 5) for k in range(1, 6)], "whatever the order"


def test_shares_take_about_equally_long():
    seconds = [sum(SLOW[name] for name in slow_share(SLOW, k, 3)) for k in (1, 2, 3)]
    assert max(seconds) - min(seconds) <= 40


def test_a_share_is_checked():
    assert share_of("2/5") == (2, 5)
    for wrong in ("0/5", "6/5", "half", "1/2/3"):
        with pytest.raises((ValueError, ArgumentTypeError)):
            share_of(wrong)


@pytest.fixture
def suite(pytester):
    """Function(options) -> names of the tests that ran, of a suite of five, two of them slow."""
    pytester.makeini("[pytest]\nmarkers = slow: long")
    pytester.makepyfile(test_some="""
        import pytest
        def test_a(): pass
        def test_b(): pass
        def test_c(): pass
        @pytest.mark.slow
        def test_d(): pass
        @pytest.mark.slow(seconds=100)
        def test_e(): pass
    """)

    def run(*options):
        result = pytester.runpytest("-v", "-p", "no:cacheprovider", "-p", "suite_options", *options)
        return [line.split("::")[1].split()[0] for line in result.outlines if "PASSED" in line]
    return run


def test_slow_tests_run_where_they_are_asked_for(suite):
    assert suite() == ["test_a", "test_b", "test_c"]
    assert suite("--slow") == ["test_a", "test_b", "test_c", "test_d", "test_e"]
    assert suite("--slow-share", "1/2") == ["test_a", "test_b", "test_c", "test_e"]
    assert suite("--slow-share", "2/2") == ["test_a", "test_b", "test_c", "test_d"]


def test_a_random_order_is_the_same_for_the_same_seed(suite):
    orders = [suite("--slow", "--random-order", str(seed)) for seed in (1, 1, 2, 3)]
    assert orders[0] == orders[1] and len(set(map(tuple, orders))) == 3
    assert sorted(orders[3]) == ["test_a", "test_b", "test_c", "test_d", "test_e"]
