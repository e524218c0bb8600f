"""The report of a run: python -m nbp.report RUN

RUN is a folder of nbp.quickstart, or of any nbp.train, finished or not. Writes report.html (self-contained) and figures
(figure_*.png) into it, for the quickstart report.json and contact sheets (sheet_*.png) as well. Everything is read from
what the run wrote; nothing is measured here.
"""

import argparse
from collections.abc import Sequence

from nbp.system.command import run_command


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m nbp.report", description=__doc__.splitlines()[0])
    parser.add_argument("run", help="folder of a quickstart or training run")
    options = parser.parse_args(arguments)
    from nbp.reporting.report import write_report  # here, as Lightning is an extra

    write_report(options.run)


if __name__ == "__main__":
    run_command(main)
