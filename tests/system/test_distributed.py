"""Each rank has a device of its own."""

import pytest
import torch

from nbp.system import distributed
from nbp.system.command import UserError
from nbp.system.distributed import check_device, default_device, held_by_ranks
from nbp.system.files import held


@pytest.mark.parametrize("rank, device", [(0, "cuda:0"), (3, "cuda:3"), (5, "cuda:1")])
def test_a_rank_takes_the_gpu_of_its_place_on_the_node(monkeypatch, rank, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setenv("LOCAL_RANK", str(rank))
    assert default_device() == device


@pytest.mark.parametrize("device", ["mps", "meta", "xpu"])
def test_devices_that_nothing_here_runs_on(device):
    with pytest.raises(ValueError, match=f"device '{device}' is not supported; accepted: cpu, cuda, cuda:N"):
        check_device(device)


def test_without_a_launcher_or_a_gpu(monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert default_device() == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert default_device() == "cuda:0"


def test_a_device_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for device in ("cpu", "cuda", "cuda:1", torch.device("cuda", 1)):
        check_device(device)
    with pytest.raises(ValueError, match="device 'cuda:2': this machine has 2 GPUs, the first is cuda:0"):
        check_device("cuda:2")
    with pytest.raises(ValueError, match="unknown device 'tpu'; accepted: cpu, cuda, cuda:N"):
        check_device("tpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="device 'cuda:0' is not available here: pass device=\"cpu\""):
        check_device("cuda:0")


def test_a_gpu_that_pytorch_cannot_use_is_told(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(distributed.Path, "exists", lambda path: str(path) == "/dev/nvidia0")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with pytest.raises(UserError, match="cannot use this machine's GPU: its driver is older"):
        distributed.check_driver()
    for nothing in ("", "-1", "NoDevFiles"):      # a CPU is what is asked for
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", nothing)
        distributed.check_driver()


def test_a_folder_is_held_until_all_ranks_are_done(monkeypatch, tmp_path):
    seen = []

    def barrier(problem=""):
        try:
            with held(tmp_path / "out", 0):
                seen.append("free")
        except UserError:
            seen.append("held")

    monkeypatch.setattr(distributed, "barrier", barrier)
    with held_by_ranks(tmp_path / "out"):
        seen.append("work")
    assert seen == ["held", "work", "held"]
    with held(tmp_path / "out", 0):
        pass


def test_a_folder_that_cannot_be_held(monkeypatch, tmp_path):
    monkeypatch.setattr(distributed, "LOCK_PATIENCE_S", 0.1)
    with held(tmp_path), pytest.raises(ValueError, match="another process is working in"), held_by_ranks(tmp_path):
        pytest.fail("it is held twice")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="file"), held_by_ranks(tmp_path / "file"):
        pytest.fail("a file is no folder")
