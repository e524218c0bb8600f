"""What this machine can do, measured: the floors that benchmarks compare with, and the lines that they print."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import torch
from typing_extensions import TypedDict

from nbp.evaluation.statement import device_name
from nbp.system.files import write_json
from nbp.system.processor import has_amx, multiplies_bfloat16, processor_name
from nbp.system.timing import timed

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Machine:
    """A processor as it is at the moment: bytes read per second, and operations per second of large products."""

    name: str
    num_threads: int
    torch: str
    bandwidth: float
    rate: dict[str, float]      # of the `PRECISIONS` that it multiplies; others are not measured

    def floor_s(self, num_bytes: float, operations: float, precision: str) -> float:
        """Seconds below which nothing that reads so much and computes so much can come."""
        return max(num_bytes / self.bandwidth, operations / self.rate[precision])


class Line(TypedDict, total=False):
    """One thing measured, and what it is compared with in the same run."""

    what: str
    seconds: float
    against: str                # what the other side is
    against_s: float
    times_as_fast: float
    floor_s: float
    times_the_floor: float
    facts: Mapping[str, object]


def line(what: str, seconds: float, against: str = "", against_s: float | None = None, floor_s: float | None = None,
         **facts: object) -> Line:
    """A `Line` with its ratios; facts are whatever else is to be stated."""
    made: Line = {"what": what, "seconds": seconds}
    if against_s is not None:
        made |= {"against": against, "against_s": against_s, "times_as_fast": against_s / seconds}
    if floor_s is not None:
        made |= {"floor_s": floor_s, "times_the_floor": seconds / floor_s}
    if facts:
        made["facts"] = facts
    return made


def measure_machine(device: str, size: int = 2048) -> Machine:
    """Bandwidth by sums and by products with a vector, rates by products of (size, size) matrices; the best of each."""
    cuda = torch.device(device).type == "cuda"
    size = 4 * size if cuda else size
    numbers = torch.ones(2 ** (17 if cuda else 14), 2 ** 12, device=device)
    reads: list[Callable[[], object]] = [lambda: numbers.sum(), lambda: numbers @ numbers[0]]
    bandwidth = 4 * numbers.numel() / min(timed(read) for read in reads * 5)
    rate = {}
    names = ["float32", *(["bfloat16"] if multiplies_bfloat16(torch.device(device).type) else [])]
    for name, dtype in ((name, PRECISIONS[name]) for name in names):
        matrix = torch.randn(size, size, device=device, dtype=dtype)
        rate[name] = 2 * size ** 3 / min(timed(lambda: matrix @ matrix) for _ in range(7))  # noqa: B023
    return Machine(describe_processor(device), torch.get_num_threads(), torch.__version__, bandwidth, rate)


def describe_processor(device: str) -> str:
    """The model of a GPU; of a CPU also what it has for matrices."""
    if torch.device(device).type != "cpu":
        return device_name(device)
    has = ", bfloat16" if multiplies_bfloat16("cpu") else ""
    has = ", AMX" if has and has_amx() else has
    return f"{processor_name()} ({torch.backends.cpu.get_cpu_capability()}{has})"


def in_turns(functions: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """The best seconds of each of several functions, called in turns."""
    best = dict.fromkeys(functions, float("inf"))
    for _ in range(repeats):
        for name, function in functions.items():
            best[name] = min(best[name], timed(function))
    return best


def report(machine: Machine, lines: Sequence[Line], out: str | None) -> None:
    """Print the machine and the lines, and write them to OUT as JSON."""
    rates = ", ".join(f"{name} {rate / 1e9:.0f} GFLOP/s" for name, rate in machine.rate.items())
    print(f"{machine.name}, {machine.num_threads} threads: {machine.bandwidth / 1e9:.1f} GB/s, {rates}")
    for made in lines:
        text = f"  {made['what']}: {made['seconds']:.3f} s"
        if "against_s" in made:
            text += f", {made['times_as_fast']:.2f} times as fast as {made['against']} ({made['against_s']:.3f} s)"
        if "floor_s" in made:
            text += f", {made['times_the_floor']:.2f} times the floor ({made['floor_s']:.3f} s)"
        stated = [f"{name.replace('_', ' ')} {value:.4g}" if isinstance(value, float) else
                  f"{name.replace('_', ' ')} {value}" for name, value in made.get("facts", {}).items()]
        print("; ".join([text, *stated]), flush=True)
    if out:
        write_json(out, {"machine": asdict(machine), "lines": list(lines)})
