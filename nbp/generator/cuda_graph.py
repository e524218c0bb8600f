"""Steps of fixed shapes as CUDA graphs: a small step spends most of its time in launching kernels one by one."""

import torch


def can_record(device):
    """Whether steps on this device are recorded: on CUDA, outside autocast, whose casts would be replayed each time."""
    return device.type == "cuda" and not torch.is_autocast_enabled("cuda")


class Recorded:
    """A function of tensors that runs at its first call, is recorded at the second, and then replayed.

    Every call must have the shapes of the first one; the result is overwritten by the next call.
    Source: docs.pytorch.org/docs/stable/notes/cuda.html, section "CUDA Graphs".

    Args:
        function: of tensors on one CUDA device, without synchronisation; returns a tensor.
    """

    def __init__(self, function):
        self.function, self.calls, self.inputs = function, 0, None

    def __call__(self, *inputs):
        self.calls += 1
        if self.calls == 1:               # libraries initialise themselves, which must not be recorded
            return self.function(*inputs)
        if self.inputs is None:
            self.inputs = [tensor.clone() for tensor in inputs]
            self.graph = torch.cuda.CUDAGraph()
            # Other threads, such as those that load data, may allocate meanwhile.
            with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
                self.output = self.function(*self.inputs)
        for kept, tensor in zip(self.inputs, inputs):
            kept.copy_(tensor)
        self.graph.replay()
        return self.output
