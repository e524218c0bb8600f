"""The report of any training run: how far it is, its curves, its samples over time, what it was asked to do.

Read from what the run has written so far, so that it can be looked at while it trains.
"""

import base64
from collections.abc import Iterator
from html import escape
from pathlib import Path

from nbp.config import GeneratorRun, TokenizerRun, load_run, to_dict
from nbp.config.loading import flat
from nbp.hub.about import read_about
from nbp.reporting import figures, page
from nbp.reporting.inputs import read_curves
from nbp.system.files import write_text
from nbp.training.flops import num_steps

NUM_SAMPLES = 6      # pictures of samples, spread over the run
TILES = {"train/loss": "training loss", "val/loss": "validation loss, nats a token", "val/psnr": "validation PSNR, dB",
         "val/code_usage": "codes in use, share", "val/rfvd": "validation rFVD", "val/gfvd": "validation gFVD",
         "perf/clips_per_s": "clips/s"}


def is_training_run(folder: str | Path) -> bool:
    """Whether `nbp.train` wrote a folder."""
    return (Path(folder) / "config.yaml").is_file() and (Path(folder) / "logs").is_dir()


def write_training_report(folder: str | Path) -> Path:
    """Write report.html, whose path is returned, and figure_training.png into a run folder. ValueError: not a run of
    `nbp.train`, or one that has logged nothing yet."""
    folder = Path(folder)
    run = load_run(folder / "config.yaml")
    assert isinstance(run, (TokenizerRun, GeneratorRun))
    if not (curves := read_curves(folder)):
        raise ValueError(f"{folder} has logged nothing yet")
    panels = figures.TOKENIZER_PANELS if isinstance(run, TokenizerRun) else figures.GENERATOR_PANELS
    total = num_steps(run)
    done = min(total, max(steps[-1] for steps, _ in curves.values()) + 1)
    tiles = {"steps": f"{done:,} of {total:,}"} | {
        label: f"{curves[name][1][-1]:.4g}" for name, label in TILES.items() if name in curves}
    drawn = figures.write_figure(figures.curves_figure(curves, panels), folder / "figure_training.png")
    parts = [f"<h1>{run.kind.capitalize()}: {escape(folder.resolve().name)}</h1>", page.tiles(tiles),
             page.section("Curves", page.figure(drawn, "By optimizer step."))]
    if samples := list(_samples(folder)):
        parts.append(page.section("Samples over time", *samples))
    if scores := read_about(folder / "model").scores:
        parts.append(page.section("Scores", page.table(["score", "value", "protocol"], [
            [score.metric, f"{score.value:.4g}", score.protocol] for score in scores], numbers=(1,))))
    parts.append(page.section("What it was asked to do", page.definitions({
        name: value for name, value in flat(to_dict(run)).items() if value is not None})))
    write_text(folder / "report.html", page.page(f"{run.kind} {folder.resolve().name}", "\n".join(parts)))
    return folder / "report.html"


def _samples(folder: Path) -> Iterator[str]:
    """Pictures of samples, spread evenly over the run, the last among them."""
    found = sorted((folder / "samples").glob("[!.]*.png"))
    chosen = sorted({round(number * (len(found) - 1) / max(1, NUM_SAMPLES - 1)) for number in range(NUM_SAMPLES)})
    for path in [found[number] for number in chosen] if found else []:
        data = f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
        yield page.figure(f"<img src='{data}' alt='{path.stem}' style='max-width:100%'>", path.stem)
