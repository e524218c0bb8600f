"""Scores of a whole set of reconstructions against their originals, clip by clip.

Legend: N clips, T frames, H W pixels.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from nbp.evaluation import quality
from nbp.evaluation.lpips import LPIPS
from nbp.evaluation.protocols import to_video
from nbp.system.distributed import gather, rank_and_world
from nbp.system.progress import progress


@torch.inference_mode()
def paired_scores(video: np.ndarray | Tensor, target: np.ndarray | Tensor, lpips_model: LPIPS | None = None,
                  batch_size: int = 8, device: str | torch.device = "cpu") -> dict[str, float]:
    """Means over clips, every frame counted, of reconstructions against originals (N,T,H,W,3), uint8 or float in [0,1]:
    psnr (dB), ssim, frame_difference_error, and where defined ms_ssim (161 pixels and more) and lpips. Under torchrun
    the ranks share the batches, and all get the scores. ValueError: the sets differ in shape."""
    if video.shape != target.shape:
        raise ValueError(f"reconstructions {tuple(video.shape)} and originals {tuple(target.shape)} differ in shape")
    functions: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"psnr": quality.psnr, "ssim": quality.ssim}
    if min(video.shape[2:4]) >= quality.MS_SSIM_MIN_SIZE:
        functions["ms_ssim"] = quality.ms_ssim
    if video.shape[1] > 1:
        functions["frame_difference_error"] = quality.frame_difference_error
    if lpips_model is not None:
        lpips_model.to(device)
        functions["lpips"] = partial(quality.lpips, lpips_model)
    rank, world = rank_and_world()
    sums: dict[int, dict[str, float]] = {}
    starts = range(0, len(video), batch_size)
    for start in progress(starts[rank::world], len(starts[rank::world]), "quality", "batches"):
        x, y = (to_video(side[start:start + batch_size]).to(device) for side in (video, target))  # (B, 3, T, H, W)
        sums[start] = {name: float(function(x, y).double().sum()) for name, function in functions.items()}
    for shared in gather(sums):
        sums |= shared
    # In the order of the batches, so that the number of ranks changes no bit.
    return {name: sum(sums[start][name] for start in starts) / len(video) for name in functions}
