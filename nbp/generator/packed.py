"""Linear layers whose weights lie as a CPU's matrix products read them: packed once instead of at every step.

For sampling only: such a layer has neither gradients nor weights that could be stored.
"""

import torch
from torch import Tensor, nn

from nbp.system.processor import multiplies_bfloat16

ROWS = 16      # of the products that the layout is made for; others read it as well


class PackedLinear(nn.Module):
    """`nn.Linear` with weights (out, in) and bias (out,) or None, equal up to the order of its sums.

    Args:
        after: "none", or "gelu" for an exact GELU of the result, which costs nothing here.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, after: str = "none") -> None:
        super().__init__()
        self.after = after
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), ROWS)
        self.bias = None if bias is None else bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, self.after, [], "none")

    def _save_to_state_dict(self, destination: dict[str, object], prefix: str, keep_vars: bool) -> None:
        raise RuntimeError("a packed model is for sampling only: store or train the one that it was packed from")


def can_pack(weight: Tensor) -> bool:
    """Whether packed weights are faster here: on a CPU, in bfloat16 where the processor multiplies it."""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    return weight.dtype == torch.float32 or weight.dtype == torch.bfloat16 and multiplies_bfloat16("cpu")


def pack_linears(module: nn.Module) -> None:
    """Replace every `nn.Linear` inside, and with it a GELU behind it."""
    for parent in list(module.modules()):
        children = list(parent.named_children())
        for (name, child), (following, activation) in zip(children, [*children[1:], ("", None)]):
            if isinstance(child, nn.Linear):
                gelu = isinstance(parent, nn.Sequential) and isinstance(activation, nn.GELU)
                setattr(parent, name, PackedLinear(child.weight, child.bias, "gelu" if gelu else "none"))
                if gelu:
                    setattr(parent, following, nn.Identity())
