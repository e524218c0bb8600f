"""Train a tokenizer or a generator: python -m nbp.train CONFIG [section.field=value ...]

The run folder `trainer.out` receives config.yaml, checkpoints/, logs/, samples/ and at the end model/ (native format in
float32, from the last checkpoint; the moving average where there is one). Running the same command again resumes.
SIGTERM and SIGUSR1 save and stop, exit code 128 + signal. Several processes: torchrun --nproc-per-node=N -m nbp.train
CONFIG trainer.devices=N ...
"""

import argparse
import sys
from pathlib import Path

from nbp.config import load_run
from nbp.system.command import run_command
from nbp.training import checkpoints
from nbp.training.stop_signals import Stopped
from nbp.workflows.converting import checkpoint_to_native


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m nbp.train", description=__doc__.splitlines()[0])
    parser.add_argument("config", help="run file, e.g. configs/tokenizer_procgen.yaml")
    parser.add_argument("overrides", nargs="*", metavar="section.field=value", help="or a YAML file to merge")
    options = parser.parse_args(arguments)
    from nbp.training.fitting import fit  # here, as Lightning is an extra

    run = load_run(options.config, options.overrides)
    try:
        trainer = fit(run)
    except Stopped as stop:
        print(f"{stop}; the same command goes on from here", file=sys.stderr, flush=True)
        return 128 + stop.signum
    if trainer.is_global_zero:
        model, last = Path(run.trainer.out) / "model", Path(run.trainer.out) / "checkpoints" / checkpoints.LAST
        # Not from the module: under DeepSpeed in bfloat16 only the checkpoint has the weights in float32.
        checkpoint_to_native(last, model)
        print(f"wrote {model} from {last.resolve().name}")
    return 0


if __name__ == "__main__":
    run_command(main)
