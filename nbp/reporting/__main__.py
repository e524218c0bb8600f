"""The report of a quickstart run: python -m nbp.reporting runs/quickstart

Writes report.html (self-contained), report.json, contact sheets (sheet_*.png) and figures (figure_*.png) into
the run folder. Everything is read from what the stages wrote; nothing is measured here.
"""

import argparse
from collections.abc import Sequence

from nbp.reporting.report import write_report
from nbp.system.command import run_command


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m nbp.reporting", description=__doc__.splitlines()[0])
    parser.add_argument("run", help="folder of the quickstart run")
    write_report(parser.parse_args(arguments).run)


if __name__ == "__main__":
    run_command(main)
