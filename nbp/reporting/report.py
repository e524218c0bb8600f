"""Joins the sections to the report of a run; `python -m nbp.report` is the command around it."""

from dataclasses import asdict
from pathlib import Path

from nbp.reporting import page, sections
from nbp.reporting.checks import checks
from nbp.reporting.inputs import machine, read_run
from nbp.reporting.training_run import is_training_run, write_training_report
from nbp.system.files import write_json, write_text


def write_report(run: str | Path) -> None:
    """Write report.html and pictures into a run folder; for the quickstart report.json, and print the checks, too."""
    if is_training_run(run):
        print(f"wrote {write_training_report(run)}")
        return
    made = read_run(run)
    results, here = checks(made.scores["sets"]), machine()
    body = "\n".join([
        sections.summary(made, results), sections.verdicts(made, results), sections.reconstructions(made),
        sections.generated(made), sections.predicted(made), sections.training(made), sections.mask(made),
        sections.metrics(made), sections.speed(made), sections.stages(made), sections.environment(made, here)])
    write_json(made.folder / "report.json", {
        "checks": [asdict(check) | {"passed": check.passed} for check in results], "scores": made.scores,
        "benchmark": made.benchmark, "stages": made.stages, "machine": here, "seeds": made.seeds,
        "training": {kind: {name: values[-1] for name, (_, values) in curves.items()}
                     for kind, curves in made.curves.items()}})
    write_text(made.folder / "report.html", page.page("Next-block video generation: quickstart", body))
    print(sections.protocol(made.scores))
    for check in results:
        print(f"{'reached    ' if check.passed else 'NOT REACHED'}  {check.name}: {check.value:.4g}, required "
              f"{check.required} ({check.baseline})")
    print(f"wrote {made.folder / 'report.html'}")
