"""Native folders, official files both ways, and what is refused."""

import fractions
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from parity import weights_rule

from nbp import convert
from nbp.config import GeneratorConfig, TokenizerConfig
from nbp.download import load_magvit2, load_transformer
from nbp.generator.model import Generator
from nbp.hub import models, name_tables, official
from nbp.hub.about import About, write_about
from nbp.hub.torch_files import read_file
from nbp.pipeline import VideoPipeline
from nbp.tokenizer.model import Tokenizer
from nbp.workflows import converting

PARITY = Path(__file__).parents[1] / "parity"
RELEASED = json.loads((PARITY / "generator_keys.json").read_text())


def small_config(**changes):
    fields = dict(num_layers=2, num_heads=2, width=16, num_codes=30, grid=[5, 4, 4], block_shape=[1, 1, 4],
                  condition="label", start="hybrid", num_condition_ids=3, condition_len=1, max_seq_len=96)
    return GeneratorConfig(**{**fields, **changes})


def official_config(**changes):
    """A model that the official code can express."""
    quirks = dict(full_head=True, clamp_samples=True, multinomial=True, pad_visibility="causal", condition_dropout=0.0)
    return small_config(**{**quirks, **changes})


def small_tokenizer():
    torch.manual_seed(0)
    return Tokenizer(TokenizerConfig(widths=[8, 8], num_res_blocks=[1, 1], strides=[[2, 2, 2]], fsq_levels=[3, 3]))


def identical(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture
def generator():
    torch.manual_seed(0)
    return Generator(small_config()).eval()


# ---- native folders


def test_native_round_trip(generator, tmp_path):
    generator.save_pretrained(tmp_path / "model")
    loaded = Generator.from_pretrained(tmp_path / "model")
    assert loaded.config == generator.config and not loaded.training
    assert identical(loaded.state_dict(), generator.state_dict())
    assert {n for n, p in loaded.named_parameters() if p.requires_grad} == {n for n, _ in generator.named_parameters()}
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == ["config.json", "model.safetensors"]


def test_tokenizer_round_trip(tmp_path):
    tokenizer = small_tokenizer().eval()
    tokenizer.save_pretrained(tmp_path)
    video = torch.rand(1, 3, 3, 8, 8)
    with torch.no_grad():
        loaded = load_magvit2(tmp_path, resolution=8, device="cpu")
        tokens = tokenizer.encode(video)[1]
        assert torch.equal(loaded.encode(video)[1], tokens)
        decoded = tokenizer.decode_from_code_indices(tokens)
        assert torch.equal(loaded.decode_from_code_indices(tokens.flatten(1)), decoded)


def test_a_folder_with_one_part_says_which_is_missing(tmp_path):
    small_tokenizer().save_pretrained(tmp_path / "tokenizer")
    with pytest.raises(ValueError, match=f"it holds a tokenizer, {tmp_path}/tokenizer, but no generator"):
        VideoPipeline.from_pretrained(tmp_path)


@pytest.mark.parametrize("dtype", [torch.float64, torch.int32])
def test_tensors_of_other_types_are_refused(tmp_path, dtype):
    tokenizer = small_tokenizer()
    state = {name: tensor.to(dtype) if name == "encoder.conv_in.conv.bias" else tensor
             for name, tensor in tokenizer.state_dict().items()}
    models.save_model(tmp_path, "tokenizer", tokenizer.config, state)
    with pytest.raises(ValueError, match=f"{tmp_path}: .*encoder.conv_in.conv.bias is .* of {dtype}"):
        Tokenizer.from_pretrained(tmp_path)


def test_a_model_loads_under_another_default_type(tmp_path, monkeypatch):
    small_tokenizer().save_pretrained(tmp_path)
    try:
        torch.set_default_dtype(torch.float64)
        assert next(Tokenizer.from_pretrained(tmp_path).parameters()).dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


def test_flat_tokens_take_the_folder_s_size(tmp_path):
    tokenizer = small_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    assert load_magvit2(tmp_path, device="cpu").resolution == 128
    write_about(tmp_path, About(resolution=64), "tokenizer")
    assert load_magvit2(tmp_path, device="cpu").resolution == 64
    assert load_magvit2(tmp_path, 32, "cpu").resolution == 32


def test_training_a_loaded_model_leaves_its_file_alone(generator, tmp_path):
    generator.save_pretrained(tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()
    loaded = Generator.from_pretrained(tmp_path)
    with torch.no_grad():
        for parameter in loaded.parameters():
            parameter.add_(1)
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_interrupted_save_keeps_the_old_file(generator, tmp_path, monkeypatch):
    generator.save_pretrained(tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()
    monkeypatch.setattr("safetensors.torch.save_file", lambda *a, **k: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        generator.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("damage, message", [
    (lambda folder: (folder / "config.json").unlink(), "config.json is missing"),
    (lambda folder: (folder / "config.json").write_text("{"), "not valid JSON"),
    (lambda folder: (folder / "config.json").write_text("{}"), "must hold kind"),
    (lambda folder: edit(folder, lambda c: c.update(kind="tokenizer")), "holds a tokenizer, expected a generator"),
    (lambda folder: edit(folder, lambda c: c.update(format_version=9)), "format_version 9"),
    (lambda folder: edit(folder, lambda c: c["config"].update(depth=3)), "unknown field depth"),
    (lambda folder: edit(folder, lambda c: c["config"].pop("width")), "no value for width"),
    (lambda folder: edit(folder, lambda c: c["config"].update(width="16")), "width must be an integer, got '16'"),
    (lambda folder: edit(folder, lambda c: c["config"].update(grid=[5, 4.0, 4])), r"grid\[1\] must be an integer"),
    (lambda folder: edit(folder, lambda c: c["config"].update(start="both")), "start must be plain or hybrid"),
    (lambda folder: edit(folder, lambda c: c["config"].update(width=32)), "expected"),
    (lambda folder: edit(folder, lambda c: c["config"].update(num_layers=3)), "missing"),
    (lambda folder: edit(folder, lambda c: c["config"].update(num_layers=1)), "unexpected"),
    (lambda folder: truncate(folder / "model.safetensors"), "truncated or not a safetensors file"),
])
def test_damaged_native_folder(generator, tmp_path, damage, message):
    generator.save_pretrained(tmp_path)
    damage(tmp_path)
    with pytest.raises(ValueError, match=message) as error:
        Generator.from_pretrained(tmp_path)
    assert str(tmp_path) in str(error.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_the_default_device_where_there_is_no_gpu(generator, tmp_path):
    generator.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="device 'cuda' is not available here: pass device=\"cpu\""):
        load_transformer(tmp_path)


def test_a_config_is_for_official_files(generator, tmp_path):
    generator.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="config= is for official files; .* knows its own"):
        load_transformer(tmp_path, config=generator.config, device="cpu")


def test_missing_folder(tmp_path):
    with pytest.raises(ValueError, match="is not a model folder"):
        load_transformer(tmp_path / "nothing", device="cpu")
    for name in ("ckpt/no_such_file.pt", tmp_path / "model.ckpt"):
        with pytest.raises(ValueError, match=f"{name} does not exist"):
            load_magvit2(name, device="cpu")


def edit(folder, change):
    content = json.loads((folder / "config.json").read_text())
    change(content)
    (folder / "config.json").write_text(json.dumps(content))


def truncate(path):
    path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])


# ---- official files


@pytest.mark.parametrize("config", [
    official_config(),
    official_config(condition="text", num_condition_ids=32000, condition_len=8),
    official_config(condition="text", num_condition_ids=32000, condition_len=8, block_shape=[1, 1, 1], pad_token=2),
    official_config(start="plain", begin_token=False, spare_id=True, pad_visibility="decoding"),
    official_config(start="plain", pad_visibility="decoding"),
    official_config(condition="none", num_condition_ids=0, condition_len=0, start="plain", begin_token=False,
                    pad_visibility="decoding"),
], ids=["label hybrid", "text hybrid", "text hybrid, 1 token", "label plain", "label plain, begin", "unconditional"])
def test_native_official_native(config, tmp_path):
    torch.manual_seed(0)
    generator = Generator(config)
    generator.save_pretrained(tmp_path / "first")
    converting.native_to_official(tmp_path / "first", tmp_path / "model.ckpt")
    content = read_file(tmp_path / "model.ckpt")
    assert set(content["state_dict"]) == released_names(config.num_layers)
    converting.official_to_native(tmp_path / "model.ckpt", tmp_path / "second")
    second = Generator.from_pretrained(tmp_path / "second")
    assert second.config == config
    assert identical(second.state_dict(), generator.state_dict())
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("first", "second")]
    assert files[0] == files[1]
    loaded = load_transformer(tmp_path / "model.ckpt", device="cpu")
    assert identical(loaded.state_dict(), generator.state_dict())


def released_names(num_layers):
    return {name for name in RELEASED["ucf_base"]["shapes"]
            if ".blocks." not in name or int(name.split(".")[2]) < num_layers}


@pytest.mark.parametrize("name", sorted(RELEASED))
def test_released_shapes(name):
    """Every released generator builds, with exactly the official tensors and parameter count, from its file alone."""
    released = RELEASED[name]
    with torch.device("meta"):
        state = {key.removeprefix("transformer."): torch.empty(shape) for key, shape in released["shapes"].items()}
        config = official.generator_config(state, None, name)
        generator = Generator(config)
        exported = name_tables.to_official(generator.state_dict(), name_tables.generator_table(config))
    assert {f"transformer.{key}": list(value.shape) for key, value in exported.items()} == released["shapes"]
    assert sum(p.numel() for p in generator.parameters()) == released["params"]
    assert len(exported) == released["n_keys_transformer"]
    native = name_tables.to_native(exported, name_tables.generator_table(config), name)
    models.check_state_dict(generator, native, name)
    assert (config.num_codes, config.block_size) == (64000, 16)
    assert config.condition == ("text" if "ucf" in name else "none")


def test_released_tokenizer_shapes():
    recorded = json.loads((PARITY / "tokenizer_keys.json").read_text())
    config = official.tokenizer_config()
    tokenizer = models.empty_model(lambda: Tokenizer(config))
    exported = name_tables.to_official(tokenizer.state_dict(), name_tables.tokenizer_table(config))
    assert {name: list(value.shape) for name, value in exported.items()} == recorded["shapes_in_state_dict_order"]
    assert models.count(exported) == (recorded["n_keys"], recorded["n_params"])
    native = name_tables.to_native(exported, name_tables.tokenizer_table(config), "file")
    models.check_state_dict(tokenizer, native, "file")


def write_official(path, config=None, **changes):
    torch.manual_seed(0)
    generator = Generator(config or official_config())
    state = name_tables.to_official(generator.state_dict(), name_tables.generator_table(generator.config))
    content = converting.generator_checkpoint(generator.config, state, "model")
    content.update(changes)
    torch.save(content, path)
    return generator, content


def test_deepspeed_converted_file(tmp_path):
    """A plain state dict, prefixed, without hyper-parameters: the caller gives the config."""
    generator, content = write_official(tmp_path / "full.ckpt")
    torch.save({f"module.{name}": value for name, value in content["state_dict"].items()}, tmp_path / "plain.pt")
    with pytest.raises(ValueError, match="no hyper_parameters.*pass config"):
        load_transformer(tmp_path / "plain.pt", device="cpu")
    loaded = load_transformer(tmp_path / "plain.pt", device="cpu", config=generator.config)
    assert identical(loaded.state_dict(), generator.state_dict())


def test_tokenizer_inside_a_generator_file_is_skipped(tmp_path, monkeypatch):
    tokenizer = small_tokenizer()
    monkeypatch.setattr(official, "tokenizer_config", lambda: tokenizer.config)
    inside = name_tables.to_official(tokenizer.state_dict(), name_tables.tokenizer_table(tokenizer.config))
    generator, content = write_official(tmp_path / "model.ckpt")
    content["state_dict"] |= {f"first_stage_model.{name}": value for name, value in inside.items()}
    torch.save(content, tmp_path / "model.ckpt")
    assert identical(load_transformer(tmp_path / "model.ckpt", device="cpu").state_dict(), generator.state_dict())
    assert identical(load_magvit2(tmp_path / "model.ckpt", device="cpu").state_dict(), tokenizer.state_dict())
    converting.official_to_native(tmp_path / "model.ckpt", tmp_path / "native", "tokenizer")
    assert identical(Tokenizer.from_pretrained(tmp_path / "native").state_dict(), tokenizer.state_dict())


def test_tokenizer_with_other_codes(tmp_path):
    write_official(tmp_path / "model.ckpt")
    with pytest.raises(ValueError, match="predicts 30 codes, the tokenizer has 9"):
        load_transformer(tmp_path / "model.ckpt", tokenizer=small_tokenizer(), device="cpu")


MEASURED = """
import resource, sys
from nbp.workflows import converting
from nbp.download import load_transformer
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
load_transformer(sys.argv[1], device="cpu")
loaded = peak()
converting.official_to_native(sys.argv[1], sys.argv[2])
print(loaded - before, peak() - before)
"""


def test_memory_of_reading_and_converting(tmp_path):
    """Reading maps the file and copies only what is joined (query, key, value); converting holds one copy besides."""
    write_official(tmp_path / "model.ckpt", config=official_config(num_layers=4, width=1024, num_codes=8000))
    size = (tmp_path / "model.ckpt").stat().st_size
    run = subprocess.run([sys.executable, "-c", MEASURED, str(tmp_path / "model.ckpt"), str(tmp_path / "native")],
                         capture_output=True, text=True, check=True)
    loaded, converted = map(int, run.stdout.split())
    assert size > 200e6 and loaded < 0.8 * size and converted < 1.6 * size, (loaded / size, converted / size)


def test_legacy_and_optimizer_content_is_read(tmp_path):
    """The file format before zip archives, and the optimizer state that Lightning files carry."""
    generator, content = write_official(tmp_path / "model.ckpt", callbacks={}, optimizer_states=[{"state": {}}])
    torch.save(content, tmp_path / "legacy.ckpt", _use_new_zipfile_serialization=False)
    assert identical(load_transformer(tmp_path / "legacy.ckpt", device="cpu").state_dict(), generator.state_dict())


def test_other_globals_are_refused_by_name(tmp_path):
    write_official(tmp_path / "model.ckpt", callbacks={"share": fractions.Fraction(1, 2)})
    with pytest.raises(ValueError, match=r"model.ckpt is refused: it names fractions.Fraction"):
        load_transformer(tmp_path / "model.ckpt", device="cpu")


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


class Command(Payload):
    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("payload, name", [(Payload, "getattr|pathlib"), (Command, f"{os.name}.system")])
def test_code_in_a_file_is_not_run(tmp_path, payload, name):
    torch.save({"state_dict": {}, "x": payload(tmp_path / "ran")}, tmp_path / "model.ckpt")
    with pytest.raises(ValueError, match=f"model.ckpt is refused: it names ({name})"):
        load_transformer(tmp_path / "model.ckpt", device="cpu")
    assert not (tmp_path / "ran").exists()


def test_truncated_and_foreign_files(tmp_path):
    write_official(tmp_path / "model.ckpt")
    truncate(tmp_path / "model.ckpt")
    (tmp_path / "text.pt").write_text("no checkpoint")
    (tmp_path / "empty.pt").write_bytes(b"")
    for name in ("model.ckpt", "text.pt", "empty.pt"):
        with pytest.raises(ValueError, match=f"{name} is truncated or not a torch checkpoint"):
            load_transformer(tmp_path / name, device="cpu")
    torch.save({"weight": torch.ones(1)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"expected tensors encoder_layers.*found 1 tensors such as weight"):
        load_transformer(tmp_path / "other.pt", device="cpu")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="found no tensors"):
        load_magvit2(tmp_path / "list.pt", device="cpu")


def test_wrong_kind_and_wrong_tensors(tmp_path):
    write_official(tmp_path / "model.ckpt")
    with pytest.raises(ValueError, match="holds a generator, expected a tokenizer"):
        load_magvit2(tmp_path / "model.ckpt", device="cpu")
    for change, message in (
            (lambda state: state.pop("transformer.blocks.1.attn.key.weight"), "attn.key.weight is missing"),
            (lambda state: state.pop("transformer.ln_f.weight"), "1 missing"),
            (lambda state: state.update({"transformer.extra": torch.ones(1)}), "such as extra"),
            (lambda state: state.update({"transformer.head.weight": torch.ones(2, 2)}), "head.weight is"),
    ):
        _, content = write_official(tmp_path / "model.ckpt")
        change(content["state_dict"])
        torch.save(content, tmp_path / "model.ckpt")
        with pytest.raises(ValueError, match=message):
            load_transformer(tmp_path / "model.ckpt", device="cpu")


@pytest.mark.parametrize("name", ["tok_emb.weight", "pos_emb", "uncond_embedding"])
def test_tensors_that_the_config_is_read_from(tmp_path, name):
    _, content = write_official(tmp_path / "model.ckpt")
    del content["state_dict"][f"transformer.{name}"]
    torch.save(content, tmp_path / "model.ckpt")
    with pytest.raises(ValueError, match=f"model.ckpt: tensor {name} is missing"):
        load_transformer(tmp_path / "model.ckpt", device="cpu")


@pytest.mark.parametrize("changes, message", [
    (dict(n_head=None), "stored argument n_head must be a positive integer, got None"),
    (dict(class_cond_dim=None), "stored argument class_cond_dim must be a positive integer, got None"),
    (dict(token_number_per_step="4"), "stored argument token_number_per_step must be a positive integer, got '4'"),
    (dict(class_cond_dim=1000), "stored arguments do not fit the tensors: .*num_codes must be at least 1, got"),
    (dict(n_head=3), "stored arguments do not fit the tensors: .*width must be divisible by num_heads=3, got 16"),
    (dict(vtokens_pos=True), "vtokens_pos .* is not in any released model"),
])
def test_stored_arguments(tmp_path, changes, message):
    _, content = write_official(tmp_path / "model.ckpt")
    vars(content["hyper_parameters"]["args"]).update(changes)
    torch.save(content, tmp_path / "model.ckpt")
    with pytest.raises(ValueError, match=f"model.ckpt: .*{message}"):
        load_transformer(tmp_path / "model.ckpt", device="cpu")


@pytest.mark.parametrize("changes, grid", [
    (dict(), [5, 4, 4]), (dict(sequence_length=16), [5, 16, 16]), (dict(resolution=60), [5, 16, 16]),
    (dict(resolution=24), [5, 16, 16])])
def test_grid_of_an_official_file(tmp_path, changes, grid):
    """Files of pre-tokenised training may store any clip size; a model still loads, with 17 frames of 128x128."""
    _, content = write_official(tmp_path / "model.ckpt")
    vars(content["hyper_parameters"]["args"]).update(changes)
    torch.save(content, tmp_path / "model.ckpt")
    assert load_transformer(tmp_path / "model.ckpt", device="cpu").config.grid == grid


@pytest.mark.parametrize("changes, field", [
    (dict(full_head=False, clamp_samples=False), "full_head=False"),
    (dict(block_shape=[1, 2, 2]), r"block_shape=\[1, 2, 2\]"),
    (dict(condition="text", num_condition_ids=500, condition_len=8), "num_condition_ids=500"),
    (dict(condition="text", num_condition_ids=32000, condition_len=5), r"condition_len=5 \(at least 8\)"),
    (dict(condition="none", num_condition_ids=0, condition_len=0, start="hybrid"), "no model without a condition that"),
    (dict(grid=[5, 2, 4]), r"not square \(grid=\[5, 2, 4\]"),
])
def test_models_the_official_code_cannot_express(tmp_path, changes, field):
    Generator(official_config(**changes)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=field):
        converting.native_to_official(tmp_path, tmp_path / "model.ckpt")
    assert not (tmp_path / "model.ckpt").exists()


def test_text_model_that_hides_its_pads_has_no_official_form(tmp_path):
    Generator(official_config(condition="text", num_condition_ids=32000, condition_len=8, block_shape=[1, 1, 1],
                              pad_token=2, pad_visibility="never")).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="pad_visibility=never"):
        converting.native_to_official(tmp_path, tmp_path / "model.ckpt")


def test_weights_that_are_not_the_configs_are_not_exported(tmp_path):
    Generator(official_config()).save_pretrained(tmp_path)
    edit(tmp_path, lambda content: content["config"].update(num_layers=3))
    with pytest.raises(ValueError, match="missing"):
        converting.native_to_official(tmp_path, tmp_path / "model.ckpt")
    assert not (tmp_path / "model.ckpt").exists()


def test_a_tokenizer_of_another_shape_has_no_official_form(tmp_path):
    Tokenizer(TokenizerConfig([8, 8], [1, 1], [[1, 2, 2]], [5, 5], patch=[2, 2, 2], units="split")).save_pretrained(
        tmp_path / "patched")
    with pytest.raises(ValueError, match="patched: the official code builds only"):
        convert.main(["native-to-official", str(tmp_path / "patched"), str(tmp_path / "out.pt")])


def test_tokenizer_to_official_and_back_by_command(tmp_path, monkeypatch, capsys):
    tokenizer = small_tokenizer()
    tokenizer.save_pretrained(tmp_path / "first")
    with pytest.raises(ValueError, match="the official code builds only"):
        convert.main(["native-to-official", str(tmp_path / "first"), str(tmp_path / "model.pt")])
    monkeypatch.setattr(official, "tokenizer_config", lambda: tokenizer.config)
    convert.main(["native-to-official", str(tmp_path / "first"), str(tmp_path / "model.pt")])
    convert.main(["official-to-native", str(tmp_path / "model.pt"), str(tmp_path / "second")])
    tensors, parameters = models.count(tokenizer.state_dict())
    assert capsys.readouterr().out.count(f"{tensors} tensors, {parameters:,} parameters") == 2
    assert all(name.startswith("module.") for name in read_file(tmp_path / "model.pt")["model_state_dict"])
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("first", "second")]
    assert files[0] == files[1]


def test_convert_command(tmp_path, capsys):
    generator, _ = write_official(tmp_path / "model.ckpt")
    convert.main(["official-to-native", str(tmp_path / "model.ckpt"), str(tmp_path / "native")])
    tensors, values = models.count(generator.state_dict())
    assert f"{tensors} tensors, {values:,} parameters" in capsys.readouterr().out
    with pytest.raises(ValueError, match="is not a DeepSpeed checkpoint folder"):
        convert.main(["deepspeed-to-fp32", str(tmp_path), str(tmp_path / "out.pt")])


def test_rule_weights_keep_their_names():
    """The copy of weights_rule.py strips the prefixes that official files put in front."""
    assert weights_rule.bare("transformer.tok_emb.weight") == "tok_emb.weight"
