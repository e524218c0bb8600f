"""Figures of the reports, on runs and on the sensitivity of scores, each as SVG text for the page and as a PNG file.

Text and axes of the SVG take the colour of the page around them, so that it reads on light and dark alike.
"""

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from nbp.config import GeneratorConfig
from nbp.evaluation.statement import PresetRow, Response
from nbp.evaluation.uncertainty import SampleCurve
from nbp.generator.masks import attention_mask
from nbp.generator.sequence import Layout
from nbp.reporting.inputs import Curves
from nbp.system.files import atomic_path

INK = "#1b1f25"                          # becomes the page's own text colour
BLUE, ORANGE, GREEN = "#4a7fdc", "#e0782f", "#2f9e77"
STYLE: Any = {  # matplotlib's own type of it spells out every name that it knows
    "svg.fonttype": "none", "svg.hashsalt": "nbp", "font.size": 9, "text.color": INK, "axes.edgecolor": INK,
    "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK, "axes.spines.top": False,
    "axes.spines.right": False, "axes.linewidth": 0.6, "axes.titlesize": 9.5, "axes.titlelocation": "left",
    "legend.frameon": False, "legend.fontsize": 8, "lines.linewidth": 1.4}

# Panel title -> metrics drawn in it; a metric that a run did not log is left out.
TOKENIZER_PANELS = {
    "Reconstruction loss": ("train/reconstruction",),
    "Perceptual loss (weighted)": ("train/perceptual",),
    "Adversarial loss (weighted) and critic's loss": ("train/adversarial", "train/discriminator"),
    "Critic's logits": ("train/logit_real", "train/logit_fake"),
    "PSNR of validation clips (dB)": ("val/psnr",),
    "Perplexity of codes": ("train/code_perplexity", "val/code_perplexity"),
}
GENERATOR_PANELS = {
    "Loss (nats a token)": ("train/loss", "val/loss"),
    "True token ranked first, or among five": ("val/top1", "val/top5"),
    "Gradient norm": ("train/grad_norm_0",),
}


def write_figure(figure: Figure, path: str | Path) -> str:
    """Write a figure as PNG; returns it as SVG text."""
    with matplotlib.rc_context(STYLE), atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=150, facecolor="white")
    text = io.StringIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(text, format="svg", transparent=True)
    svg = text.getvalue()
    return svg[svg.index("<svg"):].replace(INK, "currentColor")


def curves_figure(curves: Curves, panels: Mapping[str, Sequence[str]], phases: Sequence[int] = (),
                  reference: tuple[str, float, str] | None = None) -> Figure:
    """Small panels {title: metrics} of training curves; `phases` are steps that get a dotted line, `reference` is
    (title, value, text) of a level line. ValueError: no metric of any panel was logged."""
    shown = {title: [name for name in names if name in curves] for title, names in panels.items()}
    shown = {title: names for title, names in shown.items() if names}
    if not shown:
        raise ValueError(f"none of the metrics of {', '.join(panels)} were logged")
    columns = min(3, len(shown))
    num_rows = math.ceil(len(shown) / columns)
    with matplotlib.rc_context(STYLE):
        figure = Figure((9.6, 2.35 * num_rows), layout="constrained")
        for axes, (title, names) in zip(figure.subplots(num_rows, columns, squeeze=False).flat, shown.items()):
            _panel(axes, title, [(name, *curves[name]) for name in names], phases)
            if reference is not None and reference[0] == title:
                axes.axhline(reference[1], color=INK, linewidth=0.7, linestyle="--")
                axes.annotate(reference[2], (1, reference[1]), xycoords=("axes fraction", "data"), ha="right", va="top",
                              fontsize=7.5, xytext=(0, -2), textcoords="offset points")
        for axes in figure.axes[len(shown):]:
            axes.set_axis_off()
    return figure


def _panel(axes: Axes, title: str, lines: Sequence[tuple[str, Sequence[int], Sequence[float]]],
           phases: Sequence[int]) -> None:
    for (name, steps, values), colour in zip(lines, (BLUE, ORANGE, GREEN)):
        smooth = name.startswith("train/") and len(values) > 50
        axes.plot(steps, values, color=colour, alpha=0.25 if smooth else 1, linewidth=0.8 if smooth else None,
                  label=None if smooth else _label(name), marker="o" if len(values) < 3 else None, markersize=3)
        if smooth:
            axes.plot(steps, _running_mean(values, len(values) // 40), color=colour, label=_label(name))
    for step in phases:
        axes.axvline(step, color=INK, linewidth=0.6, linestyle=":")
    axes.set_title(title)
    axes.margins(x=0.02)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    if len(lines) > 1:
        axes.legend()


def _label(name: str) -> str:
    return {"train/adversarial": "adversarial", "train/discriminator": "critic", "train/logit_real": "real clips",
            "train/logit_fake": "reconstructions", "val/top1": "first", "val/top5": "among five",
            }.get(name, {"train": "training", "val": "validation"}[name.split("/")[0]])


def _running_mean(values: Sequence[float], width: int) -> np.ndarray:
    """Centred mean over `width` neighbours on each side, fewer at the ends."""
    total = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    low, high = np.maximum(index - width, 0), np.minimum(index + width + 1, len(values))
    return (total[high] - total[low]) / (high - low)


def mask_figure(config: GeneratorConfig) -> Figure:
    """The attention mask of a generator: the whole sequence, and its beginning enlarged."""
    layout = Layout(config)
    size = config.condition_len + layout.num_inputs(math.prod(config.grid))
    hidden = attention_mask(layout, 0, size)
    mask = np.ones((size, size), bool) if hidden is None else hidden.numpy()
    near = min(size, config.condition_len + 3 * layout.block + (layout.block if layout.hybrid else 1))
    edges = np.flatnonzero(np.diff(layout.block_ids(size).numpy())) + 0.5
    with matplotlib.rc_context(STYLE):
        figure = Figure((9.6, 4.7), layout="constrained")
        for axes, count, title in zip(figure.subplots(1, 2), (size, near), (
                f"All {size} positions", f"The first {near}, with the borders of the blocks")):
            axes.imshow(mask[:count, :count], cmap=ListedColormap(["#00000000", BLUE]), vmin=0, vmax=1,
                        interpolation="nearest")
            axes.set_title(title)
            axes.set_xlabel("position that is looked at")
            for spine in axes.spines.values():
                spine.set_visible(True)
        axes.set_xticks(edges[edges < near], minor=True)
        axes.set_yticks(edges[edges < near], minor=True)
        axes.grid(which="minor", color=INK, linewidth=0.4, alpha=0.5)
        axes.tick_params(which="minor", length=0)
        figure.axes[0].set_ylabel("position that looks")
    return figure


def consistency_figure(scores: Mapping[str, Any], classes: Sequence[str]) -> Figure:
    """Class consistency by class (names in id order), from `sets` of scores.json: generated as bars, real as marks."""
    labels = sorted(scores["generated"]["class_consistency_by_class"], key=int)
    share = {name: [scores[name]["class_consistency_by_class"].get(label, math.nan) for label in labels]
             for name in ("generated", "real")}
    with matplotlib.rc_context(STYLE):
        figure = Figure((9.6, 2.5), layout="constrained")
        axes = figure.subplots()
        axes.bar(range(len(labels)), share["generated"], 0.6, color=BLUE, label="generated")
        axes.plot(range(len(labels)), share["real"], "_", color=ORANGE, markersize=22, markeredgewidth=2, label="real")
        axes.set_xticks(range(len(labels)), [classes[int(label)] for label in labels])
        axes.set_ylim(0, 1.02)
        axes.set_title("Share of clips nearest to the centroid of their own class")
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def presets_figure(rows: Sequence[PresetRow]) -> Figure:
    """Bars of the same pair of sets under every preset that could be scored."""
    scored = [row for row in rows if "fvd" in row]
    with matplotlib.rc_context(STYLE):
        figure = Figure((7.2, 0.9 + 0.32 * max(1, len(scored))), layout="constrained")
        axes = figure.subplots()
        bars = axes.barh([row["preset"] for row in scored], [row["fvd"] for row in scored], color=BLUE, height=0.6)
        axes.bar_label(bars, fmt="%.4g", padding=3, fontsize=8)
        axes.invert_yaxis()
        axes.margins(x=0.12)
        left_out = [row["preset"] for row in rows if "fvd" not in row]
        axes.set_xlabel("Frechet distance" + (f"; not scored: {', '.join(left_out)}" if left_out else ""))
        axes.set_title("One pair of sets under every preset")
    return figure


def curve_figure(curve: SampleCurve) -> Figure:
    """Distance against the number of clips and against its inverse, with the line to infinitely many."""
    clips, values = np.array(curve["clips"]), np.array(curve["fvd"])

    def fit(inverse: np.ndarray) -> np.ndarray:
        return curve["infinite"] + curve["slope"] * inverse

    with matplotlib.rc_context(STYLE):
        figure = Figure((9.6, 3), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        dense = np.linspace(clips[0], clips[-1] * 1.5, 200)
        inverse = np.linspace(0, 1 / clips[0], 2)
        left.plot(clips, values, "o", color=BLUE, markersize=4, label="scored")
        left.plot(dense, fit(1 / dense), color=ORANGE, label="a + b / clips")
        right.plot(1 / clips, values, "o", color=BLUE, markersize=4)
        right.plot(inverse, fit(inverse), color=ORANGE)
        for axes, title in ((left, "Number of clips"), (right, "1 / clips")):
            axes.axhline(curve["infinite"], color=INK, linewidth=0.7, linestyle="--",
                         label=f"infinitely many: {curve['infinite']:.4g}")
            axes.set_xlabel(title)
        left.set_ylabel("Frechet distance")
        left.legend()
    return figure


def corruptions_figure(responses: Mapping[str, Response]) -> Figure:
    """A panel for each kind of damage."""
    columns = 3
    num_rows = math.ceil(len(responses) / columns)
    with matplotlib.rc_context(STYLE):
        figure = Figure((9.6, 2.3 * num_rows), layout="constrained")
        panels = list(figure.subplots(num_rows, columns, squeeze=False).flat)
        for axes, (name, row) in zip(panels, responses.items()):
            steps = range(len(row["levels"]))
            axes.plot(steps, row["fvd"], "o-", color=BLUE if row["monotone"] else ORANGE, markersize=4)
            axes.set_xticks(steps, [f"{level:g}" for level in row["levels"]])
            axes.set_ylim(bottom=0)
            axes.set_xlabel(row["unit"])
            axes.set_title(name + ("" if row["monotone"] else " (does not rise)"))
        for axes in panels[len(responses):]:
            axes.set_axis_off()
    return figure
