"""Figures of the sensitivity report: scores by preset, by number of clips, and by known damage."""

import math
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from nbp.evaluation.statement import PresetRow, Response
from nbp.evaluation.uncertainty import SampleCurve
from nbp.reporting.figures import BLUE, INK, ORANGE, STYLE


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
