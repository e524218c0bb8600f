"""Which process am I, which device is mine, and waiting for the others; read from the variables that torchrun sets."""

import datetime
import os

# A rank that resumes has less to do than one whose part was lost, so they may come hours apart.
PATIENCE = datetime.timedelta(days=2)


def rank_and_world() -> tuple[int, int]:
    """(rank, world size) of this process; (0, 1) without a launcher."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def default_device() -> str:
    """This rank's GPU, "cuda:<local rank>", or "cpu" where there is none."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return f"cuda:{int(os.environ.get('LOCAL_RANK', 0)) % count}" if count else "cpu"


def barrier(problem: str = "") -> None:
    """Wait until every rank is here; nothing to wait for without a launcher.

    Args:
        problem: what went wrong at this rank, if anything did.

    Raises:
        ValueError: something went wrong at one of them. All hear of it, so that none goes on or waits alone.
    """
    world = rank_and_world()[1]
    problems: list[str] = [problem]
    if world > 1:
        import torch.distributed as dist

        if not dist.is_initialized():
            dist.init_process_group("gloo", timeout=PATIENCE)
        problems = [""] * world
        dist.all_gather_object(problems, problem)
    if any(problems):
        raise ValueError(next(filter(None, problems)))
