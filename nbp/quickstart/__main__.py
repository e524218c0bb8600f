"""The whole pipeline on Procgen, one command per stage: python -m nbp.quickstart [--smoke] [--minutes N] [--out DIR]

Makes the videos, trains tokenizer and generator, generates, predicts, scores and writes RUN/report.html.
Stopped at any point, the same command goes on. A finished stage runs again only if its command, a config that it
names or an earlier stage has changed; its old folder is kept as FOLDER.old. --smoke runs the same stages with a few
steps and clips, to see in about two minutes that everything works here.
"""

import argparse
from collections.abc import Sequence

from nbp.quickstart.stages import run_quickstart
from nbp.system.command import positive, run_command


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m nbp.quickstart", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="few steps and clips: does it run here?")
    parser.add_argument("--minutes", type=positive, help="training time, half for each model; every schedule follows "
                        "it (default: the steps of the run files, in at most 12 minutes)")
    parser.add_argument("--out", help="run folder (default: runs/quickstart, with --smoke runs/smoke)")
    run_quickstart(**vars(parser.parse_args(arguments)))


if __name__ == "__main__":
    run_command(main)
