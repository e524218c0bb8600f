"""LPIPS, the learned perceptual distance of Zhang et al. (arXiv 1801.03924), as metric and as training loss.

Weights: the file written by `nbp.hub.fetch.fetch_lpips`. Images are (B,3,H,W) in [0,1]; the two
rescalings the networks expect happen here, once, so callers never normalise.
Legend: B images, C channels, H W pixels.
"""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

# The networks expect ImageNet-normalised pixels; the published LPIPS constants are these, for pixels in [-1,1].
SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)
MIN_SIZE = {"vgg": 16, "alex": 32}


def _conv(c_in: int, c_out: int, kernel: int = 3, stride: int = 1, padding: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(c_in, c_out, kernel, stride, padding), nn.ReLU()]


def _vgg_stages() -> tuple[list[nn.Sequential], list[int]]:
    """VGG16 cut after the last ReLU before each pooling."""
    stages, c_in = [], 3
    for index, (width, num_convs) in enumerate([(64, 2), (128, 2), (256, 3), (512, 3), (512, 3)]):
        layers: list[nn.Module] = [nn.MaxPool2d(2)] if index else []
        for _ in range(num_convs):
            layers += _conv(c_in, width)
            c_in = width
        stages.append(nn.Sequential(*layers))
    return stages, [64, 128, 256, 512, 512]


def _alex_stages() -> tuple[list[nn.Sequential], list[int]]:
    """AlexNet cut after every ReLU."""
    return [
        nn.Sequential(*_conv(3, 64, kernel=11, stride=4, padding=2)),
        nn.Sequential(nn.MaxPool2d(3, 2), *_conv(64, 192, kernel=5, padding=2)),
        nn.Sequential(nn.MaxPool2d(3, 2), *_conv(192, 384)),
        nn.Sequential(*_conv(384, 256)),
        nn.Sequential(*_conv(256, 256)),
    ], [64, 192, 384, 256, 256]


class LPIPS(nn.Module):
    """Distance between images: squared differences of unit-length features, weighted by learned heads.

    Frozen: no parameter takes a gradient, but the distance is differentiable in both images. `net` is "vgg" (usual as a
    loss) or "alex" (usual as a metric), untrained until weights are loaded: use `LPIPS.from_file`.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, net: str = "vgg") -> None:
        super().__init__()
        if net not in MIN_SIZE:
            raise ValueError(f"net is {net!r}; accepted: {', '.join(map(repr, MIN_SIZE))}")
        self.net = net
        stages, widths = _vgg_stages() if net == "vgg" else _alex_stages()
        self.stages = nn.ModuleList(stages)
        self.heads = nn.ParameterList(torch.zeros(width) for width in widths)
        self.register_buffer("shift", torch.tensor(SHIFT).view(3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor(SCALE).view(3, 1, 1), persistent=False)
        self.requires_grad_(False)

    @classmethod
    def from_file(cls, path: str | Path, net: str = "vgg") -> "LPIPS":
        """Load the safetensors file written by `nbp.hub.fetch.fetch_lpips(net)`. ValueError: it holds other tensors."""
        from safetensors.torch import load_file

        model = cls(net)
        try:
            model.load_state_dict(load_file(path))
        except RuntimeError as error:
            raise ValueError(f"{path} does not hold the weights of LPIPS({net!r}): {error}") from error
        return model

    def unit_features(self, images: Tensor) -> Iterator[Tensor]:
        """(B,3,H,W) in [0,1] -> five float32 maps, each of unit length along C."""
        x = (((2 * images - 1) - self.shift) / self.scale).to(next(self.stages.parameters()).dtype)
        for stage in self.stages:
            x = stage(x)
            # eps under the root keeps the gradient finite where all features are zero.
            full = x.float()
            yield full * torch.rsqrt(full.square().sum(1, keepdim=True) + 1e-8)

    def forward(self, images: Tensor, target: Tensor) -> Tensor:
        """Distance of each pair of images: float (B,3,H,W) in [0,1] each -> float32 (B,), zero for identical ones.

        Values outside are not clamped, so a loss keeps its gradient. ValueError: wrong or unequal shapes, not floating
        point, or too small for the network.
        """
        if images.shape != target.shape:
            raise ValueError(f"images {tuple(images.shape)} and target {tuple(target.shape)} differ in shape")
        if images.ndim != 4 or images.shape[1] != 3 or min(images.shape[2:]) < MIN_SIZE[self.net]:
            raise ValueError(f"images have shape {tuple(images.shape)}; accepted: (B,3,H,W) with H and W at least "
                             f"{MIN_SIZE[self.net]} for {self.net!r}")
        if not (images.is_floating_point() and target.is_floating_point()):
            raise ValueError(f"images are {images.dtype} and {target.dtype}; "
                             "accepted: float in [0,1] (divide uint8 by 255)")
        parts = [torch.einsum("bchw,c->b", (a - b).square(), head.float()) / (a.shape[2] * a.shape[3])
                 for head, a, b in zip(self.heads, self.unit_features(images), self.unit_features(target))]
        return sum(parts[1:], parts[0])  # (B,)
