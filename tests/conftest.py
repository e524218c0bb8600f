"""What tests of several folders read and use."""

from pathlib import Path

import numpy as np
import pytest
import torch
from moments import Moments

from nbp.evaluation.networks import FeatureNetwork
from nbp.evaluation.protocols import Protocol
from nbp.hub.fetch import fetch_i3d, fetch_lpips, fetch_samples

pytest_plugins = ["pytester", "suite_options", "training_runs"]

CKPT = Path(__file__).parents[1] / "ckpt"
SAMPLES = Path(__file__).parents[1] / "data" / "samples"


@pytest.fixture(scope="session")
def sample_videos():
    """Paths of three natural videos, fetched once: bikes, bigbuckbunny, carphone_pristine."""
    return fetch_samples(SAMPLES)


@pytest.fixture(scope="session")
def i3d_path():
    """The real Kinetics-400 weights."""
    return fetch_i3d(CKPT)


@pytest.fixture(scope="session")
def lpips_path():
    """Function(net) -> path of the real LPIPS weights."""
    return lambda net: fetch_lpips(net, CKPT)


@pytest.fixture(scope="session")
def natural_frames():
    """48 clips of three natural videos, uint8 (48,16,64,64,3)."""
    from nbp.data.clips import fit_square
    from nbp.data.video_io import read_frames

    clips = []
    paths = fetch_samples(SAMPLES)
    for path, num_frames, positions in zip(paths, (250, 132, 120), ((0, 1), (0, 1), (0.5,))):
        frames = read_frames(path, range(num_frames))
        clips += [fit_square(frames[start:start + 16], 64, "aspect", position) for position in positions
                  for start in range(0, num_frames - 15, 16)]
    # Evenly spread, so that the first few clips show all three videos.
    return np.stack([clips[n * 7 % len(clips)] for n in range(48)])


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
