"""The Inception-v1 I3D of Carreira and Zisserman (arXiv 1705.07750), the feature network of FVD.

One network, two published constants: batch-norm eps 1e-3 in DeepMind's TensorFlow original, 1e-5 in the PyTorch port
that VideoGPT, TATS and the official NBP code use. Key names are the port's. Padding is TensorFlow's "same". Batch norm
is folded into the convolutions when weights are loaded (exact up to rounding, measured 1e-5 relative on logits).
Legend: B clips, C channels, T frames, H W pixels.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from nbp.hub.torch_files import read_file

TF_BN_EPS = 1e-3
PORT_BN_EPS = 1e-5
NUM_LOGITS = 400
MIN_FRAMES = 9

# Output channels of the branches b0, b1a, b1b, b2a, b2b, b3b.
MIXED = {
    "Mixed_3b": (192, (64, 96, 128, 16, 32, 32)),
    "Mixed_3c": (256, (128, 128, 192, 32, 96, 64)),
    "Mixed_4b": (480, (192, 96, 208, 16, 48, 64)),
    "Mixed_4c": (512, (160, 112, 224, 24, 64, 64)),
    "Mixed_4d": (512, (128, 128, 256, 24, 64, 64)),
    "Mixed_4e": (512, (112, 144, 288, 32, 64, 64)),
    "Mixed_4f": (528, (256, 160, 320, 32, 128, 128)),
    "Mixed_5b": (832, (256, 160, 320, 32, 128, 128)),
    "Mixed_5c": (832, (384, 192, 384, 48, 128, 128)),
}
# Kernel and stride of the max pooling before a block.
POOLED_BEFORE = {"Mixed_4b": ((3, 3, 3), (2, 2, 2)), "Mixed_5b": ((2, 2, 2), (2, 2, 2))}


def _same(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """TensorFlow "same" padding along one axis: (before, after)."""
    total = max(kernel - (size % stride or stride), 0)
    return total // 2, total - total // 2


def _onednn(conv: nn.Conv3d, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    # PyTorch keeps single small clips from oneDNN; with it one clip alone takes 0.35 s instead of 0.60 s (16 frames,
    # two AVX2 cores), so that batches are not needed for speed.
    assert not isinstance(conv.padding, str)
    return torch.mkldnn_convolution(x, weight, bias, conv.padding, conv.stride, conv.dilation, conv.groups)


class Unit(nn.Module):
    """Convolution, batch norm, ReLU."""

    def __init__(self, c_in: int, c_out: int, kernel: int, bn_eps: float) -> None:
        super().__init__()
        self.conv3d = nn.Conv3d(c_in, c_out, kernel, padding=kernel // 2, bias=False)
        self.bn: nn.Module = nn.BatchNorm3d(c_out, eps=bn_eps)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self._convolve(x)), inplace=True)

    def _convolve(self, x: Tensor) -> Tensor:
        conv = self.conv3d
        if conv.kernel_size == (1, 1, 1):
            # A 1x1x1 convolution as a matrix product keeps channels-last memory; PyTorch's own choice for it on
            # one CPU thread does not, and every later pooling then runs several times slower.
            return F.linear(x.movedim(1, -1), conv.weight.flatten(1), conv.bias).movedim(-1, 1)
        if not (x.is_cpu and torch.backends.mkldnn.is_available()):
            return conv(x)
        lower = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None
        if lower is None and x.dtype == torch.float32:
            return _onednn(conv, x, conv.weight, conv.bias)
        if lower == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            # The same arithmetic, products of bfloat16 numbers summed in float32: without bfloat16 instructions
            # PyTorch's convolution takes 76 s a clip of 9 frames (two AVX2 cores), this 0.7 s.
            bias = None if conv.bias is None else conv.bias.bfloat16().float()
            return _onednn(conv, x.bfloat16().float(), conv.weight.bfloat16().float(), bias).bfloat16()
        return conv(x)

    def fold(self) -> None:
        assert isinstance(self.bn, nn.BatchNorm3d)
        self.conv3d = fuse_conv_bn_eval(self.conv3d, self.bn)
        self.bn = nn.Identity()


class Stem(Unit):
    """The first convolution: the only one with a stride, so the only one whose padding depends on the size."""

    def __init__(self, c_out: int, bn_eps: float) -> None:
        super().__init__(3, c_out, 7, bn_eps)
        self.conv3d = nn.Conv3d(3, c_out, 7, stride=2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        padding = [side for size in reversed(x.shape[2:]) for side in _same(size, 7, 2)]
        return super().forward(F.pad(x, padding))


class Mixed(nn.Module):
    """Four parallel branches, concatenated."""

    def __init__(self, c_in: int, widths: tuple[int, ...], bn_eps: float) -> None:
        super().__init__()
        b0, b1a, b1b, b2a, b2b, b3b = widths
        self.b0 = Unit(c_in, b0, 1, bn_eps)
        self.b1a = Unit(c_in, b1a, 1, bn_eps)
        self.b1b = Unit(b1a, b1b, 3, bn_eps)
        self.b2a = Unit(c_in, b2a, 1, bn_eps)
        self.b2b = Unit(b2a, b2b, 3, bn_eps)
        self.b3b = Unit(c_in, b3b, 1, bn_eps)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)),
                          self.b3b(_max_pool(x, (3, 3, 3), (1, 1, 1)))], dim=1)


def _max_pool(x: Tensor, kernel: tuple[int, int, int], stride: tuple[int, int, int]) -> Tensor:
    """Max pooling with "same" padding; inputs are non-negative, so the original's zero padding never wins
    over PyTorch's implicit -inf, which needs no copy."""
    before = [_same(size, k, s)[0] for size, k, s in zip(x.shape[2:], kernel, stride)]
    return F.max_pool3d(x, kernel, stride, padding=before, ceil_mode=True)


class I3D(nn.Module):
    """Kinetics-400 I3D: clips to 400 logits; `bn_eps` is `TF_BN_EPS` (the original) or `PORT_BN_EPS` (the port)."""

    def __init__(self, bn_eps: float = TF_BN_EPS) -> None:
        super().__init__()
        self.Conv3d_1a_7x7 = Stem(64, bn_eps)
        self.Conv3d_2b_1x1 = Unit(64, 64, 1, bn_eps)
        self.Conv3d_2c_3x3 = Unit(64, 192, 3, bn_eps)
        for name, (c_in, widths) in MIXED.items():
            self.add_module(name, Mixed(c_in, widths, bn_eps))
        self.logits = nn.ModuleDict({"conv3d": nn.Conv3d(1024, NUM_LOGITS, 1)})  # the name of its key
        self.eval().requires_grad_(False)

    def features(self, video: Tensor) -> Tensor:
        """Activations after Mixed_5c, average pooled by (2,7,7) and over what is left of time: float (B,3,T,224,224) in
        [-1,1], T at least 9 -> float (B,1024). ValueError: wrong shape or too few frames."""
        if video.ndim != 5 or video.shape[1] != 3 or tuple(video.shape[3:]) != (224, 224):
            raise ValueError(f"video has shape {tuple(video.shape)}; the I3D accepts (B,3,T,224,224)")
        if video.shape[2] < MIN_FRAMES:
            raise ValueError(f"video has {video.shape[2]} frames; the I3D needs at least {MIN_FRAMES}")
        # Twice as fast as the default layout on CPU (0.42 s against 0.93 s a clip of 16 frames on two AVX2 cores).
        video = video.contiguous(memory_format=torch.channels_last_3d)
        x = _max_pool(self.Conv3d_1a_7x7(video), (1, 3, 3), (1, 2, 2))
        x = _max_pool(self.Conv3d_2c_3x3(self.Conv3d_2b_1x1(x)), (1, 3, 3), (1, 2, 2))
        for name in MIXED:
            if name in POOLED_BEFORE:
                x = _max_pool(x, *POOLED_BEFORE[name])
            x = self.get_submodule(name)(x)
        x = x.mean((3, 4))  # (B,1024,T')
        return ((x[:, :, :-1] + x[:, :, 1:]) / 2).mean(2)  # (B,1024)

    def forward(self, video: Tensor) -> Tensor:
        """Logits averaged over time: float (B,3,T,224,224) in [-1,1] -> float (B,400). The classifier is linear, so it
        runs once on the time average instead of once per time step."""
        head = self.logits["conv3d"]
        assert isinstance(head, nn.Conv3d)
        return F.linear(self.features(video), head.weight.flatten(1), head.bias)  # (B,400)

    def fold(self) -> "I3D":
        """Fold every batch norm into its convolution; returns self. The key names change, so load weights first."""
        for module in list(self.modules()):
            if isinstance(module, Unit):
                module.fold()
        self.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]  # PyTorch states 2D only
        return self


def load_i3d(path: str | Path, bn_eps: float = TF_BN_EPS) -> I3D:
    """An I3D with the weights of a file in the port's key names, batch norm folded: safetensors (as
    `nbp.hub.fetch.fetch_i3d` writes) or a PyTorch state dict (`i3d_pretrained_400.pt`). ValueError: it can't be read,
    or has other keys or shapes."""
    state = read_state(path)
    with torch.device("meta"):      # neither takes the caller's random numbers nor knows torch's default dtype
        model = I3D(bn_eps)
    counters = {key: torch.zeros_like(value, device="cpu") for key, value in model.state_dict().items()
                if key.endswith("num_batches_tracked")}
    try:
        model.load_state_dict(state | counters, assign=True)
    except RuntimeError as error:
        raise ValueError(f"{path} does not hold the weights of the I3D: {error}") from error
    return model.fold()


def read_state(path: str | Path) -> dict[str, Tensor]:
    """Tensors of a weight file by key, without the batch norms' counters, which only training needs. ValueError: the
    file can't be read, or does not hold a state dict."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state = load_file(path) if str(path).endswith(".safetensors") else read_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} cannot be read as a safetensors file: {error}") from error
    if not isinstance(state, dict):
        raise ValueError(f"{path} holds a {type(state).__name__}, not a state dict")
    return {key: tensor for key, tensor in state.items() if not key.endswith("num_batches_tracked")}
