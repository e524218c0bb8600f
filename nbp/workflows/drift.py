"""How long video holds up: the distance of each stretch of generated clips to the same real clips."""

import math
from collections.abc import Sequence
from pathlib import Path

from typing_extensions import TypedDict

from nbp.evaluation.features import Clips, Extraction
from nbp.evaluation.networks import FeatureNetwork
from nbp.evaluation.protocols import Protocol
from nbp.evaluation.scoring import evaluate_sets
from nbp.evaluation.statement import Report
from nbp.system.files import write_json


class Drift(TypedDict):
    """A generated set over time."""

    set: str
    first_frames: list[int]     # of each window
    fvd: list[float]
    change: float               # of the last window against the first, as a factor
    reports: list[Report]


def windows(clips: Clips, size: int) -> list[tuple[int, Clips]]:
    """(first frame, clips) of every stretch of `size` frames in turn. ValueError: clips too short for two of them."""
    length = len(clips[0])
    if length < 2 * size:
        raise ValueError(f"--drift compares stretches of {size} frames of a clip, the clips of {clips.name} have "
                         f"{length}: at least {2 * size} are needed")
    return [(first, clips.window(first, size)) for first in range(0, length - size + 1, size)]


def check_stretches(fakes: Sequence[Clips], protocol: Protocol) -> int:
    """Frames of a stretch. ValueError: a protocol that looks at whole clips, or clips too short for two stretches."""
    if protocol.num_frames is None:
        raise ValueError(f"--drift needs the length of a stretch, protocol {protocol.name} looks at whole clips: "
                         "--set frames=N")
    for fake in fakes:
        windows(fake, protocol.num_frames)
    return protocol.num_frames


def report_drift(real: Clips, fakes: Sequence[Clips], protocol: Protocol, network: FeatureNetwork, how: Extraction,
                 out: str, allow_fewer: bool, seed: int) -> list[Drift]:
    """Score every stretch of every set against the real one, print them and write OUT/drift.json. ValueError: as
    `check_stretches` and `evaluate_sets`."""
    found: list[Drift] = []
    size = check_stretches(fakes, protocol)
    for fake in fakes:
        parts = windows(fake, size)
        reports = evaluate_sets(real, [part for _, part in parts], protocol, network, how, allow_fewer, False, seed)
        fvd = [float(score) if isinstance(score := report["scores"]["fvd"], float) else math.nan for report in reports]
        found.append({"set": fake.name, "first_frames": [first for first, _ in parts], "fvd": fvd,
                      "change": fvd[-1] / fvd[0] if fvd[0] else math.nan, "reports": reports})
    if how.rank == 0:
        for drift in found:
            print(f"{drift['set']}, {protocol.name} from frame " + ", ".join(
                f"{first}: {value:.4g}" for first, value in zip(drift["first_frames"], drift["fvd"]))
                + f"; the last is {drift['change']:.2f} times the first")
        write_json(Path(out) / "drift.json", found)
    return found
