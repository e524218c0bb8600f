"""Steps of fixed shapes as CUDA graphs: a small step spends most of its time in launching kernels one by one."""

from collections.abc import Callable, Iterable
from functools import cache

import torch
from torch import Tensor

MAX_SEQUENCES = 8


def can_record(prefix: Tensor) -> bool:
    """Whether steps behind these embeddings (B, C, D) are recorded: where launching takes longer than computing.

    That is so for 16-bit weights and few sequences. A clip of K600's base model, 48 steps of 16 tokens, on an H200:
    0.34 s launched and 0.18 s replayed for 1 clip, 0.38 and 0.26 s for 8, but 0.57 and 0.65 s for 32, as replayed
    steps read the whole cache; in float32 0.47 and 0.51 s. Autocast would replay its casts of all weights each time.
    """
    few = len(prefix) <= MAX_SEQUENCES and prefix.dtype != torch.float32
    return few and prefix.is_cuda and not torch.is_autocast_enabled("cuda")


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """The one stream of a device that is recorded on: each stream keeps a workspace for products until the end."""
    return torch.cuda.Stream(device)


class Recorded:
    """A function of tensors that runs at its first call, is recorded at the second, and then replayed.

    Every call must have the shapes of the first one; the result is overwritten by the next call.
    Source: docs.pytorch.org/docs/stable/notes/cuda.html, section "CUDA Graphs".

    Args:
        function: of tensors on one CUDA device, without synchronisation; returns a tensor.
        generators: of that device, from which it draws; each replay goes on with them as a call would.
    """

    def __init__(self, function: Callable[..., Tensor], generators: Iterable[torch.Generator] = ()) -> None:
        self.function, self.generators, self.calls = function, list(generators), 0
        self.inputs: list[Tensor] | None = None

    def __call__(self, *inputs: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == 1:               # libraries initialise themselves, which must not be recorded
            return self.function(*inputs)
        device = inputs[0].device       # of a launched rank it is not the current one
        with torch.cuda.device(device):
            if self.inputs is None:
                self.inputs = [tensor.clone() for tensor in inputs]
                self.graph = torch.cuda.CUDAGraph()
                for generator in self.generators:
                    self.graph.register_generator_state(generator)
                # Other threads, such as those that load data, may allocate meanwhile.
                with torch.cuda.graph(self.graph, stream=_stream(device), capture_error_mode="thread_local"):
                    self.output = self.function(*self.inputs)
            for recorded, tensor in zip(self.inputs, inputs):
                recorded.copy_(tensor)
            self.graph.replay()
        return self.output
