"""Recognition by AlexNet's features: what they are, and that classes of different pictures are told apart."""

import numpy as np
import pytest
import torch

from nbp.evaluation.lpips import LPIPS
from nbp.evaluation.recognition import recognition_features
from nbp.evaluation.scoring import nearest_centroid_accuracy


@pytest.fixture
def network():
    torch.manual_seed(0)
    return LPIPS("alex")


def clips(seed, label, count=4):
    """Stripes of a direction and colour that belong to the class, under noise."""
    rng = np.random.default_rng(seed)
    wave = (np.arange(32) % (4 + 4 * label) < 2 + 2 * label).astype(np.float32)
    picture = np.broadcast_to(wave[:, None] if label else wave[None], (32, 32))
    frames = 60 + 150 * picture[None, None, :, :, None] * np.array([1, 0.2 + 0.6 * label, 0.5])
    return (frames + rng.normal(0, 8, (count, 5, 32, 32, 3))).clip(0, 255).astype(np.uint8)


def test_features_do_not_depend_on_the_batch(network):
    frames = clips(0, 1, 5)
    whole = recognition_features(frames, network)
    assert whole.shape == (5, 2 * (64 + 192 + 384 + 256 + 256)) and whole.dtype == np.float32
    np.testing.assert_allclose(recognition_features(frames, network, batch_size=2), whole, rtol=1e-4, atol=1e-5)


def test_classes_of_different_pictures_are_told_apart(network):
    labels = np.repeat([0, 1], 4)
    train, held_out = (np.concatenate([clips(seed + label, label) for label in (0, 1)]) for seed in (0, 10))
    train, held_out = recognition_features(train, network), recognition_features(held_out, network)
    assert nearest_centroid_accuracy(train, labels, held_out, labels) == 1.0
