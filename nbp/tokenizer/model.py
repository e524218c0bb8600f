"""The tokenizer: video in [0,1] <-> FSQ indices on a coarse causal grid.

17 frames of 128x128 become 5x16x16 indices with the official strides. Encoding a prefix of
1+4k frames gives the prefix of the full result, and so does decoding.
Legend: B batch, T H W pixels, t h w latent grid, d FSQ channels.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from nbp.config import TokenizerConfig
from nbp.hub import models
from nbp.tokenizer.fsq import FSQ
from nbp.tokenizer.layers import CausalConv3d, DepthToSpaceUpsample, FrameGroupNorm, ResidualUnit, Swish
from nbp.tokenizer.patches import PatchEmbed, PatchExpand
from nbp.tokenizer.units import ChannelLayerNorm, CheapUnit, PointwiseUpsample, ZeroPaddedConv3d


def _stages(config: TokenizerConfig, decoder: bool = False) -> tuple[nn.ModuleList, nn.ModuleList]:
    """(residual stages, strided layers between them) of a half of the autoencoder, in the order they run."""
    widths, num_units, strides = config.widths, config.num_res_blocks, config.strides
    if decoder:
        widths, num_units, strides = widths[::-1], num_units[::-1], strides[::-1]
    unit: Callable[[int, int], nn.Module]
    if config.units == "published":
        chains = [[a] + [b] * n for a, b, n in zip([widths[0], *widths], widths, num_units)]
        unit, ends = ResidualUnit, list(zip(widths, widths))                # units change the width
    else:
        chains = [[width] * (n + 1) for width, n in zip(widths, num_units)]
        unit, ends = partial(CheapUnit, split=config.units == "split"), list(zip(widths, widths[1:]))
    stages = nn.ModuleList(nn.Sequential(*map(unit, chain, chain[1:])) for chain in chains)
    return stages, nn.ModuleList(_strided(config, *pair, stride, decoder) for pair, stride in zip(ends, strides))


def _strided(config: TokenizerConfig, in_channels: int, out_channels: int, stride: Sequence[int],
             decoder: bool) -> nn.Module:
    if config.units != "published":
        if decoder:
            return PointwiseUpsample(in_channels, out_channels, stride)
        return ZeroPaddedConv3d(in_channels, out_channels, (2 * stride[0] - 1, 3, 3), stride)
    return DepthToSpaceUpsample(in_channels, stride) if decoder else CausalConv3d(in_channels, out_channels, stride)


def _convolution(config: TokenizerConfig, in_channels: int, out_channels: int) -> CausalConv3d | ZeroPaddedConv3d:
    if config.units == "published":
        return CausalConv3d(in_channels, out_channels)
    return ZeroPaddedConv3d(in_channels, out_channels, (3, 3, 3))


def _norm_and_activation(config: TokenizerConfig, channels: int) -> tuple[nn.Module, nn.Module]:
    if config.units == "published":
        return FrameGroupNorm(channels), Swish(channels)
    return ChannelLayerNorm(channels), nn.SiLU()


class Encoder(nn.Module):
    """Video (B, 3, T, H, W) -> latents (B, d, t, h, w)."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        widths = config.widths
        self.conv_in = (PatchEmbed(3, widths[0], config.patch) if config.patched else
                        _convolution(config, 3, widths[0]))
        self.stages, self.downsamples = _stages(config)
        self.head = nn.Sequential(*_norm_and_activation(config, widths[-1]),
                                  nn.Conv3d(widths[-1], len(config.fsq_levels), 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)                        # (B, widths[0], T, H, W)
        for index, stage in enumerate(self.stages):
            x = stage(x)
            if index < len(self.downsamples):
                x = self.downsamples[index](x)     # coarser by strides[index]
        return self.head(x)                        # (B, d, t, h, w)


class Decoder(nn.Module):
    """Codes (B, d, t, h, w) -> video (B, 3, T, H, W), not clamped; mirrors the encoder."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        widths = config.widths[::-1]
        self.conv_in = _convolution(config, len(config.fsq_levels), widths[0])
        self.stages, self.upsamples = _stages(config, decoder=True)
        conv_out = (PatchExpand(widths[-1], 3, config.patch) if config.patched else
                    _convolution(config, widths[-1], 3))
        self.head = nn.Sequential(*_norm_and_activation(config, widths[-1]), conv_out)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)                        # (B, widths[-1], t, h, w)
        for index, stage in enumerate(self.stages):
            x = stage(x)
            if index < len(self.upsamples):
                x = self.upsamples[index](x)       # finer by a stride
        return self.head(x)                        # (B, 3, T, H, W)


class Tokenizer(nn.Module):
    """Causal 3D-conv autoencoder with FSQ (MAGVIT-v2, arXiv 2310.05737; NBP section 3.1).

    Args:
        config: `nbp.config.TokenizerConfig`.
        resolution: pixels, the side of a square or (height, width); only needed to decode flat tokens (B, t*h*w).
    """

    def __init__(self, config: TokenizerConfig, resolution: int | Sequence[int] | None = None) -> None:
        super().__init__()
        config.check()
        self.config = config
        self.resolution = resolution
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.fsq = FSQ(config.fsq_levels)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Variance-preserving weights, quiet residual branches, latents that reach all levels, a mid-grey output.

        PyTorch's default shrinks the signal at every convolution, and training then starts with a handful of codes.
        """
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                module.weight.normal_(std=module.weight[0].numel() ** -0.5)
                cast(Tensor, module.bias).zero_()
        for module in self.modules():
            if isinstance(module, (ResidualUnit, CheapUnit)):
                cast(CausalConv3d, module.layers[-1]).conv.weight.mul_(0.2)
        cast(nn.Conv3d, self.encoder.head[-1]).weight.mul_(2)
        last = cast(CausalConv3d, self.decoder.head[-1]).conv
        last.weight.mul_(0.3)
        cast(Tensor, last.bias).fill_(0.5)

    @property
    def num_codes(self) -> int:
        return self.config.num_codes

    def forward(self, video: Tensor) -> tuple[Tensor, Tensor]:
        """Autoencode for training: no input check, no clamp.

        Args:
            video: (B, 3, T, H, W) float in [0, 1].

        Returns:
            reconstruction: like `video`, unclamped; indices: (B, t, h, w) int32.
        """
        codes, indices = self.fsq(self.encoder(video))
        return self.decoder(codes.to(video.dtype)), indices

    @torch.no_grad()
    def encode(self, video: Tensor, quantize: bool = True) -> tuple[Tensor, Tensor] | Tensor:
        """Encode video without gradients (`forward` has them), in the precision of the weights also under autocast.

        Tokens are data that are kept and compared: bfloat16 would change several in a hundred.

        Args:
            video: (B, 3, T, H, W) float in [0, 1]; T = 1 + 4k, H and W divisible by 8 (for the official strides).
            quantize: False returns the latents before quantization.

        Returns:
            (codes (B, d, t, h, w) float32 in [-1, 1], indices (B, t, h, w) int32), or latents (B, d, t, h, w).

        Raises:
            ValueError: wrong shape, dtype or range.
        """
        self.check_video(video)
        with torch.autocast(video.device.type, enabled=False):
            latents = self.encoder(video.to(self.encoder.conv_in.conv.weight.dtype))
        return self.quantize(latents) if quantize else latents

    def quantize(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """As `FSQ.forward`, for data that is kept. ValueError: latents that are not finite, which would all become one
        code that looks like others."""
        if not latents.isfinite().all():
            raise ValueError(f"the encoder gave NaN or infinity in {latents.dtype}: its weights are damaged, or too "
                             "large for this precision; use float32")
        codes: tuple[Tensor, Tensor] = self.fsq(latents)
        return codes

    def decode(self, codes: Tensor) -> Tensor:
        """Codes (B, d, t, h, w) float -> video (B, 3, T, H, W), nominally in [0, 1] but not clamped, as officially."""
        return self.decoder(codes.to(self.decoder.conv_in.conv.weight.dtype))

    @torch.no_grad()
    def decode_from_code_indices(self, indices: Tensor | np.ndarray) -> Tensor:
        """Indices (B, t, h, w), or flat (B, t*h*w) in raster order, -> video (B, 3, T, H, W) as from `decode`.

        They may come as they are stored: any integer type, a numpy array, on any device.

        Raises:
            ValueError: no integers; an index outside the codebook; flat indices that do not fill whole frames.
        """
        return self.decode(self.fsq.indices_to_codes(self.check_indices(indices)))

    def check_indices(self, indices: Tensor | np.ndarray) -> Tensor:
        """Indices as `decode_from_code_indices` takes them -> int64 (B, t, h, w) on the tokenizer's device."""
        if isinstance(indices, np.ndarray):
            indices = torch.tensor(indices)
        if indices.is_floating_point() or indices.is_complex() or indices.dtype == torch.bool:
            raise ValueError(f"indices must be integers, got {indices.dtype}")
        indices = indices.to(self.fsq.device, torch.int64)     # not every operation knows uint16
        if indices.ndim == 2:
            indices = self._unflatten(indices)
        if indices.ndim != 4 or not indices.numel():
            raise ValueError(f"indices must be (B, t, h, w) or (B, t*h*w), none of them 0, got shape "
                             f"{tuple(indices.shape)}")
        return indices

    def _unflatten(self, indices: Tensor) -> Tensor:
        if self.resolution is None:
            raise ValueError("flat indices need a grid: pass (B, t, h, w), or build the tokenizer with resolution=...")
        height, width = 2 * [self.resolution] if isinstance(self.resolution, int) else self.resolution
        _, h, w = self.config.latent_grid(1, height, width)
        if indices.shape[1] % (h * w):
            raise ValueError(f"{indices.shape[1]} flat indices do not fill frames of {h}x{w} (resolution "
                             f"{self.resolution})")
        return indices.view(indices.shape[0], -1, h, w)

    def check_video(self, video: Tensor) -> None:
        """Refuse what `encode` cannot take."""
        if video.ndim != 5 or video.shape[1] != 3:
            raise ValueError(f"video must be (B, 3, T, H, W), got shape {tuple(video.shape)}")
        if not video.is_floating_point():
            raise ValueError(f"video must be floating point in [0, 1], got {video.dtype}; divide uint8 frames by 255")
        t, h, w = self.config.downsample
        if (video.shape[2] - 1) % t:
            raise ValueError(f"video must have 1 + {t}k frames, got T = {video.shape[2]}")
        if video.shape[3] % h or video.shape[4] % w:
            raise ValueError(f"video height and width must be divisible by {h} and {w}, got "
                             f"{video.shape[3]}x{video.shape[4]}")
        self.check_range(video)

    @staticmethod
    def check_range(video: Tensor) -> None:
        """Refuse values outside [0, 1], NaN, and no values at all."""
        if not video.numel():
            raise ValueError(f"video holds no clip or no frame, got shape {tuple(video.shape)}")
        low, high = (float(x) for x in torch.aminmax(video))
        if not (low >= -1e-3 and high <= 1 + 1e-3):
            raise ValueError(f"video must lie in [0, 1], got [{low:.4g}, {high:.4g}]")

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `model.safetensors` and `config.json` into `folder`, ready to be uploaded as it is."""
        models.save_model(folder, "tokenizer", self.config, self.state_dict())

    @classmethod
    def from_pretrained(cls, path: str | Path, resolution: int | Sequence[int] | None = None,
                        device: str | torch.device = "cpu") -> "Tokenizer":
        """Build the tokenizer of a native folder, an official file or a model hub id, in eval mode on `device`.

        Raises:
            ValueError: no tokenizer there, or its tensors do not fit its config.
        """
        _, config, state = models.open_model(path, "tokenizer")
        return models.build(lambda: cls(cast(TokenizerConfig, config), resolution), state, path, device)
