"""These tests compare losses bit for bit."""

import pytest


@pytest.fixture(autouse=True)
def always_on_cpu(on_cpu):
    pass
