"""Each rank has a device of its own."""

import pytest
import torch

from nbp.system.distributed import default_device


@pytest.mark.parametrize("rank, device", [(0, "cuda:0"), (3, "cuda:3"), (5, "cuda:1")])
def test_a_rank_takes_the_gpu_of_its_place_on_the_node(monkeypatch, rank, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setenv("LOCAL_RANK", str(rank))
    assert default_device() == device


def test_without_a_launcher_or_a_gpu(monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert default_device() == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert default_device() == "cuda:0"
