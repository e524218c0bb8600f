"""Files that a person has: checkpoints of runs, what failed downloads leave, folders that are not models."""

import shutil
from pathlib import Path

import pytest
import torch

from nbp import convert
from nbp.config import GeneratorConfig
from nbp.download import load_magvit2, load_transformer
from nbp.generator.model import Generator
from nbp.hub.torch_files import read_file
from nbp.tokenizer.model import Tokenizer

MADE = Path(__file__).parents[1] / "fixtures" / "before_layout"
POINTER = ("version https://git-lfs.github.com/spec/v1\n"
           "oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 1132411904\n")
PAGE = "\n<!DOCTYPE html>\n<html><head><title>magvit2_ucf.pt</title></head></html>\n"


@pytest.mark.parametrize("kind, load", [("tokenizer", Tokenizer), ("generator", Generator)])
def test_a_checkpoint_of_a_run_loads_as_what_it_is_converted_to(kind, load, tmp_path):
    checkpoint = MADE / f"{kind}_run" / "checkpoints" / "last.ckpt"
    convert.main(["checkpoint-to-native", str(checkpoint), str(tmp_path)])
    loaded, converted = load.from_pretrained(checkpoint), load.from_pretrained(tmp_path)
    assert loaded.config == converted.config and not loaded.training
    state = converted.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.state_dict().items())


def test_a_checkpoint_of_the_other_kind_is_told():
    checkpoint = MADE / "generator_run" / "checkpoints" / "last.ckpt"
    with pytest.raises(ValueError, match="last.ckpt is a checkpoint of a generator run, expected a tokenizer"):
        load_magvit2(checkpoint, device="cpu")


@pytest.mark.parametrize("prefix", ["", "_forward_module.", "module."])
def test_tensors_of_a_run_without_its_configuration_are_told_with_the_command(prefix, tmp_path):
    """What DeepSpeed's own zero_to_fp32.py writes."""
    torch.save({f"{prefix}model.head.weight": torch.ones(2)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="without its configuration.*python -m nbp.convert checkpoint-to-native"):
        load_transformer(tmp_path / "pytorch_model.bin", device="cpu")


@pytest.mark.parametrize("text, message", [(POINTER, r"is a Git LFS pointer \(\d+ bytes of text\).*`git lfs pull`"),
                                           (PAGE, "is a web page, not a file of weights")])
def test_what_failed_downloads_leave_is_called_that(text, message, tmp_path):
    (tmp_path / "magvit2_ucf.pt").write_text(text)
    with pytest.raises(ValueError, match=f"magvit2_ucf.pt {message}"):
        load_magvit2(tmp_path / "magvit2_ucf.pt", device="cpu")
    shutil.copytree(MADE / "tokenizer", tmp_path / "native")
    (tmp_path / "native" / "model.safetensors").write_text(text)
    with pytest.raises(ValueError, match=f"model.safetensors {message}"):
        Tokenizer.from_pretrained(tmp_path / "native")


@pytest.mark.parametrize("content", [b"no checkpoint", b"", bytes(range(256)), b"PK\x03\x04 no archive"])
def test_no_message_advises_to_run_the_code_in_a_file(content, tmp_path):
    (tmp_path / "model.pt").write_bytes(content)
    with pytest.raises(ValueError, match="model.pt is truncated or not a torch checkpoint") as error:
        load_magvit2(tmp_path / "model.pt", device="cpu")
    assert "weights_only" not in str(error.value) and "\n" not in str(error.value)


def test_folders_of_a_run_are_told_with_what_to_do(tmp_path):
    shutil.copytree(MADE / "generator", tmp_path / "run" / "model")
    with pytest.raises(ValueError, match=f"is not a model folder.*its model is {tmp_path / 'run' / 'model'}"):
        Generator.from_pretrained(tmp_path / "run")
    (tmp_path / "deep.ckpt").mkdir()
    (tmp_path / "deep.ckpt" / "latest").write_text("checkpoint")
    with pytest.raises(ValueError, match="is a DeepSpeed checkpoint: python -m nbp.convert checkpoint-to-native"):
        Generator.from_pretrained(tmp_path / "deep.ckpt")


def test_a_config_for_a_file_that_says_nothing_of_itself(tmp_path):
    """`config` reaches an official file through the class as well."""
    config = GeneratorConfig(2, 2, 16, 30, [5, 4, 4], [1, 1, 4], "none", "plain", begin_token=False, max_seq_len=96,
                             full_head=True, clamp_samples=True, multinomial=True, pad_visibility="decoding")
    generator = Generator(config)
    generator.save_pretrained(tmp_path / "native")
    convert.main(["native-to-official", str(tmp_path / "native"), str(tmp_path / "full.ckpt")])
    torch.save(read_file(tmp_path / "full.ckpt")["state_dict"], tmp_path / "plain.pt")
    with pytest.raises(ValueError, match="pass config="):
        Generator.from_pretrained(tmp_path / "plain.pt")
    loaded = Generator.from_pretrained(tmp_path / "plain.pt", config=config)
    assert torch.equal(loaded.head.weight, generator.head.weight)
