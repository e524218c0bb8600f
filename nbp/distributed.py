"""Which process am I, and waiting for the others; read from the variables that torchrun sets."""

import os


def rank_and_world():
    """(rank, world size) of this process; (0, 1) without a launcher."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def barrier():
    """Wait until every rank is here; nothing to wait for without a launcher."""
    if rank_and_world()[1] == 1:
        return
    import torch.distributed as dist

    if not dist.is_initialized():
        dist.init_process_group("gloo")
    dist.barrier()
