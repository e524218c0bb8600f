"""Linear layers as a CPU multiplies few rows fastest: weights packed once instead of at every step, or read in parts.

For sampling only: such a layer has neither gradients nor weights that could be stored.
"""

import math
import warnings

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nbp.system.processor import has_amx, multiplies_bfloat16

ONLY_SAMPLES = "a packed model is for sampling only: store or train the one that it was packed from"
ROWS = 16      # of the products that the layout is made for; others read it as well
PART = 64      # outputs of a part, where they divide so


class PackedLinear(nn.Module):
    """`nn.Linear` with weights (out, in) and bias (out,) or None, equal up to the order of its sums.

    Args:
        after: "none", or "gelu" for an exact GELU of the result, which costs nothing here.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, after: str = "none") -> None:
        super().__init__()
        self.after = after
        self.packed, self.dtype = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), ROWS), weight.dtype
        self.bias = None if bias is None else bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        # Autocast, which does not know this operation, may give other types.
        return torch.ops.mkldnn._linear_pointwise(x.to(self.dtype), self.packed, self.bias, self.after, [], "none")

    def _save_to_state_dict(self, destination: dict[str, object], prefix: str, keep_vars: bool) -> None:
        raise RuntimeError(ONLY_SAMPLES)


class SplitLinear(nn.Module):
    """`nn.Linear` for passes of one row, equal up to the order of its sums: weights (out, in) are read in parts, which
    threads share where they would not share one product. More than `ROWS` rows are multiplied as ever."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight, self.bias = weight.detach(), None if bias is None else bias.detach()
        size = math.gcd(len(weight), PART)
        self.parts = len(weight) // size if size >= PART // 8 else 1

    def forward(self, x: Tensor) -> Tensor:
        """Inputs (..., in) -> outputs (..., out)."""
        rows, (out, width) = x.shape[:-1].numel(), self.weight.shape
        if self.parts == 1 or rows > ROWS:
            return F.linear(x, self.weight, self.bias)
        inputs = x.reshape(1, rows, width).expand(self.parts, -1, -1)                 # (parts, rows, in)
        weights = self.weight.view(self.parts, -1, width).transpose(1, 2)             # (parts, in, out / parts)
        if self.bias is None:
            result = torch.bmm(inputs, weights)
        else:
            result = torch.baddbmm(self.bias.view(self.parts, 1, -1), inputs, weights)
        return result.transpose(0, 1).reshape(*x.shape[:-1], out)

    def _save_to_state_dict(self, destination: dict[str, object], prefix: str, keep_vars: bool) -> None:
        raise RuntimeError(ONLY_SAMPLES)


class Int8Linear(nn.Module):
    """`nn.Linear` with weights in 8 bits, a scale for each output, and inputs in 7 bits, a scale for each call: two to
    six times as fast on a CPU, with an error of about a fiftieth of each product (docs/experiments.md). A row of a
    result depends a little on the other rows.

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


def layer_for(weight: Tensor, rows: int) -> type[PackedLinear] | type[SplitLinear] | None:
    """Which layer is the fastest for passes of so many rows; None: the one that is there. Bfloat16 only where the
    processor multiplies it, and single rows of it not with AMX; parts only where threads share them."""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return None
    if weight.dtype == torch.float32:
        return PackedLinear if rows > 1 else SplitLinear if torch.get_num_threads() > 1 else None
    several = rows > 1 or not has_amx()
    return PackedLinear if several and weight.dtype == torch.bfloat16 and multiplies_bfloat16("cpu") else None


def pack_linears(module: nn.Module, layer: type[PackedLinear] | type[SplitLinear] | type[Int8Linear]) -> None:
    """Replace every `nn.Linear` inside by such a layer; a `PackedLinear` takes a GELU behind it as well."""
    for parent in list(module.modules()):
        children = list(parent.named_children())
        for (name, child), (following, activation) in zip(children, [*children[1:], ("", None)]):
            if isinstance(child, nn.Linear) and layer is not PackedLinear:
                setattr(parent, name, layer(child.weight, child.bias))
            elif isinstance(child, nn.Linear):
                gelu = isinstance(parent, nn.Sequential) and isinstance(activation, nn.GELU)
                setattr(parent, name, PackedLinear(child.weight, child.bias, "gelu" if gelu else "none"))
                if gelu:
                    setattr(parent, following, nn.Identity())
