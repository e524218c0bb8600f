"""How a score is stated: the table on the terminal, rows for a paper, and what it was computed with."""

import math
import platform
import subprocess
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from typing_extensions import NotRequired, TypedDict

import nbp
from nbp.system.files import write_json, write_text

Score: TypeAlias = float | Sequence[float] | None  # a number, an interval, or what JSON cannot hold


class Provenance(TypedDict):
    """What computed a score."""

    versions: dict[str, str]
    commit: str
    device: NotRequired[str]


class SetStatement(TypedDict):
    """What a report says of a set: its content, and its clips as the protocol looks at them."""

    name: str
    clips: int
    of: int
    frames: int
    height: int
    width: int
    dtype: str
    fps: list[float] | None
    sha256: str


class Report(Provenance):
    """Scores of a pair of sets with everything needed to get them again; `scores.json` holds a list of these. The last
    two are those of reconstructions: the network of LPIPS, and meta.json of the clip set."""

    protocol: str
    protocol_fields: dict[str, Any]
    real: SetStatement
    fake: SetStatement
    scores: dict[str, Score]
    notes: list[str]
    weights_sha256: str
    weights_tensors_sha256: str
    seed: int
    lpips_net: NotRequired[str]
    lpips_weights_sha256: NotRequired[str]
    reconstruction: NotRequired[dict[str, Any]]


class PresetRow(TypedDict):
    """A pair of sets under one preset: the score, or why there is none."""

    preset: str
    left_out: NotRequired[str]
    protocol: NotRequired[str]
    fvd: NotRequired[float]
    real_clips: NotRequired[int]
    fake_clips: NotRequired[int]
    weights_sha256: NotRequired[str]


class Response(TypedDict):
    """Distances that steps of one kind of damage make, and whether they rise from zero with every step."""

    unit: str
    levels: list[float]
    fvd: list[float]
    monotone: bool


def provenance(device: str | torch.device | None = None) -> Provenance:
    """Versions of what computed a score, the commit of this code where it is a git checkout, and the device."""
    folder = Path(nbp.__path__[0]).resolve()
    try:
        top, commit = (subprocess.run(["git", "-C", folder, *words], capture_output=True, text=True,
                                      check=True).stdout.strip()
                       for words in (["rev-parse", "--show-toplevel"],
                                     ["describe", "--always", "--dirty", "--abbrev=12"]))
        if Path(top).resolve() != folder.parent:     # installed in an environment inside another project
            commit = "unknown"
    except (OSError, subprocess.CalledProcessError):
        commit = "unknown"
    stated: Provenance = {"versions": {"nbp": nbp.__version__, "torch": torch.__version__, "numpy": np.__version__,
                                       "av": metadata.version("av"), "python": platform.python_version()},
                          "commit": commit}
    if device is not None:
        stated["device"] = device_name(device)
    return stated


def device_name(device: str | torch.device) -> str:
    """The model of a GPU, or the kind of another device."""
    device = torch.device(device)
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def finite(scores: Mapping[str, Score]) -> tuple[dict[str, Score], list[str]]:
    """Scores that JSON can hold, None for infinite and NaN values, and notes that name these."""
    stated: dict[str, Score] = {}
    notes = []
    for name, value in scores.items():
        numbers = value if isinstance(value, Sequence) else [] if value is None else [value]
        stated[name] = value if all(map(math.isfinite, numbers)) else None
        if stated[name] is not value:
            notes.append(f"{name} is {value}, stated as null")
    return stated, notes


def table(report: Report) -> str:
    """A report as lines for the terminal."""
    fields = report["protocol_fields"]
    lines = [f"protocol   {report['protocol']}"]
    lines += [f"           {name} = {value}" for name, value in fields.items() if name != "name"]
    for side, entry in (("real", report["real"]), ("fake", report["fake"])):
        rates = "" if entry["fps"] is None else f" at {', '.join(f'{rate:g}' for rate in entry['fps'])} fps"
        lines.append(f"{side}       {entry['name']}: {entry['clips']} of {entry['of']} clips, {entry['frames']} frames "
                     f"of {entry['height']}x{entry['width']} {entry['dtype']}{rates}, sha256 {entry['sha256'][:12]}")
    lines.append(f"weights    sha256 {report['weights_sha256'][:12]}    seed {report['seed']}    "
                 f"commit {report['commit']}    device {report['device']}")
    if "lpips_net" in report:
        lines.append(f"lpips      {report['lpips_net']}")
    lines += [f"{name:<24} {_value(value)}" for name, value in report["scores"].items()]
    return "\n".join(lines + [f"note: {note}" for note in report["notes"]])


def markdown_table(reports: Sequence[Report]) -> str:
    """Header and a row for each report: set, protocol, counts and scores."""
    names = list(dict.fromkeys(name for report in reports for name in report["scores"]))  # each once, in order
    headings = [f"lpips ({reports[0]['lpips_net']})" if name == "lpips" else name for name in names]
    header = ["set", "protocol", "fake / real clips", *headings]
    rows = [[report["fake"]["name"], report["protocol"], f"{report['fake']['clips']} / {report['real']['clips']}",
             *(_value(report["scores"].get(name)) for name in names)] for report in reports]
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *rows))


def write_scores(out: str | Path, reports: Sequence[Report], document: object) -> None:
    """Write OUT/scores.json, which holds `document`, and OUT/scores.md, a table row for each report; print them all."""
    rows = markdown_table(reports)
    write_json(Path(out) / "scores.json", document)
    write_text(Path(out) / "scores.md", rows + "\n")
    print("\n\n".join(table(report) for report in reports) + f"\n\n{rows}\nwrote {out}/scores.json")


def _value(value: Score) -> str:
    if value is None:
        return "-"
    return " to ".join(f"{x:.4g}" for x in value) if isinstance(value, Sequence) else f"{value:.4g}"
