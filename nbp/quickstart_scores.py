"""Score every clip set of a quickstart run once: python -m nbp.quickstart_scores RUN --data configs/data/procgen.yaml

Writes RUN/scores.json. The real set of every distance is RUN/reconstruction/real.npz (validation clips).
Class consistency: share of clips whose nearest class centroid, in standardised I3D logits, is their own class;
the centroids are those of training clips, so nothing that is judged took part in them, real clips included.
Features are kept in RUN/features: a stopped run goes on, and a set that did not change is not read again.
Legend: N clips, T H W pixels, D features.
"""

import argparse
import dataclasses
import hashlib
from pathlib import Path

import numpy as np
import torch

from nbp import clipset
from nbp.clipsource import open_clips
from nbp.evaluation import quality
from nbp.evaluation.features import Clips, extract_features, load_network
from nbp.evaluation.lpips import LPIPS
from nbp.evaluation.protocols import get_protocol, to_video
from nbp.evaluation.scoring import nearest_centroid_accuracy, provenance, report
from nbp.evaluation.uncertainty import bootstrap_interval
from nbp.fetch import fetch_i3d, fetch_lpips
from nbp.files import progress, read_json, write_json

SETS = {"reconstruction": "reconstruction", "pooled": "baselines/pooled", "generated": "generated",
        "class_tokens": "baselines/class_tokens", "uniform_tokens": "baselines/uniform_tokens",
        "predicted": "predicted", "frozen": "baselines/frozen"}
PROTOCOL = "quickstart"
LPIPS_NET = "alex"   # the tokenizer is trained with VGG: the other network judges without having been optimised


def main(arguments=None):
    options = parse(arguments)
    run = Path(options.run)
    real = open_clips(run / "reconstruction" / "real.npz")
    fakes = {name: open_clips(run / folder) for name, folder in SETS.items()}
    train = some_of_each_class(open_clips(options.data, split="train"), options.clips_per_centroid)
    protocol = get_protocol(PROTOCOL)
    network = load_network(protocol.network, fetch_i3d(options.ckpt), options.device)

    def features(clips):
        return extract_features(clips, network, protocol, run / "features", num_workers=0)

    judge = Judge(features(train), train.labels)
    real_features = features(real)
    scores = {"real": judge(real_features, real.labels), "train": {}}
    alike = some_of_each_class(train, len(real) // len(set(real.labels.tolist())))
    details = [scored(scores["train"], real, real_features, alike, features(alike), protocol, network)]
    for name, clips in fakes.items():
        fake_features = features(clips)
        scores[name] = judge(fake_features, clips.labels)
        details.append(scored(scores[name], real, real_features, clips, fake_features, protocol, network))
    for name in ("reconstruction", "pooled"):
        scores[name] |= pair_quality(run / SETS[name], run / "reconstruction" / "real.npz", options)
    scores["reconstruction"] |= code_use(run)
    write_json(run / "scores.json", {
        "protocol": protocol.name, "protocol_fields": dataclasses.asdict(protocol),
        "weights_sha256": network.weights_sha256, "lpips_net": LPIPS_NET,
        "centroids": {"source": train.name, "clips": len(train)}, "sets": scores,
        "notes": sorted({note for detail in details for note in detail["notes"]}), **provenance()})
    for name, values in scores.items():
        print(f"{name:16s} " + "  ".join(f"{key} {value:.4g}" for key, value in values.items()
                                         if isinstance(value, (int, float))))
    print(f"wrote {run / 'scores.json'}")


class Judge:
    """Class consistency of sets, by the centroids of one labelled set.

    Args:
        features: (N,D) of the labelled set.
        labels: (N,) ints.
    """

    def __init__(self, features, labels):
        self.features, self.labels = features, labels

    def __call__(self, features, labels):
        """{"clips", "class_consistency", "class_consistency_by_class": {label: share}} of features (M,D)."""
        shares = {label: nearest_centroid_accuracy(self.features, self.labels, features[labels == label],
                                                   labels[labels == label]) for label in sorted(set(labels.tolist()))}
        return {"clips": len(labels), "class_consistency": nearest_centroid_accuracy(self.features, self.labels,
                                                                                     features, labels),
                "class_consistency_by_class": shares}


def scored(scores, real, real_features, fake, fake_features, protocol, network):
    """Add distances with their interval to `scores`; returns the full report of the pair."""
    pair = report(real, real_features, fake, fake_features, protocol, network)
    scores["clips"] = len(fake)
    scores["fvd"], scores["kvd"] = pair["scores"]["fvd"], pair["scores"]["kvd"]
    scores["fvd_interval_95"] = bootstrap_interval(real_features, fake_features)
    return pair


def some_of_each_class(clips, count):
    """A smaller set: `count` clips of each class, evenly spread over the list, or all of a class that has fewer.

    Raises:
        ValueError: clips without labels.
    """
    if clips.labels is None or clips.labels.min() < 0:
        raise ValueError(f"{clips.name} has clips without a class; class centroids need labels")
    chosen = []
    for label in sorted(set(clips.labels.tolist())):
        places = np.flatnonzero(clips.labels == label)
        chosen += places[np.unique(np.linspace(0, len(places) - 1, count).astype(int))].tolist()
    digest = hashlib.sha256(f"{clips.fingerprint} {chosen}".encode()).hexdigest()
    return Clips(f"{clips.name}, {len(chosen)} clips", len(chosen), lambda number: clips.read(chosen[number]), digest,
                 clips.labels[chosen])


@torch.inference_mode()
def pair_quality(folder, real_path, options, batch_size=8):
    """Mean PSNR (of clips), SSIM and LPIPS over all frames of a clip set against its originals.

    Raises:
        ValueError: the sets do not hold the same clips in the same order.
    """
    fake, real = clipset.load(folder), clipset.read_arrays(real_path)
    if fake["path"].tolist() != real["path"].tolist() or fake["video"].shape != real["video"].shape:
        raise ValueError(f"{folder} and {real_path} do not hold the same clips: {fake['video'].shape} and "
                         f"{real['video'].shape}; make them again")
    model = LPIPS.from_file(fetch_lpips(LPIPS_NET, options.ckpt), LPIPS_NET).to(options.device)
    sums = {"psnr": 0.0, "ssim": 0.0, "lpips": 0.0}
    starts = range(0, len(fake["video"]), batch_size)
    for start in progress(starts, len(starts), f"quality of {folder}", "batches"):
        pair = [to_video(arrays["video"][start:start + batch_size]).to(options.device) for arrays in (fake, real)]
        sums["psnr"] += float(quality.psnr(*pair).sum())
        sums["ssim"] += float(quality.ssim(*pair).sum())
        sums["lpips"] += float(quality.lpips(model, *pair).sum())
    return {name: total / len(fake["video"]) for name, total in sums.items()}


def code_use(run):
    """Code usage and perplexity over the reconstruction's tokens, and the size of the codebook."""
    levels = read_json(run / "tokenizer" / "model" / "config.json")["config"]["fsq_levels"]
    num_codes = int(np.prod(levels))
    indices = torch.from_numpy(clipset.load(run / "reconstruction")["indices"])
    return quality.code_statistics(quality.count_codes(indices, num_codes)) | {"num_codes": num_codes}


def parse(arguments):
    parser = argparse.ArgumentParser(prog="python -m nbp.quickstart_scores", description=__doc__.splitlines()[0])
    parser.add_argument("run", help="folder of the quickstart run")
    parser.add_argument("--data", required=True, help="data config, for the training clips of the class centroids")
    parser.add_argument("--clips-per-centroid", type=int, default=12)
    parser.add_argument("--ckpt", default="ckpt", help="folder of fetched weights")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
