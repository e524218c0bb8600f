"""Linear layers whose weights lie as a CPU's matrix products read them: packed once instead of at every step.

For sampling only: such a layer has neither gradients nor weights that could be stored.
"""

import torch
from torch import Tensor, nn

ROWS = 16      # of the products that the layout is made for; others read it as well


class PackedLinear(nn.Module):
    """`nn.Linear` with weights (out, in) and bias (out,) or None, equal up to the order of its sums."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), ROWS)
        self.bias = None if bias is None else bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")

    def _save_to_state_dict(self, destination: dict[str, object], prefix: str, keep_vars: bool) -> None:
        raise RuntimeError("a packed model is for sampling only: store or train the one that it was packed from")


def can_pack(weight: Tensor) -> bool:
    """Whether packed weights are faster here: float32 on a CPU. Whole clips in bfloat16 were slower with them."""
    return weight.device.type == "cpu" and weight.dtype == torch.float32 and torch.backends.mkldnn.is_available()


def pack_linears(module: nn.Module) -> None:
    """Replace every `nn.Linear` inside."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                setattr(parent, name, PackedLinear(child.weight, child.bias))
