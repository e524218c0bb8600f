"""Loading of run files: layers, refusals that name the field, and every shipped YAML."""

from pathlib import Path

import pytest
import torch

from nbp.config import DataConfig, GeneratorRun, TokenizerRun, load_config, load_run

CONFIGS = Path(__file__).parent.parent / "configs"
RUNS = sorted(CONFIGS.glob("*.yaml"))
DATA = "name: x\nroot: r\ntrain_list: t\nval_list: v\nresolution: 64\n"


def write(path, text):
    path.write_text(text)
    return path


def test_later_layers_win(tmp_path):
    write(tmp_path / "base.yaml", DATA)
    child = write(tmp_path / "child.yaml", "base: [base.yaml]\nresolution: 128\nflip: true\n")
    data = load_config(DataConfig, child, ["resolution=256"])
    assert (data.resolution, data.flip, data.root, data.num_frames) == (256, True, "r", 17)


@pytest.mark.parametrize("text, overrides, message", [
    (DATA + "resolutoin: 3\n", [], "unknown field resolutoin, did you mean resolution"),
    (DATA, ["resolutoin=3"], "resolutoin=3.*did you mean resolution"),
    (DATA + "resolution: wide\n", [], "resolution"),
    ("name: x\n", [], "no value for resolution, root, train_list, val_list"),
    (DATA, ["resolution"], "not of the form"),
    ("- a\n- b\n", [], "mapping"),
    ("a: [\n", [], "not valid YAML"),
])
def test_a_bad_config_names_the_field(tmp_path, text, overrides, message):
    if text.count("resolution: ") == 2:
        text = text.replace("resolution: 64\n", "")
    with pytest.raises(ValueError, match=message):
        load_config(DataConfig, write(tmp_path / "data.yaml", text), overrides)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match="nowhere.yaml does not exist"):
        load_config(DataConfig, tmp_path / "nowhere.yaml")


def test_nested_names_are_checked():
    with pytest.raises(ValueError, match="unknown field model.width, did you mean model.widths"):
        load_run(CONFIGS / "tokenizer_procgen.yaml", ["model.width=[8]"])


@pytest.mark.parametrize("override, message", [
    ("trainer.strategy=zero", "trainer.strategy must be one of"),
    ("loss.adversarial_kind=wgan", "hinge, non_saturating"),
    ("optim.schedule=step", "linear, cosine, constant"),
    ("data.resolution=65", "divisible by the tokenizer's stride"),
    ("data.num_frames=9", "at most data.num_frames = 9"),
])
def test_values_are_cross_checked(override, message):
    with pytest.raises(ValueError, match=message):
        load_run(CONFIGS / "tokenizer_procgen.yaml", [override])


@pytest.mark.parametrize("path", RUNS, ids=lambda p: p.stem)
def test_every_shipped_run_loads_and_builds_its_model(path):
    from nbp.generator.model import Generator
    from nbp.tokenizer.model import Tokenizer

    run = load_run(path)
    assert path.read_text().startswith("#"), "a run file opens with its command and purpose"
    with torch.device("meta"):
        model = {TokenizerRun: Tokenizer, GeneratorRun: Generator}[type(run)](run.model)
    assert sum(p.numel() for p in model.parameters()) > 1e5


@pytest.mark.parametrize("path", sorted((CONFIGS / "data").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_shipped_data_config_loads(path):
    assert load_config(DataConfig, path).resolution % 8 == 0
