"""Scores of a whole set of reconstructions against their originals, clip by clip.

Legend: N clips, T frames, H W pixels.
"""

import torch

from nbp.evaluation import quality
from nbp.evaluation.protocols import to_video
from nbp.system.progress import progress


@torch.inference_mode()
def paired_scores(video, target, lpips_model=None, batch_size=8, device="cpu"):
    """Means over clips, every frame counted.

    Args:
        video: reconstructions (N,T,H,W,3), uint8 or float in [0,1].
        target: originals, in the same order.
        lpips_model: `nbp.evaluation.lpips.LPIPS` with weights, or None to leave LPIPS out.
        batch_size: clips at a time.
        device: where it is computed.

    Returns:
        dict: psnr, ssim, frame_difference_error, and where defined ms_ssim (161 pixels and more) and lpips.

    Raises:
        ValueError: the sets differ in shape.
    """
    if video.shape != target.shape:
        raise ValueError(f"reconstructions {tuple(video.shape)} and originals {tuple(target.shape)} differ in shape")
    functions = {"psnr": quality.psnr, "ssim": quality.ssim}
    if min(video.shape[2:4]) >= quality.MS_SSIM_MIN_SIZE:
        functions["ms_ssim"] = quality.ms_ssim
    if video.shape[1] > 1:
        functions["frame_difference_error"] = quality.frame_difference_error
    if lpips_model is not None:
        lpips_model.to(device)
        functions["lpips"] = lambda x, y: quality.lpips(lpips_model, x, y)
    totals = dict.fromkeys(functions, 0.0)
    starts = range(0, len(video), batch_size)
    for start in progress(starts, len(starts), "quality", "batches"):
        pair = [to_video(side[start:start + batch_size]).to(device) for side in (video, target)]
        for name, function in functions.items():
            totals[name] += float(function(*pair).double().sum())
    return {name: total / len(video) for name, total in totals.items()}
