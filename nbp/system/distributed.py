"""Which process am I, which device is mine, and waiting for the others; read from the variables that torchrun sets."""

import contextlib
import datetime
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from nbp.system.command import UserError
from nbp.system.files import AnyPath, held

# A rank that resumes has less to do than one whose part was lost, so they may come hours apart.
PATIENCE = datetime.timedelta(days=2)
LOCK_PATIENCE_S = 8.0       # a killed command's loaders, which inherit its lock, may outlive it by 5 s
T = TypeVar("T")


def rank_and_world() -> tuple[int, int]:
    """(rank, world size) of this process; (0, 1) without a launcher, which sets both."""
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return 0, 1
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


def default_device() -> str:
    """This rank's GPU, "cuda:<local rank>", or "cpu" where there is none."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return f"cuda:{int(os.environ.get('LOCAL_RANK', 0)) % count}" if count else "cpu"


def check_driver() -> None:
    """UserError: this machine has an NVIDIA GPU and this PyTorch is for one, but can't use it: days on a CPU are not
    what was meant."""
    import torch

    if (torch.version.cuda and not torch.cuda.is_available() and Path("/dev/nvidia0").exists()
            and os.environ.get("CUDA_VISIBLE_DEVICES") not in ("", "-1", "NoDevFiles")):
        raise UserError(f"PyTorch {torch.__version__} (CUDA {torch.version.cuda}) cannot use this machine's GPU: its "
                        "driver is older, or the GPU is not this process's. Install PyTorch for the driver "
                        "(pytorch.org/get-started), or set CUDA_VISIBLE_DEVICES= (to nothing) to work on the CPU")


def gather(value: T) -> list[T]:
    """The values of all ranks, in their order; only the own one without a launcher."""
    world = rank_and_world()[1]
    if world == 1:
        return [value]
    import torch.distributed as dist

    if not dist.is_initialized():
        dist.init_process_group("gloo", timeout=PATIENCE)
    values: list[Any] = [None] * world
    dist.all_gather_object(values, value)
    return values


def check_device(device: object) -> None:
    """ValueError: PyTorch knows no such device, or it is a GPU where there is none of that number."""
    import torch

    try:
        found = torch.device(str(device))
    except RuntimeError as error:
        raise ValueError(f"unknown device {str(device)!r}; accepted: cpu, cuda, cuda:N") from error
    if found.type not in ("cpu", "cuda"):
        raise ValueError(f"device {str(device)!r} is not supported; accepted: cpu, cuda, cuda:N")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if found.type == "cuda" and not count:
        raise ValueError(f'device {str(device)!r} is not available here: pass device="cpu"')
    if found.type == "cuda" and (found.index or 0) >= count:
        raise ValueError(f"device {str(device)!r}: this machine has {count} GPUs, the first is cuda:0")


def barrier(problem: str = "") -> None:
    """Wait until every rank is here; nothing to wait for without a launcher. ValueError, at all ranks so that none goes
    on or waits alone: one of them has a `problem`."""
    if problems := list(filter(None, gather(problem))):
        raise ValueError(problems[0])


@contextlib.contextmanager
def held_by_ranks(folder: AnyPath) -> Iterator[None]:
    """Make a folder and hold it until all ranks of this launch are done. ValueError, at all ranks: others work in it,
    or it cannot be made or written."""
    with contextlib.ExitStack() as stack:
        problem = ""
        if rank_and_world()[0] == 0:
            try:
                Path(folder).mkdir(parents=True, exist_ok=True)
                stack.enter_context(held(folder, LOCK_PATIENCE_S))
            except (UserError, OSError) as error:
                problem = str(error)
        barrier(problem)
        yield
        barrier()       # nodes that end minutes before the first one close the launcher's door to what is launched next
