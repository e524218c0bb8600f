"""Clips of made-up generators against the official method and against reading and multiplying the weights.

The official side is float32, draws the same filter's ids and is measured in turns with ours. Random weights: the time
does not depend on them, but for the filter, which has all of its top-k to go through.
Legend: B batch.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, partial
from typing import NamedTuple

import torch
from torch import Tensor

from nbp.benchmarking import official_method
from nbp.benchmarking.blocks import benchmark_blocks
from nbp.benchmarking.machine import PRECISIONS, Line, Machine, in_turns, line, measure_machine, report
from nbp.config import GeneratorConfig
from nbp.generator.int8 import multiplies_int8
from nbp.generator.model import Generator

# Layers, heads, width, codes.
SIZES = {"smoke": (2, 2, 32, 500), "paper": (12, 12, 768, 64000), "700M": (24, 16, 1536, 64000),
         "3B": (32, 32, 3072, 64000)}
GUIDANCE = 1.5
SINGLE = ", a step a pass"
OFFICIAL = ", an official model"
PLAIN = OFFICIAL + " to the bit"        # without packed weights


class Case(NamedTuple):
    """A clip that is timed."""

    name: str
    grid: list[int]
    batch: int = 1
    block: int = 16
    start: str = "plain"
    repeats: int = 2
    cfg_scale: float | None = None
    clips: int = 1          # drawn one after the other, as passes differ from clip to clip; seconds are those of one
    exact: bool = False     # an official model, whose tokens are the official method's, is timed as well, packed or not

    @property
    def single(self) -> bool:
        """Whether it has steps of one token, of which a pass draws several."""
        return self.block == 1 or self.start == "hybrid"


# Each row of 16 takes the same work, so that all but the first go by shorter clips.
CASES = [Case("1,280 tokens", [5, 16, 16], repeats=1), Case("160 tokens", [5, 2, 16], exact=True),
         Case("80 tokens, 4 clips", [5, 1, 16], batch=4),
         Case("320 tokens, hybrid", [5, 4, 16], start="hybrid", repeats=1, exact=True),
         Case("16 tokens one by one", [1, 1, 16], block=1, clips=4, exact=True),
         Case("80 tokens, guidance", [5, 1, 16], cfg_scale=GUIDANCE)]


def benchmark_sampling(*, generator: str | None, tokenizer: str | None, out: str | None, repeats: int, device: str,
                       size: str) -> None:
    """Print seconds and ratios of all cases, or those of two given models; the arguments are the command's."""
    if generator and tokenizer:
        return benchmark_blocks(generator=generator, tokenizer=tokenizer, out=out, repeats=repeats, device=device)
    if generator or tokenizer:
        raise ValueError("--generator and --tokenizer go together; without both, made-up models are measured")
    machine = measure_machine(device)
    report(machine, [made for case in CASES for made in measure(case, size, machine, device)], out)


def make_generator(case: Case, size: str, device: str, multinomial: bool = False,
                   condition_dropout: float = 0.1) -> Generator:
    """A generator with random weights, the same ones for each case of a size, in eval mode."""
    config = replace(_config(size), grid=case.grid, block_shape=[1, 1, case.block], start=case.start,
                     multinomial=multinomial, condition_dropout=condition_dropout)
    with torch.device("meta"):
        model = Generator(config)
    weights, rows = random_weights(size, device), model.layout.vocab_size
    model.load_state_dict(weights | {"token_embedding.weight": weights["token_embedding.weight"][:rows]}, assign=True)
    return model.eval()


@lru_cache(maxsize=1)
def random_weights(size: str, device: str) -> dict[str, Tensor]:
    """A state dict that models of a size share: making one takes seconds."""
    torch.manual_seed(0)
    return Generator(_config(size)).to(device).state_dict()


def _config(size: str) -> GeneratorConfig:
    layers, heads, width, codes = SIZES[size]
    return GeneratorConfig(layers, heads, width, codes, [5, 16, 16], [1, 1, 16], "label", "hybrid",   # has most ids
                           num_condition_ids=3, condition_len=1, dropout=0.0)


def measure(case: Case, size: str, machine: Machine, device: str) -> list[Line]:
    """Lines of one case in each precision; on a CPU beside the official method."""
    official = make_generator(case, size, device, multinomial=True)
    models = {name: make_generator(case, size, device).to(PRECISIONS[name]) for name in machine.rate}
    exact = {}
    if case.exact:
        packed = make_generator(case, size, device, multinomial=True)
        exact = {f"float32{OFFICIAL}": packed, f"float32{PLAIN}": official}
    if multiplies_int8(torch.device(device).type):
        models["int8"] = make_generator(case, size, device)
    clips: dict[str, Tensor] = {}
    passes: dict[str, float] = {}

    def clip(name: str) -> None:
        model = exact.get(name) or models[name.removesuffix(SINGLE)]
        condition = torch.zeros(case.batch, 1, dtype=torch.long, device=device)
        count, drawn = 0, []
        for first in range(0, case.clips * case.batch, case.batch):
            streams = [torch.Generator(device).manual_seed(first + number) for number in range(case.batch)]
            draft = model.begin(condition, cfg_scale=case.cfg_scale, generator=streams,
                                lookahead=1 if name.endswith(SINGLE) else None)
            count += sum(1 for _ in iter(draft.step, False))
            drawn.append(draft.checked_codes())
        passes[name], clips[name] = count / case.clips, torch.cat(drawn)

    def plain() -> None:
        count = 2 * case.batch if case.cfg_scale else case.batch      # guidance takes both clips
        condition = torch.zeros(count, 1, dtype=torch.long, device=device)
        clips["official"] = torch.cat([official_method.generate(
            official, condition, generator=torch.Generator(device).manual_seed(seed)) for seed in range(case.clips)])

    for name, model in (models | exact).items():
        if not name.endswith(PLAIN):
            model.pack(int8=name == "int8")
    functions: dict[str, Callable[[], object]] = {"official": plain}
    alone = [f"float32{SINGLE}"] if case.single else []
    functions |= {name: partial(clip, name) for name in [*models, *alone, *exact]}
    best = {name: seconds / case.clips for name, seconds in in_turns(functions, case.repeats).items()}
    lines = [line(f"{case.name}, {name}", best[name], "the official method", best["official"],
                  floor_s(case, models[name], machine, name) if name in machine.rate else None,
                  **({"passes": passes[name]} if case.single else {})) for name in models]
    lines += [line(f"{case.name}, {name}", best[name], "the official method", best["official"], passes=passes[name],
                   same_tokens=bool(torch.equal(clips[name], clips["float32"]))) for name in alone]
    return lines + [line(f"{case.name}, {name}", best[name], "the official method", best["official"],
                         same_tokens=bool(torch.equal(clips[name], clips["official"]))) for name in exact]


def floor_s(case: Case, model: Generator, machine: Machine, precision: str) -> float:
    """Seconds of a clip in which weights and cached keys and values are read and multiplied, and nothing else."""
    config, layout, size = model.config, model.layout, PRECISIONS[precision].itemsize
    sequences = case.batch * (2 if case.cfg_scale else 1)
    layers, head = 12 * config.num_layers * config.width ** 2, config.width * config.num_codes
    known, first, seconds = 0, 0, 0.0
    while known < math.prod(case.grid):
        end, count = layout.known_positions(known), layout.next_tokens(known)
        cached = 2 * config.num_layers * config.width * (layout.condition_len + end)
        operations = 2 * sequences * (layers * (end - first) + head * count + cached * (end - first))
        seconds += machine.floor_s(size * (layers + head + sequences * cached), operations, precision)
        known, first = known + count, end
    return seconds
