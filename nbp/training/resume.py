"""Going on from a checkpoint: which one, and whether it belongs to this configuration.

Rank 0 picks and checks, all ranks follow. Fields that change what is trained are refused, fields that only change
where and how it runs are free; between them lie those that `trainer.accept_changes=true` lets through.
"""

import sys
from pathlib import Path

import torch

from nbp.config import to_dict
from nbp.system.files import read_json
from nbp.training import checkpoints

# Where and how a run works, not what it computes. Batch sizes and devices may change as long as their product stays.
FREE = ("init_from", "inflate_from", "data.root", "images.root", "data.max_bad_files", "tokens", "tokenizer",
        "text_tokenizer", "trainer.out", "trainer.devices", "trainer.num_nodes", "trainer.accumulate",
        "trainer.global_batch", "trainer.num_workers", "trainer.val_", "trainer.checkpoint_every_steps",
        "trainer.keep_last", "trainer.log_every_steps", "trainer.resume", "trainer.accept_changes",
        "trainer.wandb_project", "trainer.guard_patience", "trainer.max_rollbacks", "trainer.strategy", "batch_size")
FIXED = ("kind", "model.", "discriminator.", "trainer.ema_decay")


class Resume:
    """The checkpoint that a run goes on from.

    Args:
        run: `TokenizerRun` or `GeneratorRun` as it is now.

    Attributes:
        chosen: the checkpoint that was loaded, or None.
    """

    def __init__(self, run):
        self.run = run
        self.sharded = run.trainer.strategy.startswith("deepspeed")
        self.chosen = None

    def choose(self, path):
        """The checkpoint to load, the same on every rank; the process group must be up.

        Args:
            path: a checkpoint, or a folder of checkpoints for its newest complete one.

        Raises:
            ValueError: it is damaged, or was written by another kind of engine; on every rank.
        """
        self.chosen = Path(on_rank_zero(lambda: str(self._choose(Path(path)))))
        return self.chosen

    def _choose(self, path):
        if path.is_dir() and checkpoints.step_of(path.resolve()) is None:
            path = checkpoints.newest_complete(path)
        elif damage := checkpoints.find_damage(path):
            raise ValueError(f"checkpoint {path}: {damage}")
        if path.is_dir() != self.sharded:
            written = "DeepSpeed" if path.is_dir() else "one device or DDP"
            raise ValueError(f"checkpoint {path} was written by {written}, trainer.strategy is now "
                             f"{self.run.trainer.strategy}: go on with the same engine, or start a new run from its "
                             "weights (python -m nbp.convert checkpoint-to-native, then init_from)")
        if self.sharded:
            self._check_shards(path)
        return path

    def _check_shards(self, path):
        facts, now = read_json(path / checkpoints.MANIFEST), self.run.trainer
        if facts["strategy"] != now.strategy:
            raise ValueError(f"checkpoint {path} was written with trainer.strategy={facts['strategy']}, now "
                             f"{now.strategy}: ZeRO stages do not read one another's optimizer state")
        world = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
        if facts["world_size"] != world:
            raise ValueError(f"checkpoint {path} was written by {facts['world_size']} processes, now there are "
                             f"{world}: DeepSpeed's optimizer state is split among them. Go on with as many, or start "
                             "a new run from its weights (python -m nbp.convert checkpoint-to-native, then init_from)")
        self.check(facts["run"], path)

    def check(self, saved, path):
        """Compare the configuration in a checkpoint with the present one; prints what differs.

        Args:
            saved: nested dict of the run that wrote the checkpoint.
            path: names it.

        Raises:
            ValueError: a change that cannot be made, or one that trainer.accept_changes has to allow.
        """
        changes = config_changes(saved, to_dict(self.run))
        refused = {name: pair for name, pair in changes.items() if not _among(name, FREE)}
        fixed = [name for name in refused if _among(name, FIXED)]
        text = "; ".join(f"{name} was {old!r}, is now {new!r}" for name, (old, new) in refused.items())
        if fixed or (refused and not self.run.trainer.accept_changes):
            way = (f"{', '.join(fixed)} cannot change within a run; choose another trainer.out" if fixed else
                   "choose another trainer.out, or trainer.accept_changes=true to go on with the new values")
            raise ValueError(f"checkpoint {path} belongs to another configuration: {text}. Undo the change, or {way}")
        if changes and not (torch.distributed.is_initialized() and torch.distributed.get_rank()):
            for name, (old, new) in changes.items():
                print(f"resume: {name} was {old!r}, is now {new!r}", file=sys.stderr, flush=True)


def config_changes(saved, current):
    """Fields that differ between two nested dicts: dotted name -> (saved, current).

    Fields that the saved one lacks are newer than it and left out. Batch size, devices and accumulation appear as
    `global batch` where their product differs.
    """
    old, new = _flat(saved), _flat(current)
    changes = {name: (value, new.get(name)) for name, value in sorted(old.items()) if value != new.get(name)}
    batches = _global_batches(saved), _global_batches(current)
    if batches[0] != batches[1]:
        changes["global batch"] = batches
    return changes


def _flat(values, prefix=""):
    flat = {}
    for name, value in values.items():
        if prefix + name == "curriculum":  # its batch sizes are compared with the number of devices
            value = [{key: x for key, x in phase.items() if key != "batch_size"} for phase in value]
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def _global_batches(run):
    """Clips of an optimizer step, per phase."""
    trainer = run["trainer"]
    times = trainer["devices"] * trainer["num_nodes"] * trainer["accumulate"]
    sizes = [phase["batch_size"] for phase in run["curriculum"]] if "curriculum" in run else [run["batch_size"]]
    return [size * times for size in sizes]


def _among(name, names):
    return any(name == entry or (entry[-1] in "._" and name.startswith(entry)) for entry in names)


def on_rank_zero(function):
    """What `function` returns or raises on rank 0, on every rank."""
    import torch.distributed as dist

    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return function()
    box = [None, None]
    if dist.get_rank() == 0:
        try:
            box[0] = function()
        except (ValueError, OSError) as error:
            box[1] = str(error)
    dist.broadcast_object_list(box, 0)
    if box[1] is not None:
        raise ValueError(box[1])
    return box[0]
