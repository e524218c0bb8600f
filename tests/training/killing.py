"""Training runs in a forked process, killed with SIGKILL at a chosen place, on the way or in the middle of a write."""

import os
import random
import signal
import sys
import threading
import traceback

import pytorch_lightning as pl
import torch

from nbp import train
from nbp.training import fit


class Killer(pl.Callback):
    """Kills its own process `steps` optimizer steps after the start.

    Args:
        steps: how many steps first.
        place: "write": half-way through the next checkpoint; a number: that many seconds later.
        rank: the process that dies.
    """

    def __init__(self, steps, place, rank=0):
        self.steps, self.place, self.rank, self.armed = steps, place, rank, False

    def on_train_start(self, trainer, module):
        self.start = trainer.global_step

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if self.armed or trainer.global_rank != self.rank or trainer.global_step - self.start < self.steps:
            return
        self.armed = True
        if self.place == "write":
            torch.save = half_a_save
        else:
            threading.Timer(self.place, die).start()


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def half_a_save(content, file, *arguments, **options):
    """torch.save to a file or path, but the process dies when half of the bytes are on disk."""
    import io

    buffer = io.BytesIO()
    SAVE(content, buffer, *arguments, **options)
    half = buffer.getvalue()[:len(buffer.getvalue()) // 2]
    if hasattr(file, "write"):
        file.write(half)
        file.flush()
    else:
        with open(file, "wb") as opened:
            opened.write(half)
    die()


SAVE = torch.save


def add_callback(callback):
    """Make every run of this process carry one more callback."""
    for kind, build in list(fit.BUILD.items()):
        def with_callback(run, fresh=True, build=build):
            module, data, extra = build(run, fresh)
            return module, data, [callback, *extra]

        fit.BUILD[kind] = with_callback


def train_in_a_fork(arguments, callback=None):
    """Run `nbp.train` in a forked process with a callback of the test's.

    Returns:
        (its exit code, minus the signal that killed it; what it wrote to stderr).
    """
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            torch.set_num_threads(1)   # the threads of the process before are not here, and would be waited for
            os.close(read)
            os.dup2(write, 2)
            sys.stderr = os.fdopen(2, "w", buffering=1)
            sys.stdout = sys.stderr
            if callback is not None:
                add_callback(callback)
            code = train.main(arguments)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    os.close(write)
    with os.fdopen(read, errors="replace") as pipe:
        text = pipe.read()
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status), text


def random_kills(count, seed=0):
    """`count` killers: every fourth in the middle of writing, the others at a random time after 0 to 3 steps."""
    rng = random.Random(seed)
    for number in range(count):
        yield Killer(rng.randrange(4), "write" if number % 4 == 3 else rng.uniform(0, 0.05))


if __name__ == "__main__":  # under torchrun: killing.py STEPS PLACE RANK CONFIG OVERRIDES..., PLACE "never" for no kill
    steps, place, rank, *arguments = sys.argv[1:]
    if place != "never":
        add_callback(Killer(int(steps), place if place == "write" else float(place), int(rank)))
    sys.exit(train.main(arguments))
