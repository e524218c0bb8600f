"""What a distance depends on: preset, number of clips and known damage. The report behind `evaluate --sensitivity`.

The damage is done to real clips and scored against the same clips undamaged, so that the scale starts at zero: a
self-test that the metric answers to what it should, and the more the worse it gets.
"""

import tempfile
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import cast

import numpy as np

from nbp.data.video_io import probe, read_frames, write_video
from nbp.evaluation.corruptions import CORRUPTIONS, corrupted
from nbp.evaluation.features import ALONE, Clips, Extraction, extract_features
from nbp.evaluation.fvd import MIN_CLIPS, frechet_distance
from nbp.evaluation.networks import FeatureNetwork
from nbp.evaluation.protocols import Protocol
from nbp.evaluation.scoring import are_paired, choose, evaluate_sets
from nbp.evaluation.statement import PresetRow, Provenance, Response, provenance
from nbp.evaluation.uncertainty import SampleCurve, limit_notes, sample_curve
from nbp.system.command import UserError
from nbp.system.files import write_json, write_text

MP4_LEVELS = (18, 28, 38, 48)


class Sensitivity(Provenance):
    """What a distance depends on: the number of clips, damage, and the preset."""

    protocol: str
    real: str
    fake: str
    damaged_clips: int
    curve: SampleCurve
    corruptions: dict[str, Response]
    presets: list[PresetRow]
    seed: int
    weights_sha256: str


def mp4(frames: np.ndarray, level: float, rng: np.random.Generator) -> np.ndarray:
    """The frames after h264; the level is x264's crf."""
    even = not (frames.shape[1] % 2 or frames.shape[2] % 2)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "clip.mp4")
        write_video(path, frames, 8, int(level), "yuv420p" if even else "yuv444p", preset="superfast")
        return read_frames(path, range(probe(path).num_frames))


def check_sets(*sets: Clips) -> None:
    """ValueError, before anything is scored: fewer than `MIN_CLIPS` + 1 clips, so no sample curve."""
    for clips in sets:
        if len(clips) <= MIN_CLIPS:
            raise ValueError(f"{clips.name} has {len(clips)} clips; a sensitivity report needs at least "
                             f"{MIN_CLIPS + 1}")


def report_pair(real: Clips, fake: Clips, protocol: Protocol, network: FeatureNetwork, how: Extraction,
                out: str | Path, name: str, presets: Iterable[Protocol],
                open_pair: Callable[[Protocol], tuple[Clips, Clips]], load: Callable[[Protocol], FeatureNetwork],
                max_clips: int = 256, seed: int = 0) -> None:
    """Make all three parts for one pair of sets under `protocol`, that of the sample curve and of the damage, which is
    done to `max_clips` real clips; rank 0 prints and writes them, as OUT/NAME.json and so on. `open_pair` gives the
    pair cut as one of the `presets` says, `load` its network."""
    real_features, fake_features = (extract_features(clips, network, protocol, how) for clips in (real, fake))
    few = real.subset(choose(len(real), max_clips, seed)) if len(real) > max_clips else real
    curve = sample_curve(real_features, fake_features, seed=seed,
                         paired=are_paired(real, range(len(real)), fake, range(len(fake))))
    curve["notes"] = limit_notes(real_features, fake_features)
    report: Sensitivity = {
        "protocol": protocol.name, "real": real.name, "fake": fake.name, "damaged_clips": len(few), "curve": curve,
        "corruptions": responses(few, protocol, network, how),
        "presets": preset_scores(presets, open_pair, load, how, seed), "seed": seed,
        "weights_sha256": network.weights_sha256, **provenance(network.device)}
    if how.rank == 0:
        print(*lines(report), sep="\n")
        print("wrote", *write_report(report, Path(out), name))


def preset_scores(presets: Iterable[Protocol], open_pair: Callable[[Protocol], tuple[Clips, Clips]],
                  load: Callable[[Protocol], FeatureNetwork], how: Extraction, seed: int = 0) -> list[PresetRow]:
    """One row for each preset: its score, or why it can't be had from these sets or weights."""
    rows: list[PresetRow] = []
    for protocol in presets:
        try:
            real, fake = open_pair(protocol)
            [report] = evaluate_sets(real, [fake], protocol, load(protocol), how, allow_fewer=True, seed=seed)
        except (ValueError, UserError) as error:        # the latter: weights that can't be fetched
            rows.append({"preset": protocol.name, "left_out": str(error)})
        else:
            rows.append({"preset": protocol.name, "protocol": report["protocol"],
                         "fvd": cast(float, report["scores"]["fvd"]), "real_clips": report["real"]["clips"],
                         "fake_clips": report["fake"]["clips"], "weights_sha256": report["weights_sha256"]})
    return rows


def responses(clips: Clips, protocol: Protocol, network: FeatureNetwork,
              how: Extraction = ALONE) -> dict[str, Response]:
    """{corruption: its levels, distances to the undamaged clips, and whether they rise from zero with every step}."""
    reference = extract_features(clips, network, protocol, how)
    found: dict[str, Response] = {}
    for name, (damage, levels, unit) in (CORRUPTIONS | {"mp4": (mp4, MP4_LEVELS, "crf")}).items():
        values = []
        for level in levels:
            damaged = corrupted(clips, name, damage, level, protocol.num_frames)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the small-sample bias is zero here: the clips are the same
                values.append(frechet_distance(reference, extract_features(damaged, network, protocol, how)))
        found[name] = {"unit": unit, "levels": list(levels), "fvd": values,
                       "monotone": all(low < high for low, high in zip([0.0, *values], values))}
    return found


def lines(report: Sensitivity) -> list[str]:
    """The report in words, for the terminal."""
    text = [f"presets ({report['fake']} against {report['real']})"]
    for row in report["presets"]:
        text.append(f"  {row['preset']:<16} " + (f"{row['fvd']:<10.4g} {row['protocol']}" if "fvd" in row else
                                                 f"left out: {row['left_out']}"))
    curve = report["curve"]
    text.append(f"clips ({report['protocol']})")
    text += [f"  {clips:<16} {fvd:.4g}" for clips, fvd in zip(curve["clips"], curve["fvd"])]
    text.append(f"  {'infinitely many':<16} {curve['infinite']:.4g}")
    text += [f"  note: {note}" for note in curve["notes"]]
    text.append(f"damage to {report['damaged_clips']} real clips ({report['protocol']})")
    for name, response in report["corruptions"].items():
        steps = ", ".join(f"{level:g}: {fvd:.4g}" for level, fvd in zip(response["levels"], response["fvd"]))
        verdict = "rises" if response["monotone"] else "DOES NOT RISE"
        text.append(f"  {name:<16} {steps} ({response['unit']}); {verdict}")
    return text


def write_report(report: Sensitivity, out: Path, name: str) -> list[Path]:
    """Write OUT/NAME.json, .txt and three pictures; returns their paths."""
    from nbp.reporting import figures

    write_json(out / f"{name}.json", report)
    write_text(out / f"{name}.txt", "\n".join(lines(report)) + "\n")
    pictures = {"presets": figures.presets_figure(report["presets"]),
                "sample_count": figures.curve_figure(report["curve"]),
                "corruptions": figures.corruptions_figure(report["corruptions"])}
    paths = [out / f"{name}_{part}.png" for part in pictures]
    for path, picture in zip(paths, pictures.values()):
        figures.write_figure(picture, path)
    return paths
