"""Which class a clip belongs to, by what AlexNet sees in a few of its frames.

I3D's features recognise 90% of real Procgen clips but 28% of reconstructions that a person recognises at a glance:
they hang on texture in time. AlexNet's, from LPIPS, are of pictures, and stay near real ones where a clip looks right.
Legend: N clips, T frames, H W pixels, D features.
"""

import numpy as np
import torch
from torch import Tensor

from nbp.evaluation.lpips import LPIPS

NUM_FRAMES = 3


@torch.inference_mode()
def recognition_features(frames: np.ndarray, network: LPIPS, batch_size: int = 32) -> np.ndarray:
    """Mean and maximum over positions of each stage's features, averaged over three evenly spaced frames: frames uint8
    (N, T, H, W, 3), network `LPIPS("alex")` with weights -> float32 (N, D)."""
    device = next(network.parameters()).device
    picked = np.linspace(0, frames.shape[1] - 1, NUM_FRAMES).round().astype(int)
    parts = []
    for first in range(0, len(frames), batch_size):
        clips = torch.from_numpy(np.ascontiguousarray(frames[first:first + batch_size, picked])).to(device)
        images = clips.flatten(0, 1).permute(0, 3, 1, 2).float().div(255)                     # (B*3, 3, H, W)
        seen: list[Tensor] = []
        for stage in network.unit_features(images):
            seen += [stage.mean((2, 3)), stage.amax((2, 3))]
        parts.append(torch.cat(seen, 1).unflatten(0, (len(clips), NUM_FRAMES)).mean(1).cpu())
    return torch.cat(parts).numpy()
