"""`nbp.fvd`: Frechet video distance of anything that holds clips, in one call."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from nbp.evaluation.features import Clips, Extraction
from nbp.evaluation.protocols import Protocol, get_protocol
from nbp.evaluation.scoring import evaluate_sets
from nbp.system.distributed import default_device
from nbp.workflows.clip_sources import Cut, open_clips, with_rate
from nbp.workflows.scoring_sets import Networks

Source = str | Path | Tensor | np.ndarray


def fvd(real: Source, fake: Source, protocol: str = "tats-2048", allow_fewer: bool = False, device: str | None = None,
        ckpt: str = "ckpt", cache: str | Path | None = None) -> dict[str, Any]:
    """Score generated clips against real ones.

    Args:
        real, fake: what `python -m nbp.evaluate` takes (folder of videos, clip set, .npz, .npy, annotation list, data
            config), or clips: float (N, 3, T, H, W) in [0, 1], or uint8 frames (N, T, H, W, 3).
        protocol: a named one, as "nbp-rfvd", or with fields changed, as "nbp-rfvd+frames=16".
        allow_fewer: score sets that are smaller than the protocol asks for; the stated protocol says so.
        device: of the network; None: a GPU where there is one.
        ckpt: folder of the network's weights, which are fetched into it once.
        cache: folder where features are kept between calls; None: nothing is kept.

    Returns:
        The report that `nbp.evaluate` writes into scores.json, its scores also at the top: `["fvd"]`.

    Raises:
        ValueError: sets or a protocol under which a score would say something else than it seems to.
    """
    rules = get_protocol(protocol)
    if isinstance(real, (str, Path)):
        rules = with_rate(rules, real)
    clips = [_open(real, "real", rules), _open(fake, "fake", rules)]
    network = Networks(rules, None, ckpt, device or default_device(), trust_torchscript=False).load(rules)
    [report] = evaluate_sets(clips[0], clips[1:], rules, network, Extraction(cache), allow_fewer)
    return {**report, **report["scores"]}


def _open(source: Source, side: str, protocol: Protocol) -> Clips:
    if isinstance(source, (str, Path)):
        split = "train" if protocol.real_split == "train" else "val"
        return open_clips(source, Cut.of(protocol, side == "real"), split)
    if isinstance(source, Tensor):
        source = source.detach().cpu()
        source = (source.float() if source.dtype == torch.bfloat16 else source).numpy()      # numpy lacks bfloat16
    floats = isinstance(source, np.ndarray) and np.issubdtype(source.dtype, np.floating)
    if not isinstance(source, np.ndarray) or source.ndim != 5 or source.shape[1 if floats else 4] != 3:
        raise ValueError(f"the {side} clips must be float (N, 3, T, H, W) in [0, 1] or uint8 frames (N, T, H, W, 3), "
                         f"got {getattr(source, 'dtype', type(source).__name__)} {getattr(source, 'shape', '')}")
    if floats:
        source = rearrange(source, "n c t h w -> n t h w c")
    return Clips.from_array(f"{side} clips", source)
