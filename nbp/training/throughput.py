"""Speed, memory and use of the hardware, logged while training: perf/*."""

import itertools
import re
import resource
import sys
import time

import torch
from pytorch_lightning.callbacks import Callback

from nbp.training.flops import flops_per_step

# Dense bfloat16 operations per second of one device (vendors' data sheets); others get perf/tflops but no perf/mfu.
PEAK_FLOPS = {"H200": 989e12, "H100 PCIe": 756e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L40": 181e12,
              "A40": 150e12, "L4": 121e12, "RTX 4090": 165e12, "RTX 3090": 71e12}


def peak_flops(name):
    """Peak of a device by its name, of which the key is whole words; None where it is not known."""
    return next((peak for key, peak in PEAK_FLOPS.items() if re.search(rf"\b{key}\b", name)), None)


class Throughput(Callback):
    """Clips, tokens and model FLOPs per second over all devices, since the last logged step, validation left out.

    Args:
        run: `TokenizerRun` or `GeneratorRun`.
    """

    def __init__(self, run):
        self.run, self.every = run, run.trainer.log_every_steps
        self._flops = {}
        self._clips = self._tokens = self._steps = 0

    def on_train_start(self, trainer, module):
        self._restart()

    def on_validation_end(self, trainer, module):
        self._restart()  # a window with a validation in it would say nothing

    def _restart(self):
        self._start = time.perf_counter()
        self._clips = self._tokens = self._steps = 0

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        clips = len(batch["label"])
        self._clips += clips
        self._tokens += clips * module.tokens_per_clip(batch)
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        self._steps += 1
        if trainer.global_step % self.every:
            return
        seconds, world = time.perf_counter() - self._start, trainer.world_size
        tflops = self._step_flops(trainer.global_step - 1) * self._steps / seconds / 1e12
        values = {"clips_per_s": self._clips * world / seconds, "tokens_per_s": self._tokens * world / seconds,
                  "tflops": tflops, "memory_gib": memory_gib(module.device)}
        if module.device.type == "cuda" and (peak := peak_flops(torch.cuda.get_device_name(module.device))):
            values["mfu"] = tflops * 1e12 / (peak * world)
        module.log_dict({f"perf/{name}": float(value) for name, value in values.items()})
        self._restart()

    def _step_flops(self, step):
        kind = kind_of_step(self.run, step)
        if kind not in self._flops:
            self._flops[kind] = flops_per_step(self.run, step)
        return self._flops[kind]


def kind_of_step(run, step):
    """Steps of one kind cost the same: (phase of the curriculum, perceptual loss on, critics on); () for generators."""
    if run.kind == "generator":
        return ()
    ends = itertools.accumulate(phase.steps for phase in run.curriculum)
    return (sum(step >= end for end in ends), step >= run.loss.perceptual_start_step,
            step >= run.loss.adversarial_start_step)


def memory_gib(device):
    """Peak memory of this process so far, in GiB: of its GPU, or resident memory on CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
