"""Where a run begins: at a checkpoint of its own, or with the weights of another model (`init_from`).

All ranks check a checkpoint together and follow rank 0's choice. Fields that change what is trained are refused, fields
that only change where and how it runs are free; between them lie those that `trainer.accept_changes=true` lets through.
"""

import dataclasses
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist
from torch import nn

from nbp.config import to_dict
from nbp.config.loading import REMOVED, flat
from nbp.config.runs import Run
from nbp.generator.model import Generator
from nbp.hub import models
from nbp.system.distributed import PATIENCE
from nbp.system.files import read_json
from nbp.tokenizer.model import Tokenizer
from nbp.training import checkpoints

T = TypeVar("T")
# Where and how a run works, not what it computes. Batch sizes and devices may change as long as their product stays.
FREE = ("init_from", "inflate_from", "data.root", "data.train_list", "data.val_list", "images.root",
        "images.train_list", "data.max_bad_files", "tokens", "tokenizer", "text_tokenizer",
        "model.activation_checkpointing", "trainer.out", "trainer.devices", "trainer.num_nodes", "trainer.accumulate",
        "trainer.global_batch", "trainer.compile", "trainer.num_workers", "trainer.val_",
        "trainer.checkpoint_every_steps", "trainer.keep_last", "trainer.log_every_steps", "trainer.resume",
        "trainer.accept_changes", "trainer.wandb_project", "trainer.guard_patience", "trainer.max_rollbacks",
        "trainer.strategy", "batch_size")
FIXED = ("kind", "model.", "discriminator.", "freeze_encoder", "trainer.ema_decay", "optim.optimizer")
ACCEPTED = ("model.dropout", "model.condition_dropout")     # of FIXED, what accept_changes lets through
# Model fields that give no tensor another shape or meaning: clip size, training options, how ids are drawn and masked.
FREE_MODEL_FIELDS = {"grid", "dropout", "condition_dropout", "activation_checkpointing", "clamp_samples", "multinomial",
                     "pad_token", "pad_visibility", "code_levels"}


class Resume:
    """The checkpoint that a run goes on from: `chosen`, once it is loaded."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.sharded = run.trainer.strategy.startswith("deepspeed")
        self.chosen: Path | None = None

    def choose(self, path: str | Path) -> Path:
        """The checkpoint, or the newest complete one of a folder, the same on every rank; the process group must be up.
        ValueError, on every rank: it is damaged, or was written by another kind of engine."""
        path, ranks = Path(path), Ranks()
        if path.is_dir() and checkpoints.step_of(path.resolve()) is None:
            found = ranks.from_zero(lambda: checkpoints.list_checkpoints(path))
            path = checkpoints.newest_complete(path, found, ranks.find_damage, quiet=ranks.rank() > 0)
        elif damage := ranks.find_damage(path):
            raise ValueError(f"checkpoint {path}: {damage}")
        ranks.from_zero(lambda: self.check_engine(path, ranks.world))
        self.chosen = path
        return path

    def check_engine(self, path: Path, world: int) -> None:
        """Refuse a checkpoint of another engine, and of another number of DeepSpeed's processes."""
        if path.is_dir() != self.sharded:
            written = "DeepSpeed" if path.is_dir() else "one device or DDP"
            raise ValueError(f"checkpoint {path} was written by {written}, trainer.strategy is now "
                             f"{self.run.trainer.strategy}: go on with the same engine, or start a new run from its "
                             "weights (python -m nbp.convert checkpoint-to-native, then init_from)")
        if not self.sharded:
            return
        facts, now = read_json(path / checkpoints.MANIFEST), self.run.trainer
        if facts["strategy"] != now.strategy:
            raise ValueError(f"checkpoint {path} was written with trainer.strategy={facts['strategy']}, now "
                             f"{now.strategy}: ZeRO stages do not read one another's optimizer state")
        if facts["world_size"] != world:
            raise ValueError(f"checkpoint {path} was written by {facts['world_size']} processes, now there are "
                             f"{world}: DeepSpeed's optimizer state is split among them. Go on with as many, or start "
                             "a new run from its weights (python -m nbp.convert checkpoint-to-native, then init_from)")
        self.check_config(facts["run"], path)

    def check_config(self, saved: dict[str, Any], path: str | Path) -> None:
        """Compare the configuration in checkpoint `path` with the present one; rank 0 prints what differs. ValueError:
        a change that cannot be made, or one that trainer.accept_changes has to allow."""
        changes = config_changes(saved, to_dict(self.run))
        refused = {name: pair for name, pair in changes.items() if not _among(name, FREE)}
        fixed = [name for name, pair in refused.items() if _among(name, FIXED) and name not in ACCEPTED
                 or name == "loss.adversarial" and not all(pair)]      # critics come or go
        text = "; ".join(f"{name} was {old!r}, is now {new!r}" for name, (old, new) in refused.items())
        if fixed or (refused and not self.run.trainer.accept_changes):
            way = (f"{', '.join(fixed)} cannot change within a run; choose another trainer.out" if fixed else
                   "choose another trainer.out, or trainer.accept_changes=true to go on with the new values")
            raise ValueError(f"checkpoint {path} belongs to another configuration: {text}. Undo the change, or {way}")
        if Ranks.rank() == 0:
            for name, (old, new) in changes.items():
                print(f"resume: {name} was {old!r}, is now {new!r}", file=sys.stderr, flush=True)


class Ranks:
    """The processes of a run while they look for a checkpoint; one that reads more than others is waited for."""

    def __init__(self) -> None:
        up = dist.is_available() and dist.is_initialized()
        self.world = dist.get_world_size() if up else 1
        # The run's own group gives up after minutes, which reading a large checkpoint may take.
        self.group = dist.new_group(backend="gloo", timeout=PATIENCE) if self.world > 1 else None

    @staticmethod
    def rank() -> int:
        return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0

    def find_damage(self, path: Path) -> str | None:
        """`checkpoints.find_damage`, each rank reading its share of the files; the same answer on all."""
        found: list[str | None] = [checkpoints.find_damage(path, self.rank(), self.world)]
        if self.group is not None:
            mine, found = found[0], [None] * self.world
            dist.all_gather_object(found, mine, group=self.group)
        return next(filter(None, found), None)

    def from_zero(self, function: Callable[[], T]) -> T:
        """What `function` returns or raises on rank 0, on every rank."""
        if self.group is None:
            return function()
        box: list[Any] = [None, None]
        if self.rank() == 0:
            try:
                box[0] = function()
            except (ValueError, OSError) as error:
                box[1] = str(error)
        dist.broadcast_object_list(box, 0, group=self.group)
        if box[1] is not None:
            raise ValueError(box[1])
        return box[0]


def config_changes(saved: dict[str, Any], current: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Fields that differ between two nested dicts: dotted name -> (saved, current). Fields that the saved one lacks are
    newer than it and left out, as are `REMOVED` ones; batch size, devices and accumulation appear as `global batch`
    where their product differs."""
    old, new = flat(saved), flat(current)
    for values in (old, new):       # the curriculum's batch sizes are compared with the number of devices
        if "curriculum" in values:
            values["curriculum"] = [{name: value for name, value in phase.items() if name != "batch_size"}
                                    for phase in values["curriculum"]]
    old["trainer.accumulate"], new["trainer.accumulate"] = _micro_batches(saved), _micro_batches(current)
    if old["trainer.precision"] == "auto":     # earlier code stored the word, not what it stood for
        old["trainer.precision"] = new["trainer.precision"]
    changes = {name: (value, new.get(name)) for name, value in sorted(old.items())
               if name not in REMOVED and value != new.get(name)}
    for name, sizes in (("global batch", _global_batches), ("global batch of images", _image_batches)):
        batches = sizes(saved), sizes(current)
        if batches[0] != batches[1]:
            changes[name] = batches
    return changes


def _batch_sizes(run: dict[str, Any]) -> list[int]:
    """Clips per device and micro-batch, by phase."""
    return [phase["batch_size"] for phase in run["curriculum"]] if "curriculum" in run else [run["batch_size"]]


def _micro_batches(run: dict[str, Any]) -> int:
    """As `accumulate` of a run; earlier code stored the number itself."""
    trainer = run["trainer"]
    if trainer["accumulate"] is not None or trainer["global_batch"] is None:
        return trainer["accumulate"] or 1
    return trainer["global_batch"] // (_batch_sizes(run)[-1] * trainer["devices"] * trainer["num_nodes"])


def _global_batches(run: dict[str, Any]) -> list[int]:
    """Clips of an optimizer step, by phase."""
    times = run["trainer"]["devices"] * run["trainer"]["num_nodes"] * _micro_batches(run)
    return [size * times for size in _batch_sizes(run)]


def _image_batches(run: dict[str, Any]) -> list[int]:
    """Images of a micro-batch on all devices, and micro-batches of a step, among which theirs are spread."""
    images, trainer = run.get("images") or {}, run["trainer"]
    if not images.get("share"):
        return []
    return [images["batch_size"] * trainer["devices"] * trainer["num_nodes"], _micro_batches(run)]


def _among(name: str, names: Collection[str]) -> bool:
    return any(name == entry or (entry[-1] in "._" and name.startswith(entry)) for entry in names)


def load_initial(model: nn.Module, kind: str, path: str) -> None:
    """Copy the weights of a native folder or official file into a model of the same architecture on the CPU, in place.

    A plain generator may have another block shape than its checkpoint; a hybrid one has ids for the places in a block.
    ValueError: another kind or architecture; names the fields and both values.
    """
    source: Any = (Tokenizer if kind == "tokenizer" else Generator).from_pretrained(path)
    config: Any = model.config
    free = FREE_MODEL_FIELDS | ({"block_shape"} if getattr(source.config, "start", None) == "plain" else set())
    differing = [field.name for field in dataclasses.fields(config) if field.name not in free
                 and getattr(config, field.name) != getattr(source.config, field.name)]
    if differing:
        raise ValueError(f"init_from={path} holds another model: " + "; ".join(
            f"model.{name} is {getattr(config, name)}, there it is {getattr(source.config, name)}"
            for name in differing))
    state = source.state_dict()
    if isinstance(model, Generator):
        state = model.with_code_levels(source.without_code_levels().state_dict())   # folders hold no sums
    models.check_state_dict(model, state, path)
    model.load_state_dict(state)
