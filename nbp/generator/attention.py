"""Attention of training on CPUs in C++ (`native/attention.cpp`), forward and backward.

What `F.scaled_dot_product_attention` gives, up to rounding. Of 1,281 positions in bfloat16 with AMX it takes 20 ms, and
PyTorch, which also adds up what each span gives to keys and values, 66 (two cores). In float32 it gains a third with
AVX-512 and nothing with AVX2, where PyTorch goes on. Legend: B batch, n positions, D width, H heads.
"""

import ctypes
from typing import Any

import torch
from torch import Tensor

from nbp.generator.masks import Span
from nbp.generator.native import library

MIN_POSITIONS = {torch.float32: 512, torch.bfloat16: 64}        # of fewer PyTorch's takes as long, or less


def in_cpp(projected: Tensor, num_heads: int) -> bool:
    """Whether queries, keys and values (B, n, 3D) are for `attend`: those of training on a CPU where it gains."""
    if not (projected.requires_grad and projected.device.type == "cpu") or library.traced():
        return False
    few = len(projected) * num_heads < torch.get_num_threads()      # heads of clips, which a thread takes each
    if few or projected.shape[1] < MIN_POSITIONS.get(projected.dtype, 0):
        return False
    build = library.build_name(projected.dtype)
    return build is not None and build.endswith("avx512") and library.load(build) is not None


def attend(projected: Tensor, num_heads: int, spans: list[Span], turn: Tensor | None = None,
           build: str | None = None) -> Tensor:
    """Attention of queries, keys and values that lie side by side.

    Args:
        projected: (B, n, 3D) in a type of the builds, see `in_cpp`.
        num_heads: H.
        spans: of `nbp.generator.masks.span_masks`.
        turn: of queries and keys, (2, n, D/H/2), see `nbp.generator.rotary`.
        build: of `native/library.py`; None: the processor's.

    Returns:
        (B, n, D), which can be differentiated once.

    Raises:
        RuntimeError: spans that do not follow one another, or masks that are not bools of these clips.
    """
    clips, rows, _ = projected.shape
    ends = [0]
    for first, last, keys, mask in spans:
        shape = (last - first, keys)
        if (mask.dtype != torch.bool or mask.device.type != "cpu" or first != ends[-1] or not 0 < keys <= rows
                or mask.shape not in (shape, (1, 1, *shape), (clips, 1, *shape))):
            raise RuntimeError(f"spans must follow one another, with bool masks {shape} or (1 or {clips}, 1, ...) on a "
                               f"CPU, got {first} to {last} with {tuple(mask.shape)} of {mask.dtype} on {mask.device}")
        ends.append(last)
    if ends[-1] != rows:
        raise RuntimeError(f"spans must end at position {rows}, got {ends[-1]}")
    build = build or library.build_name(projected.dtype) or ""
    spans = [span._replace(mask=span.mask.contiguous()) for span in spans]
    turn = None if turn is None else turn.float().contiguous()
    out: Tensor = _Attention.apply(projected.contiguous(), num_heads, spans, turn, library.loaded(build))
    return out


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, projected: Tensor, num_heads: int, spans: list[Span],  # noqa: ANN401 - torch's own
                turn: Tensor | None, loaded: ctypes.CDLL) -> Tensor:
        clips, rows, width = projected.shape
        out = projected.new_empty(clips, rows, width // 3)
        sums = projected.new_empty(clips, num_heads, rows, 2, dtype=torch.float32)
        ctx.loaded, ctx.spans = loaded, spans
        ctx.save_for_backward(projected, out, sums, turn)
        loaded.attend(_arguments(spans, projected, out, sums, turn))
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        projected, out, sums, turn = ctx.saved_tensors
        out_grad, projected_grad = grads[0].contiguous(), torch.empty_like(projected)
        ctx.loaded.attend_backward(_arguments(ctx.spans, projected, out, sums, turn, out_grad, projected_grad))
        return projected_grad, None, None, None, None


def _arguments(spans: list[Span], projected: Tensor, out: Tensor, sums: Tensor, turn: Tensor | None,
               out_grad: Tensor | None = None, projected_grad: Tensor | None = None) -> Any:  # noqa: ANN401 - ctypes'
    (clips, rows, width), heads = out.shape, sums.shape[1]
    table = [library.Span(first, last, keys, mask.data_ptr(), (last - first) * keys if len(mask) == clips > 1 and
                          mask.ndim == 4 else 0) for first, last, keys, mask in spans]
    return ctypes.byref(library.Attention(
        clips, rows, heads, width // heads, len(spans), torch.get_num_threads(), (library.Span * len(table))(*table),
        *map(library.address, (projected, turn, out, sums, out_grad, projected_grad))))
