"""These tests count the memory of a CPU."""

import pytest


@pytest.fixture(autouse=True)
def always_on_cpu(on_cpu):
    pass
