"""Train a tokenizer or a generator: python -m nbp.train CONFIG [section.field=value ...]

The run folder `trainer.out` receives config.yaml, checkpoints/, logs/, samples/ and at the end model/ (native format in
float32, from the last checkpoint; the moving average where there is one). Running the same command again resumes.
Ctrl-C, SIGTERM and SIGUSR1 save and stop, exit code 128 + signal. Several processes: torchrun --nproc-per-node=N -m
nbp.train CONFIG trainer.devices=N ...
"""

import argparse
from collections.abc import Sequence

from nbp.system.command import positive, run_command


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    from nbp.workflows.training import train_and_export  # here, as Lightning is an extra

    return train_and_export(**vars(options))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m nbp.train", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("config", help="run file, e.g. configs/tokenizer_procgen.yaml")
    parser.add_argument("overrides", nargs="*", default=[], metavar="section.field=value",
                        help="or a YAML file to merge")
    time = parser.add_mutually_exclusive_group()
    time.add_argument("--minutes", type=positive, help="scale every count of steps so that training takes this long "
                      "on this machine; say it again to resume")
    time.add_argument("--max-minutes", type=positive, help="the same only where all steps would take longer")
    parser.add_argument("--profile", action="store_true", help="trace a few steps into OUT/profile and print their top")
    return parser.parse_intermixed_args(arguments)


if __name__ == "__main__":
    run_command(main)
