"""How cost grows: seconds of a step against cache length, batch and vocabulary, and memory against frames, as plots."""

import time
from pathlib import Path

import torch

from nbp.benchmarking.machine import Line, line, measure_machine, report
from nbp.benchmarking.sampling import SIZES, Case
from nbp.benchmarking.tokenizer import texture
from nbp.config import GeneratorConfig, TokenizerConfig
from nbp.generator.model import Generator
from nbp.planning.memory import Allocations
from nbp.tokenizer.model import Tokenizer
from nbp.tokenizer.streaming import decode_chunks, encode_chunks

CASE = Case("", [5, 16, 16])
SMALL = TokenizerConfig([8, 8, 8], [1, 1, 1], [[2, 2, 2], [2, 2, 2]], [8, 5, 5])


def benchmark_growth(*, out: str | None, repeats: int, device: str, size: str) -> None:
    """Print the figures, write them to OUT and their plots beside it; the arguments are the command's."""
    codes = SIZES[size][3]
    curves = {
        "cached positions": [(known, step_s(size, device, repeats, known=known)) for known in (16, 336, 656, 1248)],
        "clips": [(batch, step_s(size, device, repeats, batch=batch)) for batch in (1, 2, 4, 8)],
        "ids": [(count, step_s(size, device, repeats, num_codes=count)) for count in (codes // 64, codes // 8, codes)],
        "frames": [(count, float(stream_bytes(count))) for count in (17, 65, 129, 257)],
    }
    lines: list[Line] = [line(f"{value} {name}", amount) if name != "frames" else
                         {"what": f"{value} frames in chunks", "seconds": 0.0, "facts": {"peak_MB": amount / 1e6}}
                         for name, points in curves.items() for value, amount in points]
    report(measure_machine(device), lines, out)
    if out:
        draw(curves, Path(out).with_suffix(".png"))


@torch.no_grad()
def step_s(size: str, device: str, repeats: int, known: int = 656, batch: int = 1,
           num_codes: int | None = None) -> float:
    """The best seconds of one step of 16 tokens behind `known` ones."""
    layers, heads, width, codes = SIZES[size]
    model = Generator(GeneratorConfig(layers, heads, width, num_codes or codes, CASE.grid, [1, 1, 16], "none", "plain",
                                      dropout=0.0)).to(device).eval()
    model.pack()
    given, best = torch.zeros(batch, known, dtype=torch.long, device=device), float("inf")
    for _ in range(repeats + 2):
        draft = model.begin(prefix=given, generator=[torch.Generator(device).manual_seed(n) for n in range(batch)])
        draft.step()                            # reads what is given
        start = time.perf_counter()
        draft.step()
        if device != "cpu":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return best


def stream_bytes(num_frames: int) -> int:
    """Most bytes that encoding and decoding in chunks of 8 frames hold, the video itself left out."""
    tokenizer, video = Tokenizer(SMALL).eval(), texture(num_frames, 32)
    chunks = [video[:, :, :1], *video[:, :, 1:].split(8, dim=2)]
    with Allocations([video]) as allocations:
        for _ in decode_chunks(tokenizer, encode_chunks(tokenizer, chunks)):
            pass
    return sum(allocations.peak)


def draw(curves: dict[str, list[tuple[int, float]]], path: Path) -> None:
    """One plot for each curve, side by side."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * len(curves), 3), layout="constrained")
    for axes, (name, points) in zip(figure.subplots(1, len(curves)), curves.items()):
        scale = 1e-6 if name == "frames" else 1.0
        axes.plot([value for value, _ in points], [amount * scale for _, amount in points], marker="o")
        axes.set(xlabel=name, ylabel="MB" if name == "frames" else "seconds a step", ylim=(0, None))
    figure.savefig(path)
