"""Does a generator repeat its training clips? The report behind `evaluate --train`.

The nearest training clip of each generated clip, by the protocol's features. How near is too near, held-out real
clips say: they lie as close to the training set as clips can that are not copies. Next to it the distances to
both real sets at equal counts, clips chosen as for a score: a generator that memorises is closer to the training set.
"""

import dataclasses
import warnings
from pathlib import Path

import numpy as np

from nbp.evaluation.diversity import nearest
from nbp.evaluation.features import extract_features
from nbp.evaluation.fvd import check_enough
from nbp.evaluation.scoring import check_pair, choose, choose_parts, counts, distances
from nbp.evaluation.statement import provenance
from nbp.system.files import write_json

NUM_PAIRS = 16


def check(train, real, fakes, protocol):
    """Refuse a training set that is the held-out or a generated one, and sets that are too small, before anything is
    scored.

    Raises:
        ValueError: see `check_pair` and `check_enough`.
    """
    for role, clips in (("training", train), ("held-out", real), *(("fake", fake) for fake in fakes)):
        check_enough(len(clips), role)
    check_pair(train, real, protocol, ("training set", "held-out set"))
    for fake in fakes:
        check_pair(train, fake, protocol, ("training set", "fake set"))


def run(train, real, fakes, protocol, network, cache, out, seed=0, **extraction):
    """Report on every generated set; rank 0 prints and writes. Arguments as in `memorisation`, `out` is a folder."""
    for number, fake in enumerate(fakes):
        report = memorisation(train, real, fake, protocol, network, cache, seed, **extraction)
        if extraction.get("rank", 0) == 0:
            print(*lines(report), sep="\n")
            name = f"memorisation_{number}" if len(fakes) > 1 else "memorisation"
            print(f"wrote {write(report, train, fake, out, name)}")


def memorisation(train, real, fake, protocol, network, cache, seed=0, **extraction):
    """Scores and nearest pairs.

    Args:
        train: Clips that the generator was trained on.
        real: Clips that it was not.
        fake: generated Clips.
        protocol, network, cache, extraction: see `extract_features`.
        seed: for choosing clips, as in `evaluate_sets`.

    Returns:
        dict that JSON can hold; `pairs` are (generated clip, training clip, distance), the closest first.
    """
    check(train, real, [fake], protocol)
    features = {name: extract_features(clips, network, protocol, cache, **extraction)
                for name, clips in (("train", train), ("real", real), ("fake", fake))}
    numbers, nearness = nearest(features["fake"], features["train"])
    _, held_out = nearest(features["real"], features["train"])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        scores, counted = _distances_at_equal_counts(**features, protocol=protocol, seed=seed)
    threshold = float(np.quantile(held_out, 0.01))
    order = np.argsort(nearness)
    return {
        "protocol": counted.name, "protocol_fields": dataclasses.asdict(counted), **scores,
        "median_distance": float(np.median(nearness)), "median_distance_of_real": float(np.median(held_out)),
        "threshold": threshold, "share_below_threshold": float((nearness < threshold).mean()),
        "pairs": [(int(number), int(numbers[number]), float(nearness[number])) for number in order],
        "sets": {name: {"name": clips.name, "clips": len(clips), "sha256": clips.fingerprint}
                 for name, clips in (("train", train), ("real", real), ("fake", fake))},
        "notes": sorted({str(warning.message) for warning in caught} | ({network.note} - {""})), "seed": seed,
        "weights_sha256": network.weights_sha256, **provenance(network.device)}


def _distances_at_equal_counts(train, real, fake, protocol, seed):
    """(scores, protocol as it is then called) of feature matrices."""
    fewer = min(len(train), len(real))
    num_real, num_fake, repeats, counted = counts(protocol, fewer, len(fake), allow_fewer=True)
    if num_real < len(real) and protocol.num_real is None:   # the whole list is not what is scored
        counted = counted.replace(num_real=num_real)
    parts = [fake[part] for part in choose_parts(len(fake), num_fake, repeats, seed)]
    scores = {f"fvd_{name}": distances(features[choose(len(features), num_real, seed)], parts)["fvd"]
              for name, features in (("train", train), ("real", real))}
    return scores | {"clips_of_each_real_set": num_real}, counted


def lines(report):
    """The report as lines for the terminal."""
    sets = report["sets"]
    return [f"memorisation {sets['fake']['name']} ({report['protocol']}, {report['clips_of_each_real_set']} clips of "
            "each real set)",
            f"  fvd to training clips {report['fvd_train']:.4g}    fvd to held-out clips {report['fvd_real']:.4g}",
            f"  distance to the nearest training clip, median: generated {report['median_distance']:.4g}, "
            f"held-out real {report['median_distance_of_real']:.4g}",
            f"  {report['share_below_threshold']:.1%} of generated clips are nearer than all but 1% of held-out real "
            "clips"]


def write(report, train, fake, out, name):
    """Write OUT/NAME.json and OUT/NAME.png, the closest pairs one above the other; returns the picture's path."""
    from nbp.reporting.clips import write_sheet

    rows = []
    for generated, nearest_clip, distance in report["pairs"][:NUM_PAIRS]:
        rows += [(f"generated {generated}", _pixels(fake, generated)),
                 (f"training {nearest_clip}: {distance:.3g}", _pixels(train, nearest_clip))]
    write_json(Path(out) / f"{name}.json", report)
    write_sheet(Path(out) / f"{name}.png", rows)
    return Path(out) / f"{name}.png"


def _pixels(clips, number):
    frames = clips[number].numpy()
    return frames if frames.dtype == np.uint8 else (frames * 255).round().clip(0, 255).astype(np.uint8)
