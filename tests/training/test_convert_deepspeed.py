"""A DeepSpeed checkpoint becomes one float32 file with every weight in it."""

import pytest
import torch

from nbp import convert
from nbp.generator.model import Generator


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["deepspeed_1", "deepspeed_3"])
def test_deepspeed_to_fp32(launch, generator_run, tmp_path, strategy):
    launch(2, "tests/fixtures/runs/generator.yaml",
           *generator_run(tmp_path / "run", "trainer.ema_decay=0", f"trainer.strategy={strategy}"))
    folder = tmp_path / "run" / "checkpoints" / "last.ckpt"
    assert folder.is_dir()
    convert.main(["deepspeed-to-fp32", str(folder), str(tmp_path / "weights.ckpt")])
    state = torch.load(tmp_path / "weights.ckpt", weights_only=False)["state_dict"]
    convert.main(["checkpoint-to-native", str(folder), str(tmp_path / "native")])
    native = Generator.from_pretrained(tmp_path / "native").state_dict()
    trained = Generator.from_pretrained(tmp_path / "run" / "model").state_dict()
    for name, tensor in trained.items():
        assert state[f"model.{name}"].dtype == torch.float32
        torch.testing.assert_close(state[f"model.{name}"], tensor, rtol=0, atol=0)
        torch.testing.assert_close(native[name], tensor, rtol=0, atol=0)


@pytest.mark.slow
def test_a_bfloat16_run_exports_its_float32_weights(launch, generator_run, tmp_path):
    launch(2, "tests/fixtures/runs/generator.yaml", *generator_run(
        tmp_path / "run", "trainer.ema_decay=0", "trainer.strategy=deepspeed_1", "trainer.precision=bf16-mixed"))
    convert.main(["deepspeed-to-fp32", str(tmp_path / "run" / "checkpoints" / "last.ckpt"),
                  str(tmp_path / "weights.ckpt")])
    state = torch.load(tmp_path / "weights.ckpt", weights_only=True)["state_dict"]
    exported = Generator.from_pretrained(tmp_path / "run" / "model").state_dict()
    for name, tensor in exported.items():
        assert tensor.dtype == torch.float32 and torch.equal(tensor, state[f"model.{name}"])
    assert any((tensor != tensor.bfloat16().float()).any() for tensor in exported.values()), "not rounded to bfloat16"
