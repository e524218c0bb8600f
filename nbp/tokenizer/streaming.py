"""Encode and decode a video chunk by chunk: the result of the whole, with memory for one chunk.

Every causal convolution keeps the last frames that it has seen; nothing else looks back in time. What is put or
dropped in front of a video is so for the first chunk only.
Legend: B batch, T H W pixels, t h w latent grid.
"""

import copy
from collections.abc import Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nbp.tokenizer.layers import CausalConv3d, DepthToSpaceUpsample, laid_out
from nbp.tokenizer.model import Tokenizer
from nbp.tokenizer.patches import PatchEmbed, PatchExpand
from nbp.tokenizer.units import PointwiseUpsample, ZeroPaddedConv3d


@torch.no_grad()
def encode_chunks(tokenizer: Tokenizer, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
    """Indices int32 (B, t, h, w) of each chunk of a video, as the whole video's.

    Args:
        tokenizer: in eval mode.
        chunks: float (B, 3, T, H, W) in [0, 1]; with the official strides T = 1 + 4k for the first, 4k for the others.

    Raises:
        ValueError: wrong shape or dtype, values out of range; a tokenizer with other layers that look back.
    """
    encoder, stride = _streaming(tokenizer.encoder), tokenizer.config.downsample[0]
    for number, chunk in enumerate(chunks):
        if (chunk.shape[2] - (number == 0)) % stride or not chunk.shape[2]:
            raise ValueError(f"chunk {number} must have {'1 + ' if number == 0 else ''}{stride}k frames, got "
                             f"{chunk.shape[2]}")
        tokenizer.check_video(chunk[:, :, :1])
        tokenizer.check_range(chunk)
        with torch.autocast(chunk.device.type, enabled=False):
            latents = encoder(chunk.to(tokenizer.encoder.conv_in.conv.weight.dtype))       # (B, d, t, h, w)
        yield tokenizer.quantize(latents)[1]


def decode_chunks(tokenizer: Tokenizer, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
    """Video (B, 3, T, H, W) of each chunk of indices (B, t, h, w), as the whole video's and not clamped either.

    Raises:
        ValueError: an index outside the codebook; a tokenizer with other layers that look back in time.
    """
    return map(ChunkDecoder(tokenizer), chunks)


class ChunkDecoder:
    """Decodes a video chunk by chunk: each call goes on where the last one ended; errors as of `decode_chunks`."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer, self.decoder = tokenizer, _streaming(tokenizer.decoder)

    @torch.no_grad()
    def __call__(self, indices: Tensor) -> Tensor:
        """Indices (B, t, h, w) -> video (B, 3, T, H, W)."""
        codes = self.tokenizer.fsq.indices_to_codes(self.tokenizer.check_indices(indices))
        return self.decoder(codes.to(self.tokenizer.decoder.conv_in.conv.weight.dtype))

    def shown(self, indices: Tensor) -> Tensor:
        """Indices (B, t, h, w) -> float32 (B, 3, T, H, W) in [0, 1] on the CPU.

        Latent frame by latent frame: how a convolution rounds depends on how many it is given, and a clip that is
        streamed is bit for bit the whole one, whenever its tokens come.
        """
        return torch.cat([self(frame) for frame in indices.split(1, dim=1)], dim=2).float().clamp(0, 1).cpu()


class _Convolution(nn.Module):
    """`CausalConv3d` or `ZeroPaddedConv3d` that goes on where the last chunk ended."""

    def __init__(self, layer: CausalConv3d | ZeroPaddedConv3d) -> None:
        super().__init__()
        self.conv = layer.conv
        self.replicate = isinstance(layer, CausalConv3d)       # else the convolution pads the sides itself
        self.past: Tensor | None = None                        # (B, C, up to kernel - 1, H, W), padded sides included

    def forward(self, x: Tensor) -> Tensor:
        if self.replicate:
            x = F.pad(x, (1, 1, 1, 1, 0, 0), mode="replicate")
        past = [self.past] if self.past is not None else [x[:, :, :1]] * (self.conv.kernel_size[0] - 1)
        x = laid_out(torch.cat([*past, x], dim=2))
        out = self.conv(x)
        self.past = x[:, :, out.shape[2] * self.conv.stride[0]:].clone()      # a view would keep all of x
        return out


class _FirstOnly(nn.Module):
    """A layer that adds or drops frames at the front, in the first chunk only."""

    def __init__(self, layer: DepthToSpaceUpsample | PointwiseUpsample | PatchEmbed | PatchExpand) -> None:
        super().__init__()
        self.layer, self.begun = layer, False

    @property
    def conv(self) -> nn.Module:
        return self.layer.conv

    def forward(self, x: Tensor) -> Tensor:
        first, self.begun = not self.begun, True
        return self.layer(x) if first else self.layer.spread(x)


def _streaming(module: nn.Module) -> nn.Module:
    """A copy that shares the weights and keeps what lies behind between calls."""
    shared = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    module = copy.deepcopy(module, shared)
    for parent in [part for part in module.modules() if not isinstance(part, CausalConv3d | ZeroPaddedConv3d)]:
        for name, child in list(parent.named_children()):
            if isinstance(child, DepthToSpaceUpsample | PointwiseUpsample | PatchEmbed | PatchExpand):
                setattr(parent, name, _FirstOnly(child))
            elif isinstance(child, CausalConv3d | ZeroPaddedConv3d):
                setattr(parent, name, _Convolution(child))
            elif isinstance(child, nn.Conv3d) and child.kernel_size[0] > 1:
                raise ValueError(f"this tokenizer cannot be run in chunks: {type(parent).__name__}.{name} looks back")
    return module
