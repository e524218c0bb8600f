"""Scores of fake sets against a real set under a protocol, and the document that makes them reproducible.

Legend: N clips, D features.
"""

import dataclasses
import platform
import subprocess
import warnings

import numpy as np

from nbp.evaluation.diversity import inception_score
from nbp.evaluation.features import extract_features, seen_shape
from nbp.evaluation.fvd import frechet_distance, polynomial_mmd
from nbp.evaluation.uncertainty import uncertainty


def nearest_centroid_accuracy(train_features, train_labels, features, labels):
    """Share of clips whose nearest class centroid is their own class.

    Features are standardised with the training set's mean and deviation, so that no single one dominates.

    Args:
        train_features: (N,D); their class means are the centroids.
        train_labels: (N,) ints.
        features: (M,D).
        labels: (M,) ints, all among the training labels.

    Returns:
        float in [0,1].

    Raises:
        ValueError: a label without training clips, or counts that do not fit.
    """
    train_features, features = (np.asarray(x, np.float64) for x in (train_features, features))
    train_labels, labels = np.asarray(train_labels), np.asarray(labels)
    if len(train_features) != len(train_labels) or len(features) != len(labels) or not len(labels):
        raise ValueError(f"{len(train_features)} and {len(features)} clips, "
                         f"{len(train_labels)} and {len(labels)} labels")
    classes = np.unique(train_labels)
    if unknown := sorted(set(labels.tolist()) - set(classes.tolist())):
        raise ValueError(f"labels without training clips: {', '.join(map(str, unknown))}")
    mean, deviation = train_features.mean(0), train_features.std(0) + 1e-12
    train_features, features = (train_features - mean) / deviation, (features - mean) / deviation
    centroids = np.stack([train_features[train_labels == label].mean(0) for label in classes])
    distance = ((features[:, None] - centroids[None]) ** 2).sum(2)
    return float((classes[distance.argmin(1)] == labels).mean())


def evaluate_sets(real, fakes, protocol, network, cache_dir=None, allow_fewer=False, intervals=False, seed=0,
                  **extraction):
    """Score any number of fake sets against one real set.

    Args:
        real: Clips.
        fakes: list of Clips.
        protocol: Protocol.
        network: FeatureNetwork of that protocol.
        cache_dir: folder where features are kept, so that a set is never extracted twice; None keeps nothing.
        allow_fewer: score sets smaller than the protocol's counts; the printed name says so.
        intervals: also a bootstrap interval, k-fold deviation and the extrapolation to infinitely many clips.
        seed: for choosing clips where a set is larger than the protocol's count, and for `intervals`.
        extraction: batch_size, num_workers, rank, world, barrier of `extract_features`.

    Returns:
        list of reports (dicts that JSON can hold), one per fake set.

    Raises:
        ValueError: too few clips, real and fake the same set, or what extraction refuses.
    """
    for fake in fakes:
        check_pair(real, fake, protocol)
        counts(real, fake, protocol, allow_fewer)
    features = extract_features(real, network, protocol, cache_dir, **extraction)
    reports = []
    for fake in fakes:
        fake_features = extract_features(fake, network, protocol, cache_dir, **extraction)
        reports.append(report(real, features, fake, fake_features, protocol, network, allow_fewer, intervals, seed))
    return reports


def check_pair(real, fake, protocol, roles=("real set", "fake set")):
    """Refuse sets whose distance would say something else than it seems to.

    Args:
        real, fake: Clips.
        protocol: Protocol.
        roles: what the two are called in messages.

    Raises:
        ValueError: both are cut from the same content, or clips that reach the network by different resizing or
            lengths.
    """
    if fake.content == real.content:
        raise ValueError(f"{roles[0]} {real.name} and {roles[1]} {fake.name} have the same content")
    (t_real, *size_real), (t_fake, *size_fake) = seen_shape(real, protocol), seen_shape(fake, protocol)
    if protocol.resolution is None and size_real != size_fake:
        raise ValueError(f"clips of {real.name} have {size_real[0]}x{size_real[1]} pixels and clips of {fake.name} "
                         f"{size_fake[0]}x{size_fake[1]}: their resizing would be scored; --set resolution=N brings "
                         "both to N pixels first")
    if protocol.num_frames is None and t_real != t_fake:
        raise ValueError(f"clips of {real.name} have {t_real} frames and clips of {fake.name} {t_fake}; --set "
                         "frames=N scores the first N of both")


def counts(real, fake, protocol, allow_fewer):
    """(real clips, fake clips per repeat, repeats, protocol as it is then called).

    Raises:
        ValueError: a set is smaller than the protocol asks for and `allow_fewer` is not given.
    """
    num_real = protocol.num_real or len(real)
    num_fake = protocol.num_fake or len(fake) // protocol.repeats
    repeats = protocol.repeats
    if len(real) >= num_real and len(fake) >= num_fake * repeats:
        return num_real, num_fake, repeats, protocol
    if not allow_fewer:
        raise ValueError(f"protocol {protocol.name} asks for {num_real} real and {repeats} x {num_fake} fake clips; "
                         f"{real.name} has {len(real)} and {fake.name} {len(fake)}. Give more, or --allow-fewer, "
                         "which marks the score")
    num_real, num_fake = min(num_real, len(real)), min(num_fake, len(fake))
    repeats = max(1, min(repeats, len(fake) // num_fake))
    return num_real, num_fake, repeats, protocol.replace(num_real=num_real, num_fake=num_fake, repeats=repeats)


def report(real, real_features, fake, fake_features, protocol, network, allow_fewer=False, intervals=False, seed=0):
    """Scores of one pair of sets from their features, with everything needed to get them again."""
    num_real, num_fake, repeats, protocol = counts(real, fake, protocol, allow_fewer)
    chosen = _choose(len(real), num_real, seed)
    parts = _choose_parts(len(fake), num_fake, repeats, seed)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        distances = [frechet_distance(real_features[chosen], fake_features[part]) for part in parts]
    scores = {"fvd": float(np.mean(distances))}
    if repeats > 1:
        scores["fvd_deviation"] = float(np.std(distances, ddof=1))
    scores["kvd"] = float(np.mean([polynomial_mmd(real_features[chosen], fake_features[part]) for part in parts]))
    scores["inception_score_i3d"] = inception_score(fake_features[np.concatenate(parts)])
    if intervals:
        scores |= uncertainty(real_features[chosen], fake_features[parts[0]], seed)
    if real.labels is not None and fake.labels is not None and min(real.labels.min(), fake.labels.min()) >= 0:
        scores["class_accuracy"] = nearest_centroid_accuracy(real_features, real.labels, fake_features, fake.labels)
    return {
        "protocol": protocol.name,
        "protocol_fields": dataclasses.asdict(protocol),
        "real": {"name": real.name, "clips": num_real, "of": len(real), "sha256": real.fingerprint},
        "fake": {"name": fake.name, "clips": num_fake, "of": len(fake), "sha256": fake.fingerprint},
        "scores": scores,
        "notes": sorted({str(warning.message) for warning in caught}),
        "weights_sha256": network.weights_sha256,
        "seed": seed,
        **provenance(),
    }


def _choose(total, count, seed):
    """`count` of `total` clips, drawn once per seed; all of them in order where they are all used."""
    if count == total:
        return np.arange(total)
    return np.sort(np.random.default_rng(seed).permutation(total)[:count])


def _choose_parts(total, count, repeats, seed):
    """`repeats` disjoint sets of `count` clips: each drawn from everywhere, since sets are often ordered by class."""
    if repeats == 1:
        return [_choose(total, count, seed)]
    drawn = np.random.default_rng(seed).permutation(total)[:count * repeats]
    return [np.sort(part) for part in np.split(drawn, repeats)]


def provenance():
    """Versions of what computed a score, and the commit of this code where it is a git checkout."""
    import torch

    import nbp

    folder = nbp.__path__[0]
    try:
        commit = subprocess.run(["git", "-C", folder, "describe", "--always", "--dirty", "--abbrev=12"],
                                capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = "unknown"
    return {"versions": {"nbp": nbp.__version__, "torch": torch.__version__, "numpy": np.__version__,
                         "python": platform.python_version()}, "commit": commit}


def table(report):
    """A report as lines for the terminal."""
    fields = report["protocol_fields"]
    lines = [f"protocol   {report['protocol']}"]
    lines += [f"           {name} = {value}" for name, value in fields.items() if name != "name"]
    for side in ("real", "fake"):
        entry = report[side]
        lines.append(f"{side}       {entry['name']}: {entry['clips']} of {entry['of']} clips, "
                     f"sha256 {entry['sha256'][:12]}")
    lines.append(f"weights    sha256 {report['weights_sha256'][:12]}    seed {report['seed']}    "
                 f"commit {report['commit']}")
    lines += [f"{name:<24} {_value(value)}" for name, value in report["scores"].items()]
    return "\n".join(lines + [f"note: {note}" for note in report["notes"]])


def markdown_row(report):
    """Header and row of a table that states set, protocol, counts and scores."""
    names = list(report["scores"])
    cells = [report["fake"]["name"], report["protocol"], f"{report['fake']['clips']} / {report['real']['clips']}"]
    cells += [_value(report["scores"][name]) for name in names]
    header = ["set", "protocol", "fake / real clips", *names]
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), cells))


def _value(value):
    return " to ".join(f"{x:.4g}" for x in value) if isinstance(value, (list, tuple)) else f"{value:.4g}"
