"""Training steps against the official method, their memory, and the share of the matrix rate that recipes reach.

A step is forward, backward and optimizer. Memory is followed on the meta device, as `nbp.plan` does.
"""

import copy
import dataclasses
import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from nbp.benchmarking import official_method
from nbp.benchmarking.machine import PRECISIONS, Line, Machine, in_turns, line, measure_machine, report
from nbp.benchmarking.sampling import Case, make_generator
from nbp.config import GeneratorConfig, load_run
from nbp.config.runs import Run
from nbp.generator.model import Generator
from nbp.planning.memory import Allocations, GpuRules
from nbp.training.flops import build_module, count_flops, loss_of, micro_batch_flops, micro_batches, num_steps
from nbp.training.optim import build_optimizer
from nbp.training.tokenizer import TokenizerModule

RECIPES = ("configs/tokenizer_procgen_released.yaml", "configs/generator_procgen_released.yaml")
MEMORY_BATCH = 4
LossOf = Callable[[Generator, Tensor, Tensor], Tensor]


def benchmark_training(*, out: str | None, repeats: int, device: str, size: str, recipes: list[str]) -> None:
    """Print what a step takes; the arguments are the command's."""
    machine = measure_machine(device)
    lines = [*generator_steps(size, machine, repeats, device), memory_line(size)]
    for recipe in recipes:
        run = load_run(recipe)
        lines.append(recipe_line(recipe, run, machine, repeats, device))
    report(machine, lines, out)


def generator_steps(size: str, machine: Machine, repeats: int, device: str) -> list[Line]:
    """One clip of 1,280 tokens: the official step in float32, ours in each precision, from the same weights."""
    case = Case("step", [5, 16, 16])
    plain = make_generator(case, size, device, condition_dropout=0.0).train()
    models = {name: copy.deepcopy(plain) for name in machine.rate} | {"official": plain}
    codes = torch.randint(plain.config.num_codes, (1, *case.grid), device=device)
    label = torch.zeros(1, 1, dtype=torch.long, device=device)
    losses: dict[str, Tensor] = {}

    def step(name: str, loss_of_model: LossOf, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=name == "bfloat16"):
            losses[name] = loss_of_model(models[name], codes, label)
        losses[name].backward()
        optimizer.step()

    # A learning rate of zero leaves the weights equal, so that losses and gradients can be compared.
    optimizers = {name: torch.optim.AdamW(model.parameters(), lr=0.0, fused=name != "official")
                  for name, model in models.items()}
    functions = {name: partial(step, name, official_method.loss if name == "official" else Generator.loss,
                               optimizers[name]) for name in models}
    for optimizer in optimizers.values():       # makes its state, which is not counted
        for parameter in optimizer.param_groups[0]["params"]:
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
    best = in_turns(functions, repeats + 2)     # a GPU's first call sets things up, a CPU's first two fault memory in
    operations = count_step(plain.config)
    return [line(f"generator step, {name}", best[name], "the official step", best["official"],
                 machine.floor_s(0, operations, name),
                 share_of_matrix_rate=operations / best[name] / machine.rate[name],
                 relative_loss=abs(float(losses[name].detach() / losses["official"].detach()) - 1),
                 gradient_cosine=cosine(models[name], plain)) for name in machine.rate]


def count_step(config: GeneratorConfig, batch: int = 1) -> float:
    """Operations of forward and backward of clips."""
    with torch.device("meta"):
        model, codes = Generator(config).train(), torch.zeros(batch, *config.grid, dtype=torch.long)
    return count_flops(lambda: model.loss(codes).backward())


def cosine(model: nn.Module, other: nn.Module) -> float:
    """Cosine between the gradients of two models of one architecture."""
    pairs = [(p.grad.double().flatten(), q.grad.double().flatten())
             for p, q in zip(model.parameters(), other.parameters()) if p.grad is not None and q.grad is not None]
    dot, left, right = (sum(float(a @ b) for a, b in rows)
                        for rows in (pairs, [(p, p) for p, _ in pairs], [(q, q) for _, q in pairs]))
    return dot / math.sqrt(left * right)


def memory_line(size: str) -> Line:
    """Peak bytes of forward and backward at a batch of four in float32, beside weights and gradients, in GB."""
    case = Case("step", [5, 16, 16])
    with torch.device("meta"):
        model = make_generator(case, size, "meta", condition_dropout=0.0).train()
        codes, labels = torch.zeros(MEMORY_BATCH, *case.grid, dtype=torch.long), torch.zeros(MEMORY_BATCH, 1).long()
    for parameter in model.parameters():
        parameter.grad = torch.empty_like(parameter)
    standing = [tensor for p in model.parameters() for tensor in (p, p.grad) if tensor is not None]
    peaks = {}
    for name, loss in {"official": official_method.loss, "ours": Generator.loss}.items():
        with Allocations(standing) as allocations, GpuRules(None):
            loss(model, codes, labels).backward()
        peaks[name] = sum(allocations.peak) / 1e9
    weights = 16 * sum(p.numel() for p in model.parameters()) / 1e9      # gradients and the optimizer's state included
    return {"what": f"memory of a step, batch {MEMORY_BATCH}, float32 (counted)", "seconds": 0.0, "facts": {
        "official_GB": weights + peaks["official"], "ours_GB": weights + peaks["ours"],
        "share_of_the_official": (weights + peaks["ours"]) / (weights + peaks["official"]),
        "share_of_activations": peaks["ours"] / peaks["official"]}}


def recipe_line(recipe: str, run: Run, machine: Machine, repeats: int, device: str) -> Line:
    """A micro-batch of a run with its optimizer step, as a share of the measured matrix rate; in bfloat16 where the
    machine multiplies it, as `trainer.precision=auto` chooses."""
    precision = [*machine.rate][-1]
    module = build_module(run, device=torch.device(device))
    if isinstance(module, TokenizerModule):
        module.lower_frozen(precision == "bfloat16")
    share, batch = micro_batches(run)[0]
    optimizer = build_optimizer(module.parameter_groups(), run.optim, num_steps(run))["optimizer"]

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bfloat16"):
            loss = loss_of(module, batch)
        loss.backward()
        module.configure_gradient_clipping(optimizer, run.optim.gradient_clip)
        optimizer.step()

    step()                                      # the optimizer's state
    matrix = torch.randn(2048, 2048, dtype=PRECISIONS[precision], device=device)
    best = in_turns({"matrix": lambda: matrix @ matrix, "step": step}, repeats + 1)
    seconds, operations = best["step"], micro_batch_flops(run)
    rates = {precision: 2 * 2048 ** 3 / best["matrix"]}      # in turns with the step, as the machine may be shared
    machine = dataclasses.replace(machine, rate=machine.rate | rates)
    return line(f"{recipe}, {batch.batch_size} clips, {precision}", seconds,
                floor_s=machine.floor_s(0, operations, precision),
                share_of_matrix_rate=operations / seconds / machine.rate[precision],
                clips_per_s=batch.batch_size / seconds)
