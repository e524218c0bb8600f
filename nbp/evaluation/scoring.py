"""Scores of fake sets against a real set under a protocol, and the document that makes them reproducible.

Legend: N clips, D features.
"""

import dataclasses
import warnings
from collections.abc import Sequence

import numpy as np
import torch

from nbp.evaluation.diversity import inception_score
from nbp.evaluation.features import ALONE, Clips, Extraction, extract_features, seen_shape, some_clips
from nbp.evaluation.fvd import MIN_CLIPS, check_enough, frechet_distance, polynomial_mmd
from nbp.evaluation.networks import FeatureNetwork
from nbp.evaluation.protocols import Protocol
from nbp.evaluation.statement import Report, Score, SetStatement, finite, provenance
from nbp.evaluation.uncertainty import limit_notes, uncertainty


def nearest_centroid_accuracy(train_features: np.ndarray, train_labels: np.ndarray, features: np.ndarray,
                              labels: np.ndarray) -> float:
    """Share of clips (M,D) whose nearest class centroid of training clips (N,D) is their own class, an int. Features
    are standardised with the training set's mean and deviation, so that no single one dominates. ValueError: a label
    without training clips, or counts that do not fit."""
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
    distance = torch.cdist(torch.from_numpy(features), torch.from_numpy(centroids))
    return float((classes[distance.argmin(1).numpy()] == labels).mean())


def evaluate_sets(real: Clips, fakes: Sequence[Clips], protocol: Protocol, network: FeatureNetwork,
                  how: Extraction = ALONE, allow_fewer: bool = False, intervals: bool = False,
                  seed: int = 0) -> list[Report]:
    """Score any number of fake sets against one real set, a `Report` for each; with a cache none is extracted twice.
    `allow_fewer` scores sets smaller than the protocol's counts; the printed name says so. With `intervals` also a
    bootstrap interval, k-fold deviation and the extrapolation to infinitely many clips. The seed is for these, and for
    choosing clips where a set is larger than the protocol's count. ValueError: too few clips, real and fake the same
    set, or what extraction refuses."""
    for fake in fakes:
        check_pair(real, fake, protocol)
        scored_counts(protocol, len(real), len(fake), allow_fewer, (real.name, fake.name))
    features = extract_features(real, network, protocol, how)
    reports = []
    for fake in fakes:
        fake_features = extract_features(fake, network, protocol, how)
        reports.append(score_pair(real, features, fake, fake_features, protocol, network, allow_fewer, intervals, seed))
    return reports


def check_pair(real: Clips, fake: Clips, protocol: Protocol, roles: tuple[str, str] = ("real set", "fake set")) -> None:
    """Refuse sets whose distance would say something else than it seems to; `roles` are their names in messages.
    ValueError: both are cut from the same content, or clips that reach the network by different resizing or lengths."""
    if fake.content == real.content:
        raise ValueError(f"{roles[0]} {real.name} and {roles[1]} {fake.name} have the same content")
    (t_real, *size_real), (t_fake, *size_fake) = seen_shape(real, protocol), seen_shape(fake, protocol)  # T, H W C
    for frames, name in ((t_real, real.name), (t_fake, fake.name)):
        if protocol.num_frames is not None and frames < protocol.num_frames:
            raise ValueError(f"clips of {name} have {frames} frames; protocol {protocol.name} needs "
                             f"{protocol.num_frames}")
    if protocol.resolution is None and size_real != size_fake:
        raise ValueError(f"clips of {real.name} have {size_real[0]}x{size_real[1]} pixels and clips of {fake.name} "
                         f"{size_fake[0]}x{size_fake[1]}: their resizing would be scored. A data config as the real "
                         "set cuts it as its model's clips were cut; where both show the same part of the picture, "
                         "--set resolution=N (protocol=\"NAME+resolution=N\") brings them to N pixels")
    if protocol.num_frames is None and t_real != t_fake:
        raise ValueError(f"clips of {real.name} have {t_real} frames and clips of {fake.name} {t_fake}; --set "
                         "frames=N scores the first N of both")


def warn_of_squashing(real: Clips, fake: Clips, protocol: Protocol) -> None:
    """Warn of sets of other proportions that the protocol squashes to one size: right only for fake clips of a model
    that saw squashed frames."""
    sizes = [seen_shape(clips, protocol)[1:3] for clips in (real, fake)]      # (H, W) each
    if protocol.fit == "squash" and sizes[0][0] * sizes[1][1] != sizes[0][1] * sizes[1][0]:
        warnings.warn(f"clips of {real.name} have {sizes[0][0]}x{sizes[0][1]} pixels, those of {fake.name} "
                      f"{sizes[1][0]}x{sizes[1][1]}: both are squashed to a square, which is right only where the "
                      "latter were squashed as well, not cut", stacklevel=2)


def scored_counts(protocol: Protocol, have_real: int, have_fake: int, allow_fewer: bool,
                  names: tuple[str, str] = ("the real set", "the fake set"),
                  fewest: int = MIN_CLIPS) -> tuple[int, int, int, Protocol]:
    """(real clips, fake clips per repeat, repeats, protocol as it is then called); `names` of the sets are for
    messages. ValueError: a set is smaller than the protocol asks for and `allow_fewer` is not given, or than `fewest`.
    """
    num_real, repeats = protocol.num_real or have_real, protocol.repeats
    num_fake = protocol.num_fake or have_fake // repeats
    if have_real < num_real or have_fake < num_fake * repeats:
        if not allow_fewer:
            raise ValueError(f"protocol {protocol.name} asks for {num_real} real and {repeats} x {num_fake} fake "
                             f"clips; {names[0]} has {have_real} and {names[1]} {have_fake}. Give more, or "
                             "--allow-fewer (allow_fewer=True), which marks the score")
        num_real, num_fake = min(num_real, have_real), min(num_fake, have_fake)
        repeats = max(1, min(repeats, have_fake // num_fake))
        protocol = protocol.replace(num_real=num_real, num_fake=num_fake, repeats=repeats)
    for count, name in ((num_real, "real"), (num_fake, "fake")):
        if count < fewest:
            check_enough(count, name)
    return num_real, num_fake, repeats, protocol


def score_pair(real: Clips, real_features: np.ndarray, fake: Clips, fake_features: np.ndarray, protocol: Protocol,
               network: FeatureNetwork, allow_fewer: bool = False, intervals: bool = False,
               seed: int = 0) -> Report:
    """Scores of one pair of sets from their features, with everything needed to get them again. Values that are not
    finite are None, and a note says so."""
    num_real, num_fake, repeats, protocol = scored_counts(protocol, len(real), len(fake), allow_fewer,
                                                          (real.name, fake.name))
    chosen, parts = choose(len(real), num_real, seed), choose_parts(len(fake), num_fake, repeats, seed)
    pooled = np.concatenate(parts)
    real_features, fake_features = real_features[chosen], fake_features[pooled]
    paired = repeats == 1 and are_paired(real, chosen, fake, pooled)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        measured: dict[str, Score] = {**distances(real_features, np.split(fake_features, repeats), paired)}
        stated = state_pair(real, num_real, fake, num_fake, protocol, network, seed)
        warn_of_squashing(real, fake, protocol)
    measured["inception_score_i3d"] = inception_score(fake_features)
    if intervals:
        measured |= uncertainty(real_features, fake_features, seed, repeats, paired)
    accuracy, notes = class_accuracy(real, chosen, real_features, fake, pooled, fake_features)
    scores, not_finite = finite(measured | accuracy)
    notes += [*not_finite, *(str(warning.message) for warning in caught), *([network.note] if network.note else [])]
    if "fvd_infinite" in scores:
        notes += limit_notes(real_features, fake_features)
    stated |= {"scores": scores, "notes": sorted(set(notes))}
    return stated


def state_pair(real: Clips, num_real: int, fake: Clips, num_fake: int, protocol: Protocol, network: FeatureNetwork,
               seed: int = 0) -> Report:
    """A report of so many clips of two sets that lacks its scores and notes."""
    return {
        "protocol": protocol.name,
        "protocol_fields": dataclasses.asdict(protocol),
        "real": stated_set(real, num_real, protocol),
        "fake": stated_set(fake, num_fake, protocol),
        "scores": {},
        "notes": [],
        "weights_sha256": network.weights_sha256,
        "weights_tensors_sha256": network.tensors_sha256,
        "seed": seed,
        **provenance(network.device),
    }


def are_paired(real: Clips, chosen: Sequence[int] | np.ndarray, fake: Clips,
               pooled: Sequence[int] | np.ndarray) -> bool:
    """Whether each chosen fake clip is made from the real clip of its place, as reconstructions and predictions are."""
    if real.paths is None or fake.paths is None or len(chosen) != len(pooled):
        return False
    return all(real.paths[a] and real.paths[a] == fake.paths[b] for a, b in zip(chosen, pooled))


def distances(real: np.ndarray, parts: Sequence[np.ndarray], paired: bool = False) -> dict[str, float]:
    """Distances between features (N,D) and each of several parts (M,D), as means over these; for `paired` see
    `polynomial_mmd`."""
    fvds = [frechet_distance(real, part) for part in parts]
    scores = {"fvd": float(np.mean(fvds))}
    if len(parts) > 1:
        scores["fvd_deviation"] = float(np.std(fvds, ddof=1))
    return scores | {"kvd": float(np.mean([polynomial_mmd(real, part, paired) for part in parts]))}


def class_accuracy(real: Clips, chosen: np.ndarray, real_features: np.ndarray, fake: Clips, pooled: np.ndarray,
                   fake_features: np.ndarray) -> tuple[dict[str, float], list[str]]:
    """({"class_accuracy": ...}, notes) of the clips that are scored; nothing where a clip has no class."""
    if real.labels is None or fake.labels is None:
        return {}, []
    real_labels, fake_labels = real.labels[chosen], fake.labels[pooled]
    if min(real_labels.min(), fake_labels.min()) < 0:
        return {}, []
    if unknown := sorted(set(fake_labels.tolist()) - set(real_labels.tolist())):
        return {}, [f"class_accuracy is left out: {fake.name} has classes that the scored real clips lack: "
                    f"{', '.join(map(str, unknown))}"]
    return {"class_accuracy": nearest_centroid_accuracy(real_features, real_labels, fake_features, fake_labels)}, []


def stated_set(clips: Clips, count: int, protocol: Protocol) -> SetStatement:
    """What a report says of a set: its content, and the clips as the protocol looks at them; warns where they have
    several sizes, of which the first is stated."""
    first, *others = some_clips(clips)
    frames, height, width, _ = first[:protocol.num_frames].shape
    if any(clip.shape[1:] != first.shape[1:] for clip in others):
        warnings.warn(f"{clips.name} has clips of several sizes, which are all brought to {protocol.resolution} "
                      "pixels; that of the first is stated")
    return {"name": clips.name, "clips": count, "of": len(clips), "frames": frames, "height": height, "width": width,
            "dtype": str(first.dtype).removeprefix("torch."), "fps": clips.rates(), "sha256": clips.fingerprint}


def choose(total: int, count: int, seed: int) -> np.ndarray:
    """`count` of `total` clips, drawn once per seed; all of them in order where they are all used."""
    if count == total:
        return np.arange(total)
    return np.sort(np.random.default_rng(seed).permutation(total)[:count])


def choose_parts(total: int, count: int, repeats: int, seed: int) -> list[np.ndarray]:
    """`repeats` disjoint sets of `count` clips: each drawn from everywhere, since sets are often ordered by class."""
    if repeats == 1:
        return [choose(total, count, seed)]
    drawn = np.random.default_rng(seed).permutation(total)[:count * repeats]
    return [np.sort(part) for part in np.split(drawn, repeats)]
