"""PatchGAN critics for the tokenizer: one over clips (3D), one over single frames (2D).

Patch logits as in pix2pix (arXiv 1611.07004). GroupNorm instead of BatchNorm: no running
statistics, so replicas need no synchronisation and a frozen copy of the weights is exact.
Legend: B batch, T H W pixels.
"""

from collections.abc import Callable

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from nbp.config import DiscriminatorConfig


class PatchCritic(nn.Module):
    """Strided convolutions to a map of logits.

    Args:
        dims: 2 for frames (B, 3, H, W), 3 for clips (B, 3, T, H, W).
        width: channels of the first layer; doubled by each further one up to 8 times.
        num_layers: strided layers.
    """

    def __init__(self, dims: int, width: int, num_layers: int) -> None:
        super().__init__()
        conv: Callable[..., nn.Module] = nn.Conv2d if dims == 2 else nn.Conv3d
        kernel, stride = ((4, 4), (2, 2)) if dims == 2 else ((3, 4, 4), (1, 2, 2))
        widths = [3] + [width * min(2 ** i, 8) for i in range(num_layers)]
        self.convs = nn.ModuleList(conv(a, b, kernel, stride, padding=1) for a, b in zip(widths, widths[1:]))
        self.norms = nn.ModuleList([nn.Identity()] + [nn.GroupNorm(min(32, b // 4), b) for b in widths[2:]])
        self.head = conv(widths[-1], 1, 3, padding=1)

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Returns logits (one per patch) and the features after each layer."""
        features = []
        for conv, norm in zip(self.convs, self.norms):
            x = F.leaky_relu(norm(conv(x)), 0.2)
            features.append(x)
        return self.head(x), features


class Discriminator(nn.Module):
    """The critics that `config` (`nbp.config.DiscriminatorConfig`) switches on."""

    def __init__(self, config: DiscriminatorConfig) -> None:
        super().__init__()
        if not (config.video or config.frame):
            raise ValueError("discriminator: switch on video, frame or both (loss.adversarial=0 trains without any)")
        self.video = PatchCritic(3, config.width, config.num_layers) if config.video else None
        self.frame = PatchCritic(2, config.width, config.num_layers) if config.frame else None

    def forward(self, video: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Judge a clip.

        Args:
            video: (B, 3, T, H, W) in [0, 1].

        Returns:
            logits: list of one patch-logit tensor per critic, (B, n) each; features: list of all layers' features.
        """
        x = 2 * video - 1
        outputs = []
        if self.video is not None:
            outputs.append(self.video(x))
        if self.frame is not None:
            outputs.append(self.frame(rearrange(x, "b c t h w -> (b t) c h w")))
        logits = [patches.reshape(video.shape[0], -1) for patches, _ in outputs]
        return logits, [feature for _, features in outputs for feature in features]
