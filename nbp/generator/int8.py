"""Linear layers with weights in 8 bits: half the time of float32 on CPUs without bfloat16, with a stated error.

For sampling only: such a layer has neither gradients nor weights that could be stored.
"""

import warnings

import torch
from torch import Tensor, nn

from nbp.generator.packed import ONLY_SAMPLES


class Int8Linear(nn.Module):
    """`nn.Linear` with weights in 8 bits, a scale for each output, and inputs in 7 bits, a scale for each call; with an
    error of about a fiftieth of each product (docs/experiments.md). A row of a result depends a little on the others.

    Raises:
        ValueError: a torch without 8-bit products, or weights that are not float32 on a CPU.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        if not multiplies_int8(weight.device.type) or weight.dtype != torch.float32:
            raise ValueError("precision=int8 is for CPUs that torch multiplies 8 bits on, and weights in float32; got "
                             f"{weight.dtype} on {weight.device.type}")
        scale = weight.detach().abs().amax(1).clamp(min=1e-12).double() / 127        # (out,)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")        # that a later torch makes such weights by another call
            whole = torch.quantize_per_channel(weight.detach(), scale, torch.zeros(len(scale)).long(), 0, torch.qint8)
        self.packed = torch.ops.quantized.linear_prepack(whole, None if bias is None else bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        # 7 bits: products of two full bytes overflow 16 bits on processors without VNNI.
        return torch.ops.quantized.linear_dynamic(x.float(), self.packed, reduce_range=True)

    def _save_to_state_dict(self, destination: dict[str, object], prefix: str, keep_vars: bool) -> None:
        raise RuntimeError(ONLY_SAMPLES)


def multiplies_int8(device: str) -> bool:
    """Whether "cpu" or "cuda" has what `Int8Linear` needs."""
    return device == "cpu" and "x86" in torch.backends.quantized.supported_engines


def round_linears(module: nn.Module) -> None:
    """Replace every `nn.Linear` inside by an `Int8Linear`."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                setattr(parent, name, Int8Linear(child.weight, child.bias))
