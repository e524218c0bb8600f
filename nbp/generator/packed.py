"""Linear layers as a CPU multiplies few rows fastest: weights packed once instead of at every step.

For sampling only: such a layer has neither gradients nor weights that could be stored.
"""

import warnings

import torch
from torch import Tensor, nn

from nbp.system.processor import multiplies_bfloat16

ONLY_SAMPLES = "a packed model is for sampling only: store or train the one that it was packed from"
ROWS = 16      # of the products that the layout is made for; others read it as well


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


def can_pack(weight: Tensor) -> bool:
    """Whether packed layers are the faster ones: on CPUs, bfloat16 only where the processor multiplies it."""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    return weight.dtype == torch.float32 or weight.dtype == torch.bfloat16 and multiplies_bfloat16("cpu")


def pack_linears(module: nn.Module, layer: type[PackedLinear] | type[Int8Linear]) -> None:
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
