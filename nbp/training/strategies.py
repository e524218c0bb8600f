"""One config word -> a Lightning strategy; DeepSpeed also on CPU, for tests and laptops.

DeepSpeed's checkpoint folders are written under another name and renamed when every rank has written its part.
Lightning's DeepSpeedStrategy refuses CPU, although DeepSpeed itself runs there over gloo; `CpuDeepSpeed` lifts only
the device checks.
"""

import datetime
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.precision import DeepSpeedPrecision
from pytorch_lightning.strategies import DDPStrategy, DeepSpeedStrategy, ParallelStrategy, Strategy
from torch import Tensor

from nbp.config import TrainerConfig, to_dict
from nbp.config.runs import Run
from nbp.system.processor import multiplies_bfloat16
from nbp.training import checkpoints
from nbp.training.module import TrainingModule
from nbp.training.resume import Resume
from nbp.training.saving import save_error, set_batches

T = TypeVar("T")
# How long ranks wait for one that has died or hangs before they stop with an error (torchrun notices a death at once).
PATIENCE = datetime.timedelta(minutes=10)


class WholeFolders(DeepSpeedStrategy):
    """DeepSpeed whose checkpoint folders appear complete or not at all, on a file system that all ranks share."""

    def __init__(self, resume: Resume, arguments: dict[str, Any]) -> None:
        super().__init__(**arguments)
        self.resume = resume

    def save_checkpoint(self, checkpoint: dict, filepath: str | Path, storage_options: object = None) -> None:
        final = Path(self.broadcast(filepath))
        temporary = checkpoints.hidden(final)
        if self.is_global_zero and temporary.exists():
            checkpoints.remove(temporary)
        self.barrier("old folder")
        try:
            super().save_checkpoint(checkpoint, temporary, storage_options)
        except (OSError, RuntimeError) as error:
            raise save_error(final, error) from error
        self.barrier("every part is written")
        if self.is_global_zero:
            module = self.lightning_module
            assert isinstance(module, TrainingModule)
            run = module.run
            checkpoints.publish(temporary, final, {"world_size": self.world_size, "strategy": run.trainer.strategy,
                                                   "step": checkpoint["global_step"], "run": to_dict(run)})
        self.barrier("renamed")

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        checkpoint = super().load_checkpoint(self.resume.choose(checkpoint_path), weights_only)
        set_batches(checkpoint["loops"]["fit_loop"], checkpoint["global_step"] * self.resume.run.accumulate)
        return checkpoint


class FullInput(DeepSpeedPrecision):
    """Leaves batches as they are: a frozen float32 tokenizer would give other tokens for pixels in bfloat16."""

    def convert_input(self, data: T) -> T:
        return data

    def backward(self, tensor: Tensor, model: pl.LightningModule, *_: object, **__: object) -> None:  # type: ignore[override]
        """Lightning has divided the loss by the micro-batches of a step; DeepSpeed would once more, and gradients that
        much smaller are not clipped where they should be."""
        model.trainer.model.backward(tensor, scale_wrt_gas=False)  # type: ignore[union-attr, operator]


class CpuDeepSpeed(WholeFolders):
    """ZeRO 1 to 3 on CPU processes over gloo."""

    @property
    def root_device(self) -> torch.device:
        return torch.device("cpu", self.local_rank)

    def setup_environment(self) -> None:
        import deepspeed

        # The shared-memory collectives cost a 45 s compilation at first use and serve tensor parallelism only.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        ParallelStrategy.setup_environment(self)
        self.setup_distributed()

    def setup_distributed(self) -> None:
        from lightning_fabric.utilities.seed import reset_seed

        reset_seed()
        self.set_world_ranks()
        self._init_deepspeed_distributed()


def build_strategy(word: str, processes: int, gradient_clip: float, resume: Resume) -> Strategy | str:
    """Lightning strategy for `trainer.strategy` with so many processes, or the word "auto" for one; `gradient_clip`
    (global norm) is for DeepSpeed, which clips by its own config and ignores Lightning's."""
    if word == "auto" and processes == 1:
        return "auto"
    if word in ("auto", "ddp"):     # of several, Lightning's own choice, which would wait longer
        return DDPStrategy(find_unused_parameters=False, timeout=PATIENCE)
    arguments: dict[str, Any] = {"config": deepspeed_config(word, gradient_clip), "timeout": PATIENCE}
    if torch.cuda.is_available():
        return WholeFolders(resume, arguments)
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    return CpuDeepSpeed(resume, arguments | {"accelerator": None, "process_group_backend": "gloo"})


def deepspeed_config(word: str, gradient_clip: float) -> dict[str, Any]:
    """DeepSpeed's configuration for a word of `trainer.strategy`; precision is added by Lightning."""
    _, stage, *offload = word.split("_")
    zero: dict[str, Any] = {"stage": int(stage)}
    if offload:
        zero["offload_optimizer"] = {"device": "cpu"}
        if zero["stage"] == 3:
            zero["offload_param"] = {"device": "cpu"}
    if zero["stage"] == 3 and not torch.cuda.is_available():
        zero["stage3_param_persistence_threshold"] = 0  # small models would not be split at all, and tests see nothing
    return {
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # PyTorch's fused AdamW runs on the CPU as well, without a compilation
        "zero_optimization": zero,
        "gradient_clipping": gradient_clip,
        "train_micro_batch_size_per_gpu": 1,  # DeepSpeed's own throughput log only; batches come from the sampler
    }


def check_engine(run: Run) -> None:
    """ValueError: Muon under DeepSpeed; a moving average under ZeRO-3, or under DeepSpeed in bfloat16."""
    word, precision = run.trainer.strategy, resolve_precision(run.trainer.precision)
    if run.optim.optimizer == "muon" and word.startswith("deepspeed"):
        raise ValueError(f"optim.optimizer=muon with trainer.strategy={word}: Muon's step needs whole matrices, "
                         "and ZeRO gives each rank a flat piece of them; use trainer.strategy=ddp, or "
                         "optim.optimizer=adamw with optim.muon_lr=null")
    if run.trainer.ema_decay and word.startswith("deepspeed"):
        if word.startswith("deepspeed_3"):
            raise ValueError(f"trainer.ema_decay={run.trainer.ema_decay} with trainer.strategy={word}: no rank holds "
                             "the weights whole that the average follows; use trainer.ema_decay=0, or deepspeed_2")
        if precision != "32-true":
            raise ValueError(f"trainer.ema_decay={run.trainer.ema_decay} with trainer.strategy={word} in {precision}: "
                             "DeepSpeed keeps the module in bfloat16, whose 8 bits swallow the average's small steps; "
                             "use trainer.ema_decay=0, trainer.precision=32-true or trainer.strategy=ddp")


def check_processes(trainer_config: TrainerConfig, environment: Mapping[str, str] = os.environ) -> None:
    """ValueError: torchrun started another number of processes than the configuration says; each would train by itself
    and write into the same folder."""
    started = environment.get("WORLD_SIZE") if "TORCHELASTIC_RUN_ID" in environment else None
    configured = trainer_config.devices * trainer_config.num_nodes
    if started is not None and int(started) != configured:
        raise ValueError(f"torchrun started {started} processes, but trainer.devices={trainer_config.devices} x "
                         f"trainer.num_nodes={trainer_config.num_nodes} = {configured}; set both to what torchrun got")


def resolve_precision(word: str) -> str:
    """`auto` -> bf16-mixed where the hardware multiplies bfloat16 faster than float32 (`multiplies_bfloat16`), else
    32-true."""
    if word != "auto":
        return word
    return "bf16-mixed" if multiplies_bfloat16("cuda" if torch.cuda.is_available() else "cpu") else "32-true"
