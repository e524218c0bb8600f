import pytest
from builds import BUILDS, built

from nbp.generator.native import library
from nbp.system.processor import has_amx


@pytest.fixture(params=[True, False], ids=["tiles", "no tiles"])
def tiles(request):
    """With AMX where the processor has it, and as on one without."""
    if request.param is False and not has_amx():
        pytest.skip("no AMX to turn off")
    libraries = [library.load(name) for name in BUILDS if has_amx() and built(name)]
    for found in libraries:
        found.use_tiles(request.param)
    yield
    for found in libraries:
        found.use_tiles(True)
