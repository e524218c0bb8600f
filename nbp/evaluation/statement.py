"""How a score is stated: the table on the terminal, rows for a paper, and what it was computed with."""

import math
import platform
import subprocess
from importlib import metadata

import numpy as np
import torch

import nbp


def provenance(device=None):
    """Versions of what computed a score, the commit of this code where it is a git checkout, and the device, if given.

    Args:
        device: torch device.
    """
    try:
        commit = subprocess.run(["git", "-C", nbp.__path__[0], "describe", "--always", "--dirty", "--abbrev=12"],
                                capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = "unknown"
    versions = {"nbp": nbp.__version__, "torch": torch.__version__, "numpy": np.__version__,
                "av": metadata.version("av"), "python": platform.python_version()}
    return {"versions": versions, "commit": commit} | ({} if device is None else {"device": device_name(device)})


def device_name(device):
    """The model of a GPU, or the kind of another device."""
    device = torch.device(device)
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def finite(scores):
    """Scores that JSON can hold, and notes on the others.

    Returns:
        (scores with None for infinite and NaN values, list of notes that name these).
    """
    kept, notes = {}, []
    for name, value in scores.items():
        kept[name] = value
        if not all(math.isfinite(x) for x in (value if isinstance(value, (list, tuple)) else [value])):
            kept[name] = None
            notes.append(f"{name} is {value}, stated as null")
    return kept, notes


def table(report):
    """A report as lines for the terminal."""
    fields = report["protocol_fields"]
    lines = [f"protocol   {report['protocol']}"]
    lines += [f"           {name} = {value}" for name, value in fields.items() if name != "name"]
    for side in ("real", "fake"):
        entry = report[side]
        rates = "" if entry["fps"] is None else f" at {', '.join(f'{rate:g}' for rate in entry['fps'])} fps"
        lines.append(f"{side}       {entry['name']}: {entry['clips']} of {entry['of']} clips, {entry['frames']} frames "
                     f"of {entry['height']}x{entry['width']} {entry['dtype']}{rates}, sha256 {entry['sha256'][:12]}")
    lines.append(f"weights    sha256 {report['weights_sha256'][:12]}    seed {report['seed']}    "
                 f"commit {report['commit']}    device {report['device']}")
    if "lpips_net" in report:
        lines.append(f"lpips      {report['lpips_net']}")
    lines += [f"{name:<24} {_value(value)}" for name, value in report["scores"].items()]
    return "\n".join(lines + [f"note: {note}" for note in report["notes"]])


def markdown_table(reports):
    """Header and a row for each report: set, protocol, counts and scores."""
    names = list(dict.fromkeys(name for report in reports for name in report["scores"]))
    header = ["set", "protocol", "fake / real clips", *(_column(name, reports) for name in names)]
    rows = [[report["fake"]["name"], report["protocol"], f"{report['fake']['clips']} / {report['real']['clips']}",
             *(_value(report["scores"].get(name)) for name in names)] for report in reports]
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *rows))


def _column(name, reports):
    """A score's heading; LPIPS is stated with its network."""
    return f"lpips ({reports[0]['lpips_net']})" if name == "lpips" else name


def _value(value):
    if value is None:
        return "-"
    return " to ".join(f"{x:.4g}" for x in value) if isinstance(value, (list, tuple)) else f"{value:.4g}"
