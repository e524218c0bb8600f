"""Read back what training runs logged; a resumed run adds a `logs/version_N` folder, nothing is overwritten."""

import csv
from pathlib import Path


def read_metrics(out: str | Path) -> dict[str, dict[int, float]]:
    """Metrics of a run folder: column name -> {step: value}; where a run goes back to an earlier step, what follows
    counts.
    ValueError: the run has logged nothing."""
    files = sorted((Path(out) / "logs").glob("version_*/metrics.csv"), key=lambda path: int(path.parent.name[8:]))
    if not files:
        raise ValueError(f"{out} holds no logs/version_*/metrics.csv: not a training run, or one without a step")
    columns: dict[str, dict[int, float]] = {}
    last = -1
    for path in files:
        text = path.read_text(encoding="utf-8")
        whole = text[:text.rfind("\n") + 1].splitlines()  # a killed process may leave half a row
        for row in csv.DictReader(whole):
            step = int(row["step"])
            if step < last:        # the run went back, and what it had done since is no longer its own
                columns = {name: {at: value for at, value in values.items() if at <= step}
                           for name, values in columns.items()}
            last = step
            for name, value in row.items():
                if name not in ("step", "epoch") and value:
                    columns.setdefault(name, {})[step] = float(value)
    return columns
