"""The transformer and the head as a CPU computes them fastest: weights packed once, all layers in one call of C++.

For sampling only: what is packed has neither gradients nor weights that could be stored. A clip does not depend, to the
bit, on its batch, on how many positions a step has or on what was cached (`native/products.h`).
Legend: B batch, n positions of this call, D width, V ids.
"""

import ctypes

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nbp.generator.native import library
from nbp.generator.transformer import KVCache, Mask, Transformer, TransformerLayer

ONLY_SAMPLES = "a packed model is for sampling only: store or train the one that it was packed from"
BLOCK, KEYS = 16, 32        # what columns and cached positions are filled up to, as in the C++


def can_pack(weight: Tensor, width: int) -> bool:
    """Whether a transformer of such weights can be packed: on x86 CPUs with Linux where setup.py found a compiler,
    bfloat16 only where the processor multiplies it."""
    if weight.device.type != "cpu" or width % (BLOCK if weight.dtype == torch.float32 else 2 * BLOCK):
        return False
    name = library.build_name(weight.dtype)
    return name is not None and library.load(name) is not None


def pack(weight: Tensor) -> Tensor:
    """Weights (columns, depth) in the layout of `native/products.h`, columns filled up to whole blocks."""
    pair = 4 // weight.itemsize
    filled = F.pad(weight.detach(), (0, 0, 0, -len(weight) % BLOCK))
    return filled.view(-1, BLOCK, filled.shape[1] // pair, pair).transpose(1, 2).contiguous()


class PackedLayers(nn.Module):
    """All layers of a transformer and its last norm in place of the first layer, in float32 but for products, which
    have the type of its weights.

    Args:
        transformer: whose weights are copied; see `can_pack`.
        build: of `native/library.py`; None: the processor's.
    """

    num_heads: int
    dtype: torch.dtype
    fill: int

    def __init__(self, transformer: Transformer, build: str | None = None) -> None:
        super().__init__()
        layers = [layer for layer in transformer.layers if isinstance(layer, TransformerLayer)]
        self.num_heads, self.dtype = layers[0].attention.num_heads, layers[0].attention.qkv.weight.dtype
        self.build = build or library.build_name(self.dtype) or ""
        self.fill = BLOCK if self.dtype == torch.float32 else KEYS        # of a head's channels
        self.weights = [_weights(layer) for layer in layers]
        self.norm = _norm(transformer.norm)

    def forward(self, x: Tensor, mask: Mask, cache: KVCache | None, layer: int, start: int | Tensor,
                turn: Tensor | None = None) -> Tensor:
        """As a layer: (B, n, D) -> float32 (B, n, D)."""
        if isinstance(mask, list) or isinstance(start, Tensor):
            raise RuntimeError(ONLY_SAMPLES)
        clips, rows, width = x.shape
        cache = cache or KVCache(1, rows)
        length = cache.length + -cache.length % KEYS
        entry = cache.entries[layer]
        if entry is None:       # zeros, since what is not written yet takes part with weight 0
            size = width // self.num_heads
            entry = cache.entries[layer] = torch.zeros(len(self.weights), 2, clips * self.num_heads, length,
                                                       size + -size % self.fill, dtype=self.dtype)
        out = x.detach().to(torch.float32, memory_format=torch.contiguous_format, copy=True)
        seen = None if mask is None else mask.contiguous()
        turn = None if turn is None else turn.float().contiguous()      # as `to` may have rounded it
        step = library.Step(clips, rows, start, length, width, self.num_heads, len(self.weights),
                            torch.get_num_threads(), out.data_ptr(), _address(seen),
                            rows * (start + rows) if seen is not None and seen.ndim == 4 and len(seen) > 1 else 0,
                            _address(turn), *map(_address, self.norm))
        table = [library.Layer(*map(_address, weights), keys.data_ptr(), values.data_ptr())
                 for weights, (keys, values) in zip(self.weights, entry)]
        with torch.profiler.record_function("nbp::layers"):
            _loaded(self.build).transform(ctypes.byref(step), (library.Layer * len(table))(*table))
        return out

    def _save_to_state_dict(self, destination: dict[str, object], prefix: str, keep_vars: bool) -> None:
        raise RuntimeError(ONLY_SAMPLES)


def pack_layers(transformer: Transformer, build: str | None = None) -> None:
    """Replace all layers and the last norm by `PackedLayers`."""
    transformer.layers = nn.ModuleList([PackedLayers(transformer, build)])
    transformer.norm = nn.Identity()


class PackedHead(nn.Module):
    """Logits float32 (B, n, V) of hidden states (B, n, D), by weights (V, D)."""

    def __init__(self, weight: Tensor, build: str | None = None) -> None:
        super().__init__()
        self.size, self.build = len(weight), build or library.build_name(weight.dtype) or ""
        self.packed = pack(weight)

    def forward(self, hidden: Tensor) -> Tensor:
        rows, depth = hidden.numel() // hidden.shape[-1], hidden.shape[-1]
        x = hidden.detach().float().contiguous()
        columns = len(self.packed) * BLOCK
        out = torch.empty(rows + -rows % BLOCK, columns)
        with torch.profiler.record_function("nbp::head"):
            _loaded(self.build).multiply(x.data_ptr(), rows, depth, self.packed.data_ptr(), columns, out.data_ptr(),
                                         torch.get_num_threads())
        return out[:rows, :self.size].reshape(*hidden.shape[:-1], self.size)

    def _save_to_state_dict(self, destination: dict[str, object], prefix: str, keep_vars: bool) -> None:
        raise RuntimeError(ONLY_SAMPLES)


def _weights(layer: TransformerLayer) -> list[Tensor]:
    """In the order of `library.Layer`."""
    attention, mlp = layer.attention, layer.mlp
    return [*_norm(layer.norm1), *_linear(attention.qkv), *_linear(attention.proj), *_norm(layer.norm2),
            *_linear(mlp[0]), *_linear(mlp[2])]


def _linear(linear: nn.Module) -> tuple[Tensor, Tensor]:
    assert isinstance(linear, nn.Linear)
    return pack(linear.weight), linear.bias.detach().float().contiguous()


def _norm(norm: nn.Module) -> tuple[Tensor, Tensor]:
    assert isinstance(norm, nn.LayerNorm)
    return norm.weight.detach().float().contiguous(), norm.bias.detach().float().contiguous()


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _loaded(build: str) -> ctypes.CDLL:
    loaded = library.load(build)
    if loaded is None:
        raise RuntimeError(f"the build {build or 'for this processor'} is gone; install NBP again: sh setup.sh")
    return loaded
