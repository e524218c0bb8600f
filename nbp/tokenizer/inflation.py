"""Weights of an image tokenizer -> weights of a causal video tokenizer of the same widths.

Central inflation of MAGVIT (arXiv 2212.05199) carried over to causal convolutions (MAGVIT-v2, arXiv 2310.05737): the
image kernel stands at the last tap of time, where a causal kernel sees the current frame, and the taps of the past
are zero. Reconstructions of single frames stay exactly what they were; a frame between two that the latent grid
samples comes out as the next sampled one, until training fills the other taps.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from nbp.tokenizer.layers import CausalConv3d, DepthToSpaceUpsample
from nbp.tokenizer.model import Tokenizer
from nbp.tokenizer.units import PointwiseUpsample, ZeroPaddedConv3d


@torch.no_grad()
def inflate(state: Mapping[str, Tensor], model: Tokenizer, source: str = "state") -> dict[str, Tensor]:
    """Inflate a state dict.

    Args:
        state: name -> tensor of an image tokenizer: one with 2D kernels (O, I, h, w), or a `Tokenizer` trained on
            single frames, whose kernels (O, I, t, h, w) act on a frame by their sum over time. Its strides may keep
            time (t = 1) where the model's halve it.
        model: the video tokenizer.
        source: named in errors.

    Returns:
        name -> tensor with the model's names and shapes.

    Raises:
        ValueError: a tensor of the model is missing or has a shape that does not inflate to the model's; or its patches
            take several frames, which has no such inflation.
    """
    if model.config.patch[0] > 1:
        raise ValueError(f"{source}: model.patch is {list(model.config.patch)}; only patches of one frame, (1, h, w), "
                         "can be inflated. init_from takes an image tokenizer of this very architecture")
    wanted = model.state_dict()
    if missing := sorted(wanted.keys() - state.keys()):
        raise ValueError(f"{source}: {len(missing)} tensors of the tokenizer are missing, first {missing[0]}")
    result = {name: state[name] for name in wanted}
    for name, module in model.named_modules():
        if isinstance(module, (CausalConv3d, ZeroPaddedConv3d)):
            result[f"{name}.conv.weight"] = _at_last_tap(result[f"{name}.conv.weight"], module.conv.kernel_size[0])
        elif isinstance(module, nn.Conv3d) and module.kernel_size == (1, 1, 1):
            result[f"{name}.weight"] = result[f"{name}.weight"].reshape(*result[f"{name}.weight"].shape[:2], 1, 1, 1)
    for name, module in model.named_modules():
        if isinstance(module, (DepthToSpaceUpsample, PointwiseUpsample)) and module.stride[0] == 2:
            kernel = "conv.conv" if isinstance(module, DepthToSpaceUpsample) else "conv"
            for part in ("weight", "bias"):
                key = f"{name}.{kernel}.{part}"
                result[key] = _both_frames(result[key], len(wanted[key]))
    for name, tensor in wanted.items():
        if result[name].shape != tensor.shape:
            raise ValueError(f"{source}: {name} of shape {tuple(state[name].shape)} does not inflate to "
                             f"{tuple(tensor.shape)}")
    return result


def _at_last_tap(kernel: Tensor, taps: int) -> Tensor:
    """(O, I, h, w) or (O, I, t, h, w) -> (O, I, taps, h, w)."""
    if kernel.ndim == 5:
        kernel = kernel.sum(2)
    inflated = kernel.new_zeros(*kernel.shape[:2], taps, *kernel.shape[2:])     # (O, I, taps, h, w)
    inflated[:, :, -1] = kernel
    return inflated


def _both_frames(values: Tensor, channels: int) -> Tensor:
    """Output channels of the frame that a single latent frame shows, for both frames that it becomes in time."""
    if len(values) == channels:
        values = values[channels // 2:]      # (time, height, width, channel): the first half is dropped for images
    return torch.cat([values, values])
