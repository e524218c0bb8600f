"""Which process am I? Read from the variables that torchrun and SLURM launchers set."""

import os


def rank_and_world():
    """(rank, world size) of this process; (0, 1) without a launcher."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
