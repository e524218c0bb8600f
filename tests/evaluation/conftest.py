from pathlib import Path

import pytest
import torch

from nbp.evaluation.features import FeatureNetwork
from nbp.evaluation.protocols import Protocol
from nbp.fetch import fetch_i3d, fetch_lpips

CKPT = Path(__file__).parents[2] / "ckpt"


@pytest.fixture(scope="session")
def i3d_path():
    """The real Kinetics-400 weights."""
    return fetch_i3d(CKPT)


@pytest.fixture(scope="session")
def lpips_path():
    """Function(net) -> path of the real LPIPS weights."""
    return lambda net: fetch_lpips(net, CKPT)


class Moments(torch.nn.Module):
    """A network in milliseconds: means and deviations over coarse cells, 24 features."""

    def forward(self, video):
        cells = torch.nn.functional.adaptive_avg_pool3d(video, (2, 2, 1))
        return torch.cat([cells.flatten(1), (cells ** 2).flatten(1)], 1)


@pytest.fixture
def network():
    return FeatureNetwork("i3d-tf", Moments(), "0" * 64)


@pytest.fixture
def protocol():
    return Protocol("test", network="i3d-tf", quantize="round", fit="squash", num_frames=None)


@pytest.fixture
def make_frames():
    """Function(count, seed, ...) -> uint8 (N,T,H,W,3) noise."""
    def make(count, seed=0, num_frames=9, size=16, top=256):
        generator = torch.Generator().manual_seed(seed)
        shape = (count, num_frames, size, size, 3)
        return torch.randint(0, top, shape, generator=generator, dtype=torch.uint8).numpy()
    return make
