"""Score every clip set of a quickstart run once: python -m nbp.quickstart.scores RUN --data configs/data/procgen.yaml

Writes RUN/scores.json. The real set of every distance is RUN/reconstruction/real.npz (validation clips).
Class consistency: share of clips whose nearest class centroid, in standardised features of AlexNet, is their own class
(`nbp/evaluation/recognition.py`; by I3D's logits beside it); the centroids are those of training clips, so nothing that
is judged took part in them, real clips included.
What is generated and predicted is judged against real clips, and in the tokenizer's own pictures, which leaves the
tokenizer's part out: against its reconstructions, next to random tokens, or with reconstructed given frames next to the
frozen reconstructed frame.
Features are kept in RUN/features: a stopped run goes on, and a set that did not change is not read again.
Legend: N clips, D features.
"""

import argparse
import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch

from nbp.data import clip_set
from nbp.evaluation.features import Clips, Extraction, extract_features
from nbp.evaluation.fvd import frechet_distance, polynomial_mmd
from nbp.evaluation.lpips import LPIPS
from nbp.evaluation.networks import load_network
from nbp.evaluation.paired import paired_scores
from nbp.evaluation.protocols import get_protocol
from nbp.evaluation.recognition import recognition_features
from nbp.evaluation.scoring import are_paired, nearest_centroid_accuracy, provenance
from nbp.evaluation.uncertainty import bootstrap_interval
from nbp.hub.fetch import fetch_i3d, fetch_lpips
from nbp.quickstart.baselines import clips_of, freeze
from nbp.system.command import run_command
from nbp.system.files import read_json, write_json
from nbp.system.progress import progress
from nbp.workflows.clip_sources import open_clips

SETS = {"reconstruction": "reconstruction", "pooled": "baselines/pooled", "generated": "generated",
        "class_tokens": "baselines/class_tokens", "uniform_tokens": "baselines/uniform_tokens",
        "predicted": "predicted", "frozen": "baselines/frozen"}
# What is compared with the tokenizer's reconstructions: what it decoded, with given frames reconstructed too.
IN_OWN_PICTURES = {"generated": "generated", "class_tokens": "class_tokens", "uniform_tokens": "uniform_tokens",
                   "predicted": "predicted, own pictures", "frozen": "frozen, own pictures"}
PROTOCOL = "quickstart"
Scores: TypeAlias = dict[str, Any]  # what scores.json says of one set
PIXEL_SCORES = ("psnr", "ssim", "lpips", "frame_difference_error", "code_usage", "code_perplexity")


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    run, protocol = Path(options.run), get_protocol(PROTOCOL)
    sets = {"real": open_clips(run / "reconstruction" / "real.npz"),
            **{name: open_clips(run / folder) for name, folder in SETS.items()}}
    train, train_labels = some_of_each_class(open_clips(options.data, split="train"), options.clips_per_centroid)
    # I3D looks at some clips of each class: on two cores all of them would take longer than training.
    few = {name: some_of_each_class(clips, options.fvd_clips_per_class)
           for name, clips in {"train": train, **sets, **own_pictures(run)}.items()}
    network = load_network(protocol.network, fetch_i3d(options.ckpt), options.device)
    how = Extraction(run / "features")
    features = {name: extract_features(clips, network, protocol, how) for name, (clips, _) in few.items()}
    alexnet = LPIPS.from_file(fetch_lpips("alex", options.ckpt), "alex").to(options.device)
    seen = {name: recognition_features(np.stack([clips.read(number) for number in range(len(clips))]), alexnet)
            for name, clips in {"train": train, **sets}.items()}

    scores = {name: consistency(seen["train"], train_labels, seen[name], labels_of(clips))
              | {"class_consistency_i3d": nearest_centroid_accuracy(features["train"], few["train"][1],
                                                                    features[name], few[name][1]),
                 "fvd_clips": len(features[name])} for name, clips in sets.items()}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        # Training clips against held-out ones: what a perfect generator would score.
        scores["train"] = {"clips": len(features["train"])}
        for name in progress(("train", *SETS), 1 + len(SETS), "distances", "sets"):
            paired = are_paired(few["real"][0], range(len(few["real"][0])), few[name][0], range(len(few[name][0])))
            scores[name] |= distances(features["real"], features[name], options.draws, options.seed, paired)
        for name, pictures in IN_OWN_PICTURES.items():
            scores[name]["fvd_to_reconstructions"] = frechet_distance(features["reconstruction"], features[pictures])
    lpips_net, pixels = pixel_scores(run, options)
    for name, values in pixels.items():
        scores[name] |= values
    report = {
        "protocol": protocol.name, "protocol_fields": dataclasses.asdict(protocol), "seed": options.seed,
        "weights_sha256": network.weights_sha256, "lpips_net": lpips_net, "sets": scores,
        "centroids": {"source": train.name, "clips": len(train)},
        "notes": sorted({str(warning.message) for warning in caught}), **provenance()}
    write_json(run / "scores.json", report)
    state(report)
    print(f"wrote {run / 'scores.json'}")


def own_pictures(run: Path) -> dict[str, Clips]:
    """Predicted and frozen clips whose given frames are reconstructed ones, of the clips that were predicted."""
    predicted = clip_set.load(run / SETS["predicted"])
    given = read_json(run / SETS["predicted"] / "meta.json")["prefix_frames"]
    folder = run / SETS["reconstruction"]
    rebuilt = clips_of(clip_set.load(folder), predicted["path"], str(folder))
    continued = np.concatenate([rebuilt["video"][:, :given], predicted["video"][:, given:]], axis=1)
    return {f"{name}, own pictures": Clips.from_array(f"{run}, {name} in the tokenizer's pictures", video,
                                                      rebuilt["label"])
            for name, video in (("predicted", continued), ("frozen", freeze(rebuilt["video"], given)))}


def state(report: Mapping[str, Any]) -> None:
    """Print protocol, scores and notes."""
    fields = ", ".join(f"{name}={value}" for name, value in report["protocol_fields"].items() if name != "name")
    print(f"protocol {report['protocol']}: {fields}\nI3D weights sha256 {report['weights_sha256'][:12]}, LPIPS network "
          f"{report['lpips_net']}, seed {report['seed']}, commit {report['commit']}")
    for name, values in report["sets"].items():
        print(f"{name:16s} " + "  ".join(f"{key} {value:.4g}" for key, value in values.items()
                                         if isinstance(value, (int, float))))
    for note in report["notes"]:
        print(f"note: {note}")


def distances(real: np.ndarray, fake: np.ndarray, draws: int, seed: int, paired: bool = False) -> Scores:
    """Frechet distance with its interval over `draws` resampled sets, and kernel distance, of features (N,D), (M,D);
    `paired`: rows of one place belong to one video."""
    return {"fvd": frechet_distance(real, fake),
            "fvd_interval_95": bootstrap_interval(real, fake, draws, seed=seed, paired=paired),
            "kvd": polynomial_mmd(real, fake, paired)}


def consistency(train_features: np.ndarray, train_labels: np.ndarray, features: np.ndarray,
                labels: np.ndarray) -> Scores:
    """Class consistency of a set, features (M,D) and labels (M,), by the centroids of training clips (N,D), (N,): of
    all, and {label: share}."""
    judge = partial(nearest_centroid_accuracy, train_features, train_labels)
    shares = {label: judge(features[labels == label], labels[labels == label]) for label in np.unique(labels).tolist()}
    return {"clips": len(labels), "class_consistency": judge(features, labels), "class_consistency_by_class": shares}


def some_of_each_class(clips: Clips, count: int) -> tuple[Clips, np.ndarray]:
    """`count` clips of each class, evenly spread over the set, or all of a class that has fewer; and their labels."""
    labels, chosen = labels_of(clips), []
    for label in np.unique(labels).tolist():
        places = np.flatnonzero(labels == label)
        chosen += places[np.unique(np.linspace(0, len(places) - 1, count).astype(int))].tolist()
    return clips.subset(chosen), labels[chosen]


def labels_of(clips: Clips) -> np.ndarray:
    """Labels (N,) of a set. ValueError: clips without a class."""
    if clips.labels is None or clips.labels.min() < 0:
        raise ValueError(f"{clips.name} has clips without a class; class centroids need labels")
    return clips.labels


def pixel_scores(run: Path, options: argparse.Namespace) -> tuple[str, dict[str, Scores]]:
    """PSNR, SSIM, LPIPS and frame-difference error of reconstructions, with their code use, as `nbp.reconstruct`
    measured them, and of pooled pixels. ValueError: these are of other clips than the reconstructed ones."""
    measured = read_json(run / "reconstruction" / "scores.json")
    pooled = clip_set.load(run / SETS["pooled"])
    real = clip_set.read_arrays(run / "reconstruction" / "real.npz")
    if pooled["path"].tolist() != real["path"].tolist():
        raise ValueError(f"{run / SETS['pooled']} does not hold the clips of {run / 'reconstruction'}; make it again")
    net = measured["lpips_net"]
    model = LPIPS.from_file(fetch_lpips(net, options.ckpt), net)
    own = {name: value for name, value in measured["scores"].items() if name in PIXEL_SCORES}
    return net, {"reconstruction": own, "pooled": paired_scores(pooled["video"], real["video"], model,
                                                                device=options.device)}


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m nbp.quickstart.scores", description=__doc__.splitlines()[0])
    parser.add_argument("run", help="folder of the quickstart run")
    parser.add_argument("--data", required=True, help="data config, for the training clips of the class centroids")
    parser.add_argument("--clips-per-centroid", type=int, default=20, help="training clips of each class")
    parser.add_argument("--fvd-clips-per-class", type=int, default=5, help="clips of each class that distances take")
    parser.add_argument("--draws", type=int, default=50, help="resampled sets for the intervals of distances")
    parser.add_argument("--seed", type=int, default=0, help="of the resampling")
    parser.add_argument("--ckpt", default="ckpt", help="folder of fetched weights")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    run_command(main)
