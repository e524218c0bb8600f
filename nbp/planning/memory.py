"""Memory of a training step, followed allocation by allocation on the meta device.

Every tensor of the forward and backward pass is a storage with a size and a life; the most that are alive at once is
what an allocator must hold, but for its rounding and for scratch memory inside kernels. ZeRO's shares: Rajbhandari
et al., arXiv 1910.02054, section 5; its buffers: DeepSpeed's default bucket sizes.
"""

import math
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from nbp.config.runs import Run
from nbp.generator.transformer import TransformerLayer
from nbp.training.flops import MicroBatch, build_module, loss_of, work_of
from nbp.training.generator import GeneratorModule
from nbp.training.module import TrainingModule
from nbp.training.tokenizer import TokenizerModule

REDUCE_BUCKET, LIVE_PARAMETERS = 500_000_000, 1_000_000_000   # elements: DeepSpeed's defaults

# The largest tensors of these models under torch.autocast("cuda"): what runs in 16 bit, and what in float32.
_LOW = {F.linear, F.conv2d, F.conv3d, torch.matmul, torch.bmm}
_FULL = {F.layer_norm, F.group_norm, F.cross_entropy, F.mse_loss, F.l1_loss, F.softplus}
_PEAKS: dict[str, tuple[int, int]] = {}     # of micro-batches that were traced


@dataclass(frozen=True)
class Memory:
    """Bytes on one device, by what holds them."""

    weights: int
    gradients: int
    optimizer: int
    average: int        # moving average of the weights
    frozen: int         # networks of losses
    buffers: int        # communication
    activations: int    # with temporary tensors, at their peak
    logits: int         # of them, at the same time: logits, their softmax and gradient
    host: int           # in the host's memory, for this device

    @property
    def total(self) -> int:
        return sum(getattr(self, name) for name in self.__dataclass_fields__ if name != "host")


def device_memory(run: Run, strategies: Iterable[str], world: int, low_precision: bool,
                  micro_batch: MicroBatch) -> dict[str, Memory]:
    """Memory of one of `world` devices by strategy, in the middle of an optimizer step, where gradients of earlier
    micro-batches exist; `micro_batch` is the largest of the run. `low_precision` is bf16-mixed, else float32."""
    strategies, result = list(strategies), {}
    for engine in (False, True):
        names = [name for name in strategies if name.startswith("deepspeed") == engine]
        if not names:
            continue
        module = build_module(run)
        if engine and low_precision:
            module.bfloat16()          # the engine trains in bfloat16 and keeps float32 copies in its optimizer
        work = f"{work_of(run, None, None, micro_batch)} {low_precision} {engine}"
        if work not in _PEAKS:
            _PEAKS[work] = trace(module, micro_batch, torch.bfloat16 if low_precision and not engine else None)
        activations, logits = _PEAKS[work]
        trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
        resting = sum(p.numel() * p.element_size() for p in module.model.parameters() if not p.requires_grad)
        for name in names:
            shares = _engine_shares(name, trained, world, low_precision) if engine else dict(
                weights=4 * trained, gradients=4 * trained, optimizer=optimizer_bytes(module), host=0,
                buffers=4 * trained if name == "ddp" else 0)        # the reducer's buckets
            shares["weights"] += resting
            result[name] = Memory(
                **shares, average=_bytes(module.ema), frozen=_bytes(module.frozen), activations=activations,
                logits=logits)
    return {name: result[name] for name in strategies}


def optimizer_bytes(module: TrainingModule) -> int:
    """What the optimizer keeps without an engine: Muon one buffer of float32, AdamW two moments."""
    return sum((4 if group.get("muon") else 8) * p.numel() for group in module.parameter_groups()
               for p in group["params"])


def _engine_shares(strategy: str, trained: int, world: int, low_precision: bool) -> dict[str, int]:
    """Bytes of weights, gradients, optimizer and buffers under DeepSpeed, for `trained` parameters."""
    size, stage = 2 if low_precision else 4, int(strategy.split("_")[1])
    weights, gradients, optimizer = (world if stage >= needed else 1 for needed in (3, 2, 1))
    bytes_of = {"weights": size * trained // weights, "gradients": size * trained // gradients,
                "optimizer": 12 * trained // optimizer, "host": 0,
                "buffers": size * REDUCE_BUCKET}                    # allocated whole, however small the model
    if stage == 3:
        bytes_of["buffers"] += size * min(LIVE_PARAMETERS, trained)
    if strategy.endswith("_offload"):
        bytes_of |= {"gradients": 0, "optimizer": 0, "host": bytes_of["optimizer"] + 4 * trained // gradients}
    return bytes_of


def _bytes(module: nn.Module | None) -> int:
    if module is None:
        return 0
    return sum(t.numel() * t.element_size() for t in [*module.parameters(), *module.buffers()])


def trace(module: TokenizerModule | GeneratorModule, micro_batch: MicroBatch,
          autocast: torch.dtype | None = None) -> tuple[int, int]:
    """Peak of what forward and backward of one micro-batch allocate beside weights and gradients, as (bytes of
    activations and temporaries, bytes of logits). The module is on the meta device and receives gradients."""
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.empty_like(parameter)
    standing = [t for m in (module, module.frozen) if m is not None for t in [*m.parameters(), *m.buffers()]]
    standing += [p.grad for p in module.parameters() if p.grad is not None]
    num_logits = 0
    if isinstance(module, GeneratorModule):
        model = module.model
        positions = micro_batch.batch_size * model.layout.num_inputs(math.prod(model.config.grid))
        num_logits = model.head.positions_at_a_time(positions) * model.head.out_features
    for layer in module.modules():
        if isinstance(layer, TransformerLayer):        # recomputation in the backward pass leaves the modes around it
            layer.forward = _under_rules(layer.forward, autocast)  # type: ignore[assignment]
    with Allocations(standing, num_logits) as allocations, GpuRules(autocast):
        loss_of(module, micro_batch).backward()
    return allocations.peak


def _under_rules(forward: Callable[..., object], autocast: torch.dtype | None) -> Callable[..., object]:
    def under_rules(*args: object) -> object:
        with GpuRules(autocast):
            return forward(*args)
    return under_rules


class Allocations(TorchDispatchMode):
    """Follows the storages that operations make; `standing` tensors are not counted. A tensor of `num_logits` values
    counts as logits (0: none does). `peak` is (other bytes, bytes of logits) when their sum was largest."""

    def __init__(self, standing: Sequence[Tensor] = (), num_logits: int = 0) -> None:
        super().__init__()
        self._kept = [t.untyped_storage() for t in standing]
        self._known = {id(storage) for storage in self._kept}
        self._alive, self._references = [0, 0], dict[int, weakref.ref]()
        self.num_logits = num_logits
        self.peak: tuple[int, int] = (0, 0)

    def __torch_dispatch__(self, func: torch._ops.OpOverload, types: Sequence[type], args: tuple = (),
                           kwargs: dict[str, Any] | None = None) -> object:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self._note(tensor)
        return out

    def _note(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = id(storage)
        if key in self._known:
            return
        kind, size = int(tensor.numel() == self.num_logits), storage.nbytes()

        def release(_: object) -> None:
            self._known.discard(key)
            self._alive[kind] -= size
            del self._references[key]

        self._known.add(key)
        self._references[key] = weakref.ref(storage, release)
        self._alive[kind] += size
        if sum(self._alive) > sum(self.peak):
            self.peak = (self._alive[0], self._alive[1])


class GpuRules(TorchFunctionMode):
    """What a GPU makes of a forward pass: fused attention and, with `autocast`, the precision of each operation."""

    def __init__(self, autocast: torch.dtype | None = None) -> None:
        super().__init__()
        self.autocast = autocast

    def __torch_function__(self, func: Callable[..., object], types: Sequence[type], args: tuple = (),
                           kwargs: dict[str, Any] | None = None) -> object:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return self._attention(*args, **kwargs)
        if self.autocast is not None and (func in _LOW or func in _FULL):
            dtype = self.autocast if func in _LOW else torch.float32
            args, kwargs = tree_map_only(torch.Tensor, lambda t: t.to(dtype) if t.is_floating_point() else t,
                                         (args, kwargs))
        return func(*args, **kwargs)

    def _attention(self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        dtype = self.autocast or query.dtype
        query, key, value = (t.to(dtype) for t in (query, key, value))
        bias = None
        if attn_mask is not None:      # the kernel takes an additive mask
            bias = attn_mask.to(dtype).expand(*query.shape[:2], *attn_mask.shape[-2:])
        return torch.ops.aten._scaled_dot_product_efficient_attention(query, key, value, bias, True)[0]
