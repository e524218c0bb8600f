"""The transformer and the head as a CPU computes steps fastest: weights packed once, all layers in one call of C++.

For sampling only: what is packed has neither gradients nor weights that could be stored. A clip does not depend, to the
bit, on its batch, on how many positions a step has or on what was cached (`native/products.h`). Steps of few positions
gain most (16 of width 768 two to five times), those of a thousand nothing.
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
    return library.of(weight.dtype) is not None


def pack(weight: Tensor) -> Tensor:
    """Weights (columns, depth) in the layout of `native/products.h`, columns filled up to whole blocks."""
    pair = 4 // weight.itemsize
    filled = F.pad(weight.detach(), (0, 0, 0, -len(weight) % BLOCK))
    return filled.view(-1, BLOCK, filled.shape[1] // pair, pair).transpose(1, 2).contiguous()


class PackedLayers(nn.Module):
    """All layers of a transformer and its last norm in place of the first layer, in float32 but for products, which
    have the type of its weights.

    Args:
        transformer: whose layers it takes away, one by one as it packs them; see `can_pack`.
        build: of `native/library.py`; None: the processor's.
    """

    num_heads: int
    dtype: torch.dtype
    fill: int

    def __init__(self, transformer: Transformer, build: str | None = None) -> None:
        super().__init__()
        first = transformer.layers[0]
        assert isinstance(first, TransformerLayer)
        self.num_heads, self.dtype = first.attention.num_heads, first.attention.qkv.weight.dtype
        self.build = build or library.build_name(self.dtype) or ""
        self.fill = BLOCK if self.dtype == torch.float32 else KEYS        # of a head's channels
        self.weights = []
        while len(transformer.layers):
            self.weights.append(_weights(transformer.layers.pop(0)))
        self.norm = _norm(transformer.norm)

    def forward(self, x: Tensor, mask: Mask, cache: KVCache | None, layer: int, start: int | Tensor,
                turn: Tensor | None = None) -> Tensor:
        """As a layer: (B, n, D) -> float32 (B, n, D). RuntimeError: gradients, spans or positions as a tensor, another
        device, or a mask or cache that does not fit."""
        if isinstance(mask, list) or isinstance(start, Tensor) or (x.requires_grad and torch.is_grad_enabled()):
            raise RuntimeError(ONLY_SAMPLES)
        clips, rows, width = x.shape
        masks = [(rows, start + rows), (1, 1, rows, start + rows), (clips, 1, rows, start + rows)]
        if x.device.type != "cpu" or (mask is not None and (mask.shape not in masks or mask.dtype != torch.bool)):
            raise RuntimeError(f"packed layers take embeddings on a CPU and a bool mask of {masks}, got {x.device} and "
                               f"{None if mask is None else (tuple(mask.shape), mask.dtype)}")
        entry = self._entry(cache, layer, clips, start + rows, width)
        out = x.detach().to(torch.float32, memory_format=torch.contiguous_format, copy=True)
        seen = None if mask is None else mask.contiguous()
        turn = None if turn is None else turn.float().contiguous()      # as `to` may have rounded it
        step = library.Step(clips, rows, start, entry.shape[3], width, self.num_heads, len(self.weights),
                            torch.get_num_threads(), out.data_ptr(), library.address(seen),
                            rows * (start + rows) if seen is not None and seen.ndim == 4 and len(seen) > 1 else 0,
                            library.address(turn), *map(library.address, self.norm))
        table = [library.Layer(*map(library.address, weights), keys.data_ptr(), values.data_ptr())
                 for weights, (keys, values) in zip(self.weights, entry)]
        with torch.profiler.record_function("nbp::layers"):
            library.loaded(self.build).transform(ctypes.byref(step), (library.Layer * len(table))(*table))
        return out

    def _entry(self, cache: KVCache | None, layer: int, clips: int, end: int, width: int) -> Tensor:
        """Keys and values of all layers (layers, 2, clips * heads, positions, channels), packed as `step.cpp` says."""
        size, length = width // self.num_heads, end if cache is None else cache.length
        shape = (len(self.weights), 2, clips * self.num_heads, length + -length % KEYS, size + -size % self.fill)
        entry = None if cache is None else cache.entries[layer]
        if entry is None:       # zeros, since what is not written yet takes part with weight 0
            # Without a cache each layer writes all that it reads, and they share one.
            one = torch.zeros(1 if cache is None else shape[0], *shape[1:], dtype=self.dtype, device="cpu")
            entry = one.expand(shape)
        if entry.shape != shape or entry.dtype != self.dtype or end > length:
            raise RuntimeError(f"a cache {tuple(entry.shape)} of {length} positions does not fit {clips} clips up to "
                               f"position {end}, which takes {shape}")
        if cache is not None:
            cache.entries[layer] = entry
        return entry

    def _save_to_state_dict(self, destination: dict[str, object], prefix: str, keep_vars: bool) -> None:
        raise RuntimeError(ONLY_SAMPLES)


def pack_layers(transformer: Transformer, build: str | None = None) -> None:
    """Replace all layers and the last norm by `PackedLayers`."""
    layers = PackedLayers(transformer, build)
    transformer.layers.append(layers)
    transformer.norm = nn.Identity()


class PackedHead(nn.Module):
    """Logits float32 (B, n, V) of hidden states (B, n, D), by weights (V, D)."""

    def __init__(self, weight: Tensor, build: str | None = None) -> None:
        super().__init__()
        (self.size, self.depth), self.build = weight.shape, build or library.build_name(weight.dtype) or ""
        self.packed = pack(weight)

    def forward(self, hidden: Tensor) -> Tensor:
        """(B, n, D) -> float32 (B, n, V). RuntimeError: another device or width."""
        rows, depth = hidden.numel() // hidden.shape[-1], hidden.shape[-1]
        if hidden.device.type != "cpu" or depth != self.depth:
            raise RuntimeError(f"a packed head takes {self.depth} channels on a CPU, got {depth} on {hidden.device}")
        x = hidden.detach().float().contiguous()
        columns = len(self.packed) * BLOCK
        out = x.new_empty(rows + -rows % BLOCK, columns)
        with torch.profiler.record_function("nbp::head"):
            library.loaded(self.build).multiply(x.data_ptr(), rows, depth, self.packed.data_ptr(), columns,
                                                out.data_ptr(), torch.get_num_threads())
        return out[:rows, :self.size].reshape(*hidden.shape[:-1], self.size)

    def _save_to_state_dict(self, destination: dict[str, object], prefix: str, keep_vars: bool) -> None:
        raise RuntimeError(ONLY_SAMPLES)


def _weights(layer: nn.Module) -> list[Tensor]:
    """In the order of `library.Layer`."""
    assert isinstance(layer, TransformerLayer)
    attention, mlp = layer.attention, layer.mlp
    return [*_norm(layer.norm1), *_linear(attention.qkv), *_linear(attention.proj), *_norm(layer.norm2),
            *_linear(mlp[0]), *_linear(mlp[2])]


def _linear(linear: nn.Module) -> tuple[Tensor, Tensor]:
    assert isinstance(linear, nn.Linear)
    return pack(linear.weight), linear.bias.detach().float().contiguous()


def _norm(norm: nn.Module) -> tuple[Tensor, Tensor]:
    assert isinstance(norm, nn.LayerNorm)
    return norm.weight.detach().float().contiguous(), norm.bias.detach().float().contiguous()
