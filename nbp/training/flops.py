"""Floating-point operations of a run's training step, counted on the meta device.

A multiplication and an addition are two operations; convolutions and matrix products count, as in
torch.utils.flop_counter, elementwise work does not. Model FLOPs leave out what activation checkpointing computes
again (Chowdhery et al., arXiv 2204.02311, appendix B), executed FLOPs include it.
"""

import dataclasses

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from nbp.planning.dry_run import build_module, loss_of, micro_batches, num_steps


def flops_per_step(run, step=None):
    """Model FLOPs of one optimizer step of the whole run, forward and backward: all devices, all micro-batches.

    Costs seconds (one pass through the modules on the meta device per kind of micro-batch): call it once, or once
    per phase of a curriculum.

    Args:
        run: `TokenizerRun` or `GeneratorRun`.
        step: optimizer step; its phase of the curriculum and its loss terms count. None: the last step.

    Returns:
        float, operations.
    """
    world = run.trainer.devices * run.trainer.num_nodes
    return world * run.trainer.accumulate * micro_batch_flops(run, step)


def micro_batch_flops(run, step=None, executed=False):
    """FLOPs of one micro-batch of one device, forward and backward, averaged over the kinds of micro-batch.

    Args:
        run, step: as for `flops_per_step`.
        executed: count recomputation as well.
    """
    if run.kind == "generator" and not executed:
        run = dataclasses.replace(run, model=dataclasses.replace(run.model, activation_checkpointing=False))
    module = build_module(run, num_steps(run) - 1 if step is None else step)
    return sum(share * count_flops(lambda: torch.autograd.backward(loss_of(module, batch)))
               for share, batch in micro_batches(run, step))


def count_flops(function):
    """FLOPs of the convolutions and matrix products that `function` runs, on whatever device; float."""
    # Fused attention on CPUs is unknown to the formulas, and fused backward passes compute the scores again.
    with _Counter() as counter, sdpa_kernel(SDPBackend.MATH):
        function()
    return float(counter.total)


class _Counter(TorchDispatchMode):
    """The formulas of torch.utils.flop_counter without its book of modules, whose hooks forbid autograd.grad."""

    total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        formula = flop_registry.get(func._overloadpacket)
        if formula is None:
            with self:
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        out = func(*args, **kwargs)
        if formula is not None:
            self.total += formula(*args, **kwargs, out_val=out)
        return out
