"""The sections of the report, each a function of the run that returns HTML text."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nbp.reporting import clips, figures, page
from nbp.reporting.checks import Check
from nbp.reporting.inputs import Run

CLIP_FPS = 7.5
SET_NAMES = {
    "real": "real validation clips", "train": "real training clips", "reconstruction": "reconstructions",
    "pooled": "pooled pixels", "generated": "generated", "class_tokens": "tokens by class frequency",
    "uniform_tokens": "uniform random tokens", "predicted": "predicted", "frozen": "last given frame repeated"}


def protocol(scores: Mapping[str, Any]) -> str:
    """What the scores were measured with, in a line."""
    fields = scores["protocol_fields"]
    frames = "all frames" if fields["num_frames"] is None else f"the first {fields['num_frames']} frames"
    return (f"Scores by the protocol {scores['protocol']}: Frechet distances over {frames} with {fields['network']} "
            f"(I3D, Kinetics-400, sha256 {scores['weights_sha256'][:12]}), LPIPS with the {scores['lpips_net']} "
            f"network, resampling with seed {scores['seed']}.")


def summary(run: Run, results: Sequence[Check]) -> str:
    """What this is, and the figures that matter."""
    scores, seconds = run.scores["sets"], sum(row["seconds"] for row in run.stages)
    peak = max(row["peak_memory_bytes"] for row in run.stages)
    reached = sum(check.passed for check in results)
    return "\n".join([
        "<h1>Next-block video generation, from nothing to scores</h1>",
        page.paragraph("A video tokenizer and a block-causal generator, trained from scratch for "
                       f"{run.num_steps['tokenizer']} and {run.num_steps['generator']} steps on {run.num_train} clips "
                       f"of {len(run.classes)} Procgen games. Everything below was made by one "
                       f"command on one machine; scores are measured on {scores['real']['clips']} clips of levels that "
                       f"no training saw, distances on {_of_distances(scores['real'])} of them."),
        page.paragraph(protocol(run.scores), soft=True),
        page.tiles({
            "checks reached": f"{reached} of {len(results)}",
            "reconstruction PSNR": f"{scores['reconstruction']['psnr']:.2f} dB",
            "rFVD": f"{scores['reconstruction']['fvd']:.1f}", "gFVD": f"{scores['generated']['fvd']:.1f}",
            "class consistency": f"{scores['generated']['class_consistency']:.0%}",
            "next-block against next-token": f"{run.benchmark['speedup']:.1f}x",
            "all stages": f"{seconds / 60:.1f} min", "peak memory": f"{peak / 2**30:.2f} GiB"})])


def verdicts(run: Run, results: Sequence[Check]) -> str:
    """The checks as a table, and what limits those that are missed."""
    rows = [(check.name, _number(check.value, check.name), check.required, check.baseline,
             page.verdict(check.passed, _distance(check))) for check in results]
    missed = [check.name for check in results if not check.passed]
    words = "Every requirement is reached." if not missed else f"Not reached: {'; '.join(missed)}."
    return page.section("Checks", page.paragraph(words),
                        page.table(("what", "measured", "required", "beside it", ""), rows, numbers=(1,)),
                        *([page.paragraph(limits(run))] if missed else []),
                        page.paragraph("Baselines are measured in the same run with the same code. Pooled pixels are "
                                       "the real clips averaged over the tokenizer's grid and spread out again. Tokens "
                                       "by class frequency are drawn one by one from how often their class uses each "
                                       "code, then decoded by the same tokenizer.", soft=True))


def limits(run: Run) -> str:
    """What the figures of this run say about why they are not better."""
    spent = {row["name"]: row["seconds"] for row in run.stages}
    psnr, loss = (_last_third(run.curves[kind][name][1]) for kind, name in (("tokenizer", "val/psnr"),
                                                                            ("generator", "val/loss")))
    rebuilt = run.scores["sets"]["reconstruction"]
    return (f"What limits it: the tokenizer was trained for {_duration(spent['tokenizer'])}, and its validation PSNR "
            f"still changed by {psnr:+.2f} dB in the last third; the generator for {_duration(spent['generator'])}, "
            f"and its validation loss changed by {loss:+.2f} nats in the last third. What is generated comes out "
            f"of the same decoder as the reconstructions (FVD {rebuilt['fvd']:.1f}, class consistency "
            f"{rebuilt['class_consistency']:.0%}).")


def reconstructions(run: Run) -> str:
    """Real, reconstructed and pooled clips side by side, the first of each class."""
    sets = [run.clips[name] for name in ("real", "reconstruction", "pooled")]
    items, rows = [], []
    for label, place in _first_of_class(sets[0]["label"]):
        joined = [arrays["video"][place] for arrays in sets]
        items.append(page.clip(clips.moving(clips.side_by_side(joined), CLIP_FPS), run.classes[label],
                               columns=("real", "reconstructed", "pooled")))
        rows += [(f"{run.classes[label]} {name}", video) for name, video in zip(("real", "recon.", "pooled"), joined)]
    clips.write_sheet(run.folder / "sheet_reconstruction.png", rows)
    return page.section("Reconstruction", page.paragraph(
        "Held-out clips, what the tokenizer makes of them, and the same latent grid in raw pixels. Half speed."),
        page.clips(items, 400))


def generated(run: Run) -> str:
    """Generated clips, a row for each class, and their class consistency."""
    arrays, scores = run.clips["generated"], run.scores["sets"]
    items, rows = [], []
    for label, _ in _first_of_class(arrays["label"]):
        chosen = arrays["video"][arrays["label"] == label][:8]
        share = scores["generated"]["class_consistency_by_class"][str(label)]
        narrow = len(chosen) < 4
        items.append(page.clip(clips.moving(clips.side_by_side(list(chosen)), CLIP_FPS), run.classes[label],
                               f"{share:.0%} recognised"))
        rows += [(f"{run.classes[label]} {number}", clip) for number, clip in enumerate(chosen[:2])]
    clips.write_sheet(run.folder / "sheet_generated.png", rows)
    chart = figures.write_figure(figures.consistency_figure(scores, run.classes),
                                 run.folder / "figure_consistency.png")
    return page.section("Generation", page.paragraph(
        "Clips from nothing but a class: the first that were made, none picked out. Half speed. Recognised are those "
        "whose nearest class centroid is that of their class."),
        page.clips(items, 180 if narrow else 1040),
        page.figure(chart, "A clip counts where the nearest class centroid of AlexNet features, from training clips, "
                           "is that of its own class."))


def predicted(run: Run) -> str:
    """Continued clips next to the truth, the first of each class, the given frames marked."""
    arrays, real = run.clips["predicted"], run.clips["real"]
    given = run.num_given
    place_of = {path: number for number, path in enumerate(real["path"].tolist())}
    items, rows = [], []
    for label, place in _first_of_class(arrays["label"]):
        truth = real["video"][place_of[str(arrays["path"][place])]]
        three = (truth, arrays["video"][place], run.clips["frozen"]["video"][place])
        marked = [clips.mark_given(clip, count) for clip, count in zip(three, (len(truth), given, given))]
        items.append(page.clip(clips.moving(clips.side_by_side(marked), CLIP_FPS), run.classes[label],
                               columns=("truth", "predicted", "last frame repeated")))
        rows += [(f"{run.classes[label]} {name}", clip) for name, clip in zip(("truth", "predicted", "frozen"), marked)]
    clips.write_sheet(run.folder / "sheet_predicted.png", rows)
    total = arrays["video"].shape[1]
    return page.section("Prediction", page.paragraph(
        f"{given} frames are given, {total - given} predicted. A blue frame: this picture is real; a dark one: it "
        "is predicted, or repeated. Half speed."), page.clips(items, 400))


def training(run: Run) -> str:
    """Curves of both models, also written as PNG files into the run folder."""
    tokenizer = figures.curves_figure(run.curves["tokenizer"], figures.TOKENIZER_PANELS, run.phases)
    chance = math.log(run.generator.num_codes)
    generator = figures.curves_figure(run.curves["generator"], figures.GENERATOR_PANELS,
                                      reference=("Loss (nats a token)", chance, "uniform over all codes"))
    return page.section(
        "Training", page.figure(figures.write_figure(tokenizer, run.folder / "figure_tokenizer.png"),
                                "Tokenizer, by optimizer step. Dotted: the clips get longer."),
        page.figure(figures.write_figure(generator, run.folder / "figure_generator.png"),
                    "Generator, by optimizer step."))


def mask(run: Run) -> str:
    """Which position of the generator sees which, as a picture with its words."""
    config = run.generator
    start = ("The first block is predicted token by token, the others whole." if config.start == "hybrid"
             else "Every block is predicted whole.")
    t, h, w = config.block_shape
    return page.section("The block-causal mask", page.paragraph(
        f"The mask of this very model: the condition, then the {math.prod(config.grid)} tokens of a "
        f"{'x'.join(map(str, config.grid))} grid in blocks of {t}x{h}x{w} (frames x rows x columns). A position sees "
        f"its own block and everything before it. {start}"),
        page.figure(figures.write_figure(figures.mask_figure(config), run.folder / "figure_mask.png"),
                    "Ink: attention is allowed."))


def metrics(run: Run) -> str:
    """Every score, and the protocol in full."""
    columns = {"fvd_clips": "of distances", "fvd": "FVD", "fvd_interval_95": "95 % interval", "kvd": "KVD",
               "class_consistency": "class consistency", "class_consistency_i3d": "by I3D",
               "fvd_to_reconstructions": "FVD to reconstructions", "psnr": "PSNR (dB)", "ssim": "SSIM",
               "lpips": "LPIPS", "frame_difference_error": "flicker"}
    rows = [(title, run.scores["sets"][name]["clips"], *(_cell(run.scores["sets"][name], key) for key in columns))
            for name, title in SET_NAMES.items()]
    rebuilt, protocol = run.scores["sets"]["reconstruction"], run.scores["protocol_fields"]
    fields = {name: "all" if value is None and name.startswith("num") else "as it comes" if value is None else value
              for name, value in protocol.items()}
    return page.section(
        "All scores", page.table(("set", "clips", *columns.values()), rows, numbers=range(1, 13)),
        page.paragraph(f"The tokenizer used {rebuilt['code_usage']:.1%} of its {run.generator.num_codes} codes on the "
                       f"validation clips, with a perplexity of {rebuilt['code_perplexity']:.0f}. Flicker is the root "
                       "mean square error of the changes from frame to frame, in grey levels."),
        page.paragraph("Frechet distances of so few clips are biased upwards by far: they compare sets of this run, "
                       "and not this run with published figures. Real training clips show what a perfect generator "
                       "would score here. Predicted and repeated clips keep their given frames."),
        page.definitions({
            **{f"protocol {name}" if name == "name" else name: value for name, value in fields.items()},
            "real set": f"{run.scores['sets']['real']['clips']} validation clips, of distances "
                        f"{_of_distances(run.scores['sets']['real'])}",
            "class centroids": run.scores["centroids"]["source"],
            "LPIPS": f"{run.scores['lpips_net']} network, every frame", "I3D weights": run.scores["weights_sha256"],
            **{f"note {number}": note for number, note in enumerate(run.scores["notes"], 1)}}))


def speed(run: Run) -> str:
    """Next-block against next-token prediction."""
    rows = []
    for name, title in (("next_block", "next-block"), ("next_token", "next-token")):
        row = run.benchmark[name]
        rows.append((title, "x".join(map(str, row["block_shape"])), row["num_steps"], f"{row['seconds']:.3f} s"))
    return page.section("Next-block against next-token", page.paragraph(
        f"The same transformer makes the same clip: {run.benchmark['speedup']:.2f} times as fast in blocks. Decoding "
        f"to pixels takes {run.benchmark['decode_s']:.3f} s more in both cases."),
        page.table(("prediction", "block", "steps", "seconds a clip"), rows, numbers=(2, 3)))


def stages(run: Run) -> str:
    """Time, memory and command of each stage."""
    longest = max(row["seconds"] for row in run.stages) or 1.0
    rows = [(row["name"], _duration(row["seconds"]), page.bar(row["seconds"] / longest),
             f"{row['peak_memory_bytes'] / 2**30:.2f} GiB", row["attempts"], page.code(row["command"]))
            for row in run.stages if row["finished"]]
    return page.section(
        "Stages", page.table(("stage", "time", "", "peak memory", "runs", "command"), rows, numbers=(1, 3, 4)),
        page.paragraph("Memory is the sum over all processes of a stage, shared pages counted once. Time adds up over "
                       "the runs of a stage that was interrupted. The report is the one stage that is still running "
                       "while this is written.", soft=True))


def environment(run: Run, machine: Mapping[str, str]) -> str:
    """Machine, versions, seeds and commit."""
    return page.section("Where and with what", page.definitions({
        **machine, **{f"seed of {name}": seed for name, seed in run.seeds.items()}, "commit": run.scores["commit"]}))


def _first_of_class(labels: np.ndarray) -> list[tuple[int, int]]:
    """(label, place of its first clip), by label."""
    values, places = np.unique(labels, return_index=True)
    return list(zip(values.tolist(), places.tolist()))


def _last_third(values: Sequence[float]) -> float:
    """Change over the last third of a curve."""
    return values[-1] - values[len(values) * 2 // 3 - 1]


def _number(value: float, name: str) -> str:
    if "consistency" in name:
        return f"{value:.0%}"
    return f"{value:.3f}" if value < 1 else f"{value:.2f}" if value < 100 else f"{value:.1f}"


def _distance(check: Check) -> str:
    short = abs(check.value - check.limit)
    return f"{100 * short:.0f} points" if "consistency" in check.name else _number(short, check.name)


def _of_distances(scores: Mapping[str, Any]) -> int:
    return int(scores.get("fvd_clips", scores["clips"]))      # earlier runs do not say


def _cell(scores: Mapping[str, Any], key: str) -> str:
    value = scores.get(key)
    if value is None:
        return ""
    if key == "fvd_interval_95":
        return f"{value[0]:.0f} to {value[1]:.0f}"
    shares, distances = ("class_consistency", "class_consistency_i3d"), ("fvd", "fvd_to_reconstructions")
    return {**dict.fromkeys(shares, f"{value:.0%}"), **dict.fromkeys(distances, f"{value:.1f}"),
            "psnr": f"{value:.2f}"}.get(key, f"{value:.4g}")


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.1f} min" if seconds >= 90 else f"{seconds:.0f} s"
