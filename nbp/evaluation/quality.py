"""Scores of a reconstruction against its original, one value per clip, and statistics of code use.

Clips are float (B,C,T,H,W) in [0,1] and every frame counts. Functions are pure; `nbp.evaluation.metrics`
wraps them for training loops.
Legend: B clips, C channels, T frames, H W pixels, V codes.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import Tensor

SSIM_WINDOW = 11
SSIM_SIGMA = 1.5
# Weights of the five scales of Wang et al. 2003.
MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
MS_SSIM_MIN_SIZE = (SSIM_WINDOW - 1) * 2 ** (len(MS_SSIM_WEIGHTS) - 1) + 1


def check_pair(video: Tensor, target: Tensor) -> None:
    """Refuse what would give a plausible but wrong score. ValueError: not float (B,C,T,H,W), unequal shapes, or values
    outside [0,1] (NaN included)."""
    if video.shape != target.shape or video.ndim != 5 or 0 in video.shape:
        raise ValueError(f"video {tuple(video.shape)} and target {tuple(target.shape)} must both be (B,C,T,H,W)")
    for name, x in (("video", video), ("target", target)):
        if not x.is_floating_point():
            raise ValueError(f"{name} is {x.dtype}; accepted: float in [0,1] (divide uint8 by 255)")
        low, high = x.min().item(), x.max().item()
        if not (low >= 0 and high <= 1):
            raise ValueError(f"{name} has values from {low:.4g} to {high:.4g}; accepted: [0,1] (clamp reconstructions)")


def psnr(video: Tensor, target: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB from the squared error over a whole clip: (B,), inf if identical."""
    check_pair(video, target)
    error = (video.float() - target.float()).square().flatten(1).mean(1)
    return -10 * torch.log10(error)


def ssim(video: Tensor, target: Tensor) -> Tensor:
    """Structural similarity (Gaussian window of 11, sigma 1.5), averaged over channels and frames: float32 (B,), 1 for
    identical clips. Over the valid area only, as the official scores; torchmetrics includes a reflected border (about
    1e-3 apart). ValueError: see `check_pair`, or frames smaller than the window."""
    check_pair(video, target)
    _check_size(video, SSIM_WINDOW, "SSIM")
    full, _ = _ssim_maps(_frames(video), _frames(target))
    return reduce(full, "(b t) c -> b", "mean", b=len(video))


def ms_ssim(video: Tensor, target: Tensor) -> Tensor:
    """Multi-scale SSIM over five scales, averaged over channels and frames: float32 (B,), 1 for identical clips.
    ValueError: see `check_pair`, or frames under 161 pixels, where the last scale has no valid area."""
    check_pair(video, target)
    _check_size(video, MS_SSIM_MIN_SIZE, "MS-SSIM")
    x, y = _frames(video), _frames(target)
    product = torch.ones((), device=x.device)
    for scale, weight in enumerate(MS_SSIM_WEIGHTS):
        if scale:
            padding = [size % 2 for size in x.shape[2:]]
            x, y = (F.avg_pool2d(z, 2, padding=padding) for z in (x, y))
        full, contrast = _ssim_maps(x, y)
        last = scale == len(MS_SSIM_WEIGHTS) - 1
        product = product * (full if last else contrast).clamp_min(0) ** weight  # (B*T, C)
    return reduce(product, "(b t) c -> b", "mean", b=len(video))  # (B,)


def lpips(model: Callable[[Tensor, Tensor], Tensor], video: Tensor, target: Tensor, batch_size: int = 64) -> Tensor:
    """LPIPS of float (B,3,T,H,W) in [0,1], `batch_size` frames at once, averaged over frames: float32 (B,)."""
    check_pair(video, target)
    x, y = _frames(video), _frames(target)
    values = torch.cat([model(a, b) for a, b in zip(x.split(batch_size), y.split(batch_size))])  # (B*T,)
    return values.view(len(video), -1).mean(1)  # (B,)


def frame_difference_error(video: Tensor, target: Tensor) -> Tensor:
    """Temporal consistency: root mean square error of the changes from frame to frame, (B,), in 1/255 steps. Flicker
    raises it even where each frame is close to its original."""
    check_pair(video, target)
    if video.shape[2] < 2:
        raise ValueError("the frame-difference error needs at least 2 frames, got 1")
    error = (video.float() - target.float()).diff(dim=2)
    return 255 * error.square().flatten(1).mean(1).sqrt()


def count_codes(indices: Tensor, num_codes: int) -> Tensor:
    """Histogram of codebook indices: integer tensor of any shape -> int64 (V,)."""
    if indices.is_floating_point() or indices.is_complex() or indices.dtype == torch.bool:
        raise ValueError(f"indices are {indices.dtype}; accepted: integers")
    flat = indices.flatten().long()
    if len(flat) and not (0 <= int(flat.min()) and int(flat.max()) < num_codes):
        raise ValueError(f"indices run from {int(flat.min())} to {int(flat.max())}; accepted: 0 to {num_codes - 1}")
    return torch.bincount(flat, minlength=num_codes)


def usage_and_entropy(counts: Tensor) -> tuple[Tensor, Tensor]:
    """(share of codes used at least once, entropy in nats) of a histogram (V,) of a floating type, in that type."""
    share = counts / counts.sum().clamp_min(1)
    return (counts > 0).to(counts.dtype).mean(), -torch.xlogy(share, share).sum()


def code_statistics(counts: Tensor) -> dict[str, float]:
    """What a histogram of codes (V,) says: `code_usage`, share of codes used at least once; `code_entropy_bits`;
    `code_perplexity`, 2^entropy, the number of equally frequent codes with that entropy."""
    usage, entropy = usage_and_entropy(counts.double())
    bits = float(entropy / torch.log(torch.tensor(2.0, dtype=torch.float64)))
    return {"code_usage": float(usage), "code_entropy_bits": bits + 0.0, "code_perplexity": 2 ** bits}


def _frames(video: Tensor) -> Tensor:
    return rearrange(video.float(), "b c t h w -> (b t) c h w")


def _check_size(video: Tensor, minimum: int, name: str) -> None:
    if min(video.shape[3:]) < minimum:
        raise ValueError(f"{name} needs frames of at least {minimum} pixels a side, got {tuple(video.shape[3:])}")


def _blur(x: Tensor) -> Tensor:
    """Gaussian window over the valid area, each channel by itself."""
    offset = torch.arange(SSIM_WINDOW, dtype=x.dtype, device=x.device) - SSIM_WINDOW // 2
    window = torch.exp(-offset.square() / (2 * SSIM_SIGMA ** 2))
    window = (window / window.sum()).expand(x.shape[1], 1, 1, -1)
    x = F.conv2d(x, window, groups=x.shape[1])
    return F.conv2d(x, window.transpose(2, 3), groups=x.shape[1])


def _ssim_maps(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """SSIM and its contrast-structure factor, (frames, C), for images in [0,1]."""
    c1, c2 = 0.01 ** 2, 0.03 ** 2
    mean_x, mean_y = _blur(x), _blur(y)
    var_x, var_y = _blur(x * x) - mean_x ** 2, _blur(y * y) - mean_y ** 2
    covariance = _blur(x * y) - mean_x * mean_y
    contrast = (2 * covariance + c2) / (var_x + var_y + c2)
    luminance = (2 * mean_x * mean_y + c1) / (mean_x ** 2 + mean_y ** 2 + c1)
    return (luminance * contrast).mean((2, 3)), contrast.mean((2, 3))
