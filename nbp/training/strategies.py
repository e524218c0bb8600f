"""One config word -> a Lightning strategy; DeepSpeed also on CPU, for tests and laptops.

Lightning's DeepSpeedStrategy refuses CPU, although DeepSpeed itself runs there over gloo;
`CpuDeepSpeedStrategy` lifts only the device checks.
"""

import os

import torch
from pytorch_lightning.strategies import DDPStrategy, DeepSpeedStrategy, ParallelStrategy


class CpuDeepSpeedStrategy(DeepSpeedStrategy):
    """ZeRO 1 to 3 on CPU processes over gloo."""

    @property
    def root_device(self):
        return torch.device("cpu", self.local_rank)

    def setup_environment(self):
        import deepspeed

        # The shared-memory collectives cost a 45 s compilation at first use and serve tensor parallelism only.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        ParallelStrategy.setup_environment(self)
        self.setup_distributed()

    def setup_distributed(self):
        from lightning_fabric.utilities.seed import reset_seed

        reset_seed()
        self.set_world_ranks()
        self._init_deepspeed_distributed()


def build_strategy(word, gradient_clip=0.0):
    """Strategy for `trainer.strategy`.

    Args:
        word: auto | ddp | deepspeed_1 | deepspeed_2 | deepspeed_3.
        gradient_clip: global norm; DeepSpeed clips by its own config and ignores Lightning's.

    Returns:
        A Lightning strategy or the word "auto".
    """
    if word == "auto":
        return "auto"
    if word == "ddp":
        return DDPStrategy(find_unused_parameters=False)
    stage = int(word.removeprefix("deepspeed_"))
    config = {
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {"stage": stage},
        "gradient_clipping": gradient_clip,
        "train_micro_batch_size_per_gpu": 1,  # DeepSpeed's own throughput log only; batches come from the sampler
    }
    if torch.cuda.is_available():
        return DeepSpeedStrategy(config=config)
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    return CpuDeepSpeedStrategy(accelerator=None, config=config, process_group_backend="gloo")


def resolve_precision(word):
    """`auto` -> bf16-mixed where the hardware multiplies bfloat16 (CUDA since Ampere, AMX), else 32-true.

    CPUs without AMX emulate bfloat16 convolutions: slower than float32.
    """
    if word != "auto":
        return word
    if torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
    return "bf16-mixed" if torch.cpu._is_amx_tile_supported() else "32-true"
