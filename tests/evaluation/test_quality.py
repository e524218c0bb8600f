import math

import pytest
import torch
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from nbp.evaluation import quality


@pytest.fixture
def pair():
    generator = torch.Generator().manual_seed(0)
    video = torch.rand(2, 3, 3, 24, 20, generator=generator)
    return (video + 0.1 * torch.randn(video.shape, generator=generator)).clamp(0, 1), video


def test_psnr_of_a_known_error():
    target = torch.full((2, 3, 2, 8, 8), 0.5)
    video = target.clone()
    video[0] += 0.1
    assert quality.psnr(video, target).tolist() == [pytest.approx(20, abs=1e-4), math.inf]


def test_agrees_with_torchmetrics(pair):
    video, target = pair
    expected = [peak_signal_noise_ratio(a, b, data_range=1.0) for a, b in zip(video, target)]
    assert torch.allclose(quality.psnr(video, target), torch.stack(expected), rtol=1e-5)
    # torchmetrics averages over a reflected border too; the official scores do not.
    for number, (a, b) in enumerate(zip(video, target)):
        _, full = structural_similarity_index_measure(a.transpose(0, 1), b.transpose(0, 1), data_range=1.0,
                                                      return_full_image=True)
        expected = full[..., 5:-5, 5:-5].mean().item()
        assert quality.ssim(video, target)[number].item() == pytest.approx(expected, rel=1e-5)


def test_identical_clips(pair):
    _, target = pair
    assert torch.allclose(quality.ssim(target, target), torch.ones(2))
    assert quality.frame_difference_error(target, target).tolist() == [0, 0]


def test_clips_are_scored_one_by_one(pair):
    for score in (quality.psnr, quality.ssim, quality.frame_difference_error):
        alone = torch.cat([score(a[None], b[None]) for a, b in zip(*pair)])
        assert torch.allclose(score(*pair), alone, rtol=1e-5)


def test_frame_difference_error_sees_flicker_only():
    target = torch.full((1, 3, 4, 8, 8), 0.5)
    shifted, flicker = target + 0.1, target.clone()
    flicker[:, :, 1::2] += 0.1
    assert quality.frame_difference_error(shifted, target).item() == pytest.approx(0, abs=1e-4)
    assert quality.frame_difference_error(flicker, target).item() == pytest.approx(25.5, abs=1e-3)
    with pytest.raises(ValueError, match="at least 2 frames"):
        quality.frame_difference_error(target[:, :, :1], target[:, :, :1])


def test_small_frames_are_refused():
    small = torch.rand(1, 3, 1, 10, 64)
    with pytest.raises(ValueError, match="SSIM needs frames of at least 11 pixels"):
        quality.ssim(small, small)
    with pytest.raises(ValueError, match="MS-SSIM needs frames of at least 161 pixels"):
        quality.ms_ssim(torch.rand(1, 3, 1, 160, 200), torch.rand(1, 3, 1, 160, 200))


@pytest.mark.parametrize("spoil, message", [
    (lambda x: (x * 255).to(torch.uint8), "divide uint8 by 255"),
    (lambda x: x * 255, r"accepted: \[0,1\]"),
    (lambda x: x * 2 - 1, r"accepted: \[0,1\]"),
    (lambda x: x * math.nan, r"accepted: \[0,1\]"),
    (lambda x: x[:, :, :2], "must both be"),
    (lambda x: x[0], "must both be"),
])
def test_wrong_range_dtype_or_shape_is_refused(pair, spoil, message):
    with pytest.raises(ValueError, match=message):
        quality.psnr(spoil(pair[0]), pair[1])


def test_code_statistics():
    counts = quality.count_codes(torch.tensor([[[0, 1], [2, 3]]], dtype=torch.int32), 8)
    assert counts.tolist() == [1, 1, 1, 1, 0, 0, 0, 0]
    assert quality.code_statistics(counts) == {"code_usage": 0.5, "code_entropy_bits": 2.0, "code_perplexity": 4.0}
    one = quality.code_statistics(torch.tensor([7, 0]))
    assert one == {"code_usage": 0.5, "code_entropy_bits": 0.0, "code_perplexity": 1.0}
    with pytest.raises(ValueError, match="indices run from 0 to 8; accepted: 0 to 7"):
        quality.count_codes(torch.tensor([0, 8]), 8)


def test_usage_and_entropy_keep_the_type_of_the_counts():
    for dtype in (torch.float32, torch.float64):
        usage, entropy = quality.usage_and_entropy(torch.tensor([2, 2, 0, 0, 0, 0, 0, 0], dtype=dtype))
        assert usage.dtype == entropy.dtype == dtype
        assert usage.item() == 2 / 8 and entropy.exp().item() == pytest.approx(2)
    assert [value.item() for value in quality.usage_and_entropy(torch.zeros(4))] == [0, 0]
