"""The report of a quickstart run: python -m nbp.reporting runs/quickstart

Writes report.html (self-contained), report.json, contact sheets (sheet_*.png) and figures (figure_*.png) into
the run folder. Everything is read from what the stages wrote; nothing is measured here.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from nbp.reporting import page, sections
from nbp.reporting.checks import checks
from nbp.reporting.inputs import machine, read_run
from nbp.system.command import run_command
from nbp.system.files import write_json, write_text


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m nbp.reporting", description=__doc__.splitlines()[0])
    parser.add_argument("run", help="folder of the quickstart run")
    run = read_run(parser.parse_args(arguments).run)
    results, here = checks(run.scores["sets"]), machine()
    body = "\n".join([
        sections.summary(run, results), sections.verdicts(run, results), sections.reconstructions(run),
        sections.generated(run), sections.predicted(run), sections.training(run), sections.mask(run),
        sections.metrics(run), sections.speed(run), sections.stages(run), sections.environment(run, here)])
    write_json(run.folder / "report.json", {
        "checks": [check.as_dict() for check in results], "scores": run.scores, "benchmark": run.benchmark,
        "stages": run.stages, "machine": here, "seeds": run.seeds,
        "training": {kind: {name: values[-1] for name, (_, values) in curves.items()}
                     for kind, curves in run.curves.items()}})
    write_text(run.folder / "report.html", page.page("Next-block video generation: quickstart", body))
    print(sections.protocol(run.scores))
    for check in results:
        print(f"{'reached    ' if check.passed else 'NOT REACHED'}  {check.name}: {check.value:.4g}, required "
              f"{check.required} ({check.baseline})")
    print(f"wrote {Path(run.folder) / 'report.html'}")


if __name__ == "__main__":
    run_command(main)
