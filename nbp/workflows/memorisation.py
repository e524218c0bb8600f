"""Does a generator repeat its training clips? The report behind `evaluate --train`.

The nearest training clip of each generated clip, by the protocol's features. How near is too near, held-out real
clips say: they lie as close to the training set as clips can that are not copies. Next to it the distances to
both real sets at equal counts, clips chosen as for a score: a generator that memorises is closer to the training set.
"""

import dataclasses
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nbp.data.clips import fit_size
from nbp.evaluation.diversity import nearest
from nbp.evaluation.features import ALONE, Clips, Extraction, extract_features
from nbp.evaluation.fvd import check_enough
from nbp.evaluation.networks import FeatureNetwork
from nbp.evaluation.protocols import Protocol
from nbp.evaluation.scoring import check_pair, choose, choose_parts, distances, scored_counts
from nbp.evaluation.statement import Provenance, provenance
from nbp.reporting.clips import write_sheet
from nbp.system.files import write_json

NUM_PAIRS = 16


class Memorisation(Provenance):
    """The report on one generated set; `pairs` are (generated clip, training clip, distance), the closest first."""

    protocol: str
    protocol_fields: dict[str, Any]
    fvd_train: float
    fvd_real: float
    clips_of_each_real_set: int
    median_distance: float
    median_distance_of_real: float
    threshold: float
    share_below_threshold: float
    pairs: list[tuple[int, int, float]]
    sets: dict[str, dict[str, str | int]]
    notes: list[str]
    seed: int
    weights_sha256: str


def check_sets(train: Clips, real: Clips, fakes: Sequence[Clips], protocol: Protocol) -> None:
    """Refuse, before anything is scored, a training set that is the held-out or a generated one, and sets that are too
    small. ValueError: see `check_pair` and `check_enough`."""
    for role, clips in (("training", train), ("held-out", real), *(("fake", fake) for fake in fakes)):
        check_enough(len(clips), role)
    check_pair(train, real, protocol, ("training set", "held-out set"))
    for fake in fakes:
        check_pair(train, fake, protocol, ("training set", "fake set"))


def report_sets(train: Clips, real: Clips, fakes: Sequence[Clips], protocol: Protocol, network: FeatureNetwork,
                how: Extraction, out: str | Path, seed: int = 0) -> None:
    """Report on every generated set; rank 0 prints and writes. Arguments as in `memorisation`, `out` is a folder."""
    for number, fake in enumerate(fakes):
        report = memorisation(train, real, fake, protocol, network, how, seed)
        if how.rank == 0:
            print(*lines(report), sep="\n")
            name = f"memorisation_{number}" if len(fakes) > 1 else "memorisation"
            print(f"wrote {write_report(report, train, fake, Path(out), name)}")


def memorisation(train: Clips, real: Clips, fake: Clips, protocol: Protocol, network: FeatureNetwork,
                 how: Extraction = ALONE, seed: int = 0) -> Memorisation:
    """Scores and nearest pairs: `train` clips that the generator was trained on, `real` ones that it was not, `fake`
    generated ones; the seed chooses clips, as in `evaluate_sets`."""
    check_sets(train, real, [fake], protocol)
    sets = {"train": train, "real": real, "fake": fake}
    features = {name: extract_features(clips, network, protocol, how) for name, clips in sets.items()}
    numbers, nearness = nearest(features["fake"], features["train"])
    _, held_out = nearest(features["real"], features["train"])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        # Both real sets at equal counts, clips chosen as for a score.
        fewer = min(len(train), len(real))
        num_real, num_fake, repeats, counted = scored_counts(protocol, fewer, len(fake), allow_fewer=True)
        if num_real < len(real) and protocol.num_real is None:   # the whole list is not what is scored
            counted = counted.replace(num_real=num_real)
        parts = [features["fake"][part] for part in choose_parts(len(fake), num_fake, repeats, seed)]
        fvd_train, fvd_real = (distances(features[name][choose(len(sets[name]), num_real, seed)], parts)["fvd"]
                               for name in ("train", "real"))
    threshold = float(np.quantile(held_out, 0.01))
    order = np.argsort(nearness)
    return {
        "protocol": counted.name, "protocol_fields": dataclasses.asdict(counted),
        "fvd_train": fvd_train, "fvd_real": fvd_real, "clips_of_each_real_set": num_real,
        "median_distance": float(np.median(nearness)), "median_distance_of_real": float(np.median(held_out)),
        "threshold": threshold, "share_below_threshold": float((nearness < threshold).mean()),
        "pairs": [(int(number), int(numbers[number]), float(nearness[number])) for number in order],
        "sets": {name: {"name": clips.name, "clips": len(clips), "sha256": clips.fingerprint}
                 for name, clips in sets.items()},
        "notes": sorted({str(warning.message) for warning in caught} | ({network.note} - {""})), "seed": seed,
        "weights_sha256": network.weights_sha256, **provenance(network.device)}


def lines(report: Memorisation) -> list[str]:
    """The report in words, for the terminal."""
    sets = report["sets"]
    return [f"memorisation {sets['fake']['name']} ({report['protocol']}, {report['clips_of_each_real_set']} clips of "
            "each real set)",
            f"  fvd to training clips {report['fvd_train']:.4g}    fvd to held-out clips {report['fvd_real']:.4g}",
            f"  distance to the nearest training clip, median: generated {report['median_distance']:.4g}, "
            f"held-out real {report['median_distance_of_real']:.4g}",
            f"  {report['share_below_threshold']:.1%} of generated clips are nearer than all but 1% of held-out real "
            "clips"]


def write_report(report: Memorisation, train: Clips, fake: Clips, out: Path, name: str) -> Path:
    """Write OUT/NAME.json and OUT/NAME.png, the closest pairs one above the other; returns the picture's path."""
    rows: list[tuple[str, np.ndarray]] = []
    for generated, nearest_clip, distance in report["pairs"][:NUM_PAIRS]:
        made, size = fake.pixels(generated), (rows[0][1] if rows else fake.pixels(generated)).shape[1:3]
        rows += [(f"generated {generated}", fit_size(made, size, "aspect")),
                 (f"training {nearest_clip}: {distance:.3g}", fit_size(train.pixels(nearest_clip), size, "aspect"))]
    write_json(out / f"{name}.json", report)
    write_sheet(out / f"{name}.png", rows)
    return out / f"{name}.png"
