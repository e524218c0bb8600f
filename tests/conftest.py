"""Tests marked `slow` run only with --slow."""

from pathlib import Path

import pytest

SAMPLES = Path(__file__).parents[1] / "data" / "samples"
# These start first: whole files go to one process, and a long one at the end would keep the others waiting.
LONGEST_FILES = ("test_quickstart.py", "test_generator_training.py", "test_training.py", "test_checkpoints.py")


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="run the tests marked slow as well")


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: takes more than half a minute")


def pytest_collection_modifyitems(config, items):
    items.sort(key=lambda item: item.path.name not in LONGEST_FILES)
    if not config.getoption("--slow"):
        for item in items:
            if "slow" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="needs --slow"))


@pytest.fixture(scope="session")
def sample_videos():
    """Paths of three natural videos, fetched once: bikes, bigbuckbunny, carphone_pristine."""
    from nbp.fetch import fetch_samples

    return fetch_samples(SAMPLES)
