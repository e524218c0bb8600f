import numpy as np
import pytest
import torch

from nbp.evaluation.features import Clips, extract_features
from nbp.evaluation.fvd import frechet_distance
from nbp.evaluation.networks import BFLOAT16_ERROR, load_network
from nbp.evaluation.protocols import get_protocol

pytestmark = pytest.mark.filterwarnings("ignore:the .* set has only")


@pytest.mark.slow
def test_bfloat16_is_as_near_as_stated(natural_frames, i3d_path):
    """Logits of natural clips, and the distance between the two halves of them."""
    full, low = get_protocol("quickstart"), get_protocol("quickstart+precision=bfloat16")
    network = load_network("i3d-tf", i3d_path)
    clips = Clips.from_array("natural", natural_frames[:24])
    exact, rough = [extract_features(clips, network, protocol) for protocol in (full, low)]
    error = np.abs(rough - exact).max() / np.abs(exact).max()
    distances = [frechet_distance(features[::2], features[1::2]) for features in (exact, rough)]
    change = abs(distances[1] / distances[0] - 1)
    print(f"bfloat16: logits differ by {error:.2e} of the largest, the distance {distances[0]:.1f} by {change:.2e} "
          f"relative; the distance between precisions is {frechet_distance(exact, rough):.3g}")
    assert 0 < error <= BFLOAT16_ERROR
    assert distances[1] == pytest.approx(distances[0], rel=BFLOAT16_ERROR)


@torch.inference_mode()
def test_bfloat16_is_used(protocol):
    from nbp.evaluation.networks import FeatureNetwork, run_network

    linear = torch.nn.Linear(3, 2)
    network = FeatureNetwork("i3d-tf", linear, "0")
    assert run_network(network, torch.ones(1, 3), "bfloat16").dtype == torch.bfloat16
    assert run_network(network, torch.ones(1, 3), "float32").dtype == torch.float32
