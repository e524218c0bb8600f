"""Loading of run files: layers, refusals that name the field, and every shipped YAML."""

import dataclasses
import re
from pathlib import Path

import pytest
import torch

from nbp.config import DataConfig, GeneratorRun, TokenizerRun, load_config, load_run

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"
PARTS = ("data", "model", "debug")          # folders of files that are no runs by themselves
RUNS = sorted(path for path in CONFIGS.rglob("*.yaml") if path.parent.name not in PARTS)
RECIPES = [path for path in RUNS if "procgen" not in path.stem]
DATA = "name: x\nroot: r\ntrain_list: t\nval_list: v\nresolution: 64\n"


def write(path, text):
    path.write_text(text)
    return path


def test_later_layers_win(tmp_path):
    write(tmp_path / "base.yaml", DATA)
    child = write(tmp_path / "child.yaml", "base: [base.yaml]\nresolution: 128\nflip: true\n")
    data = load_config(DataConfig, child, ["resolution=256"])
    assert (data.resolution, data.flip, data.root, data.num_frames) == (256, True, "r", 17)


def test_a_base_is_a_list_and_not_itself(tmp_path):
    write(tmp_path / "base.yaml", "base: [child.yaml]\n" + DATA)
    child = write(tmp_path / "child.yaml", "base: base.yaml\n")
    with pytest.raises(ValueError, match=r"child.yaml: base must be a list of files, as \[a.yaml\], got 'base.yaml'"):
        load_config(DataConfig, child)
    write(tmp_path / "child.yaml", "base: [base.yaml]\n")
    with pytest.raises(ValueError, match="child.yaml is a base of itself, by .*base.yaml"):
        load_config(DataConfig, child)


def test_a_list_in_the_base_and_fields_in_the_file_do_not_fit(tmp_path):
    base = Path("tests/fixtures/runs/tokenizer.yaml").absolute()
    path = write(tmp_path / "child.yaml", f"base: [{base}]\ncurriculum: {{steps: 3}}\n")
    with pytest.raises(ValueError, match="child.yaml does not fit its base .*tokenizer.yaml.*Cannot merge"):
        load_run(path)


@pytest.mark.parametrize("text, overrides, message", [
    (DATA + "resolutoin: 3\n", [], "unknown field resolutoin, did you mean resolution"),
    (DATA, ["resolutoin=3"], "resolutoin=3.*did you mean resolution"),
    (DATA + "resolution: wide\n", [], "resolution"),
    ("name: x\n", [], "no value for resolution, root, train_list, val_list"),
    (DATA, ["resolution"], "not of the form"),
    (DATA, ["resolution=[64"], r"command line 'resolution=\[64': the value is not valid YAML"),
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
        load_run("tests/fixtures/runs/tokenizer.yaml", ["model.width=[8]"])


@pytest.mark.parametrize("name, override, message", [
    ("ablations/ucf101_online", "data.resolutoin=64", "unknown field data.resolutoin, did you mean data.resolution"),
    ("tokenizer_procgen", "curriculum=[{steps: 1, num_frames: 1, batch_size: 1}, {stepps: 1}]",
     r"unknown field curriculum\[1\].stepps, did you mean curriculum\[1\].steps"),
])
def test_names_in_optional_sections_and_lists_are_checked(name, override, message):
    with pytest.raises(ValueError, match=message):
        load_run(CONFIGS / f"{name}.yaml", [override])


@pytest.mark.parametrize("name", ["tokenizer_procgen", "ablations/ucf101_online"])
def test_clips_of_a_length_that_no_tokenizer_takes_are_refused(name):
    with pytest.raises(ValueError, match=r"data.num_frames must be 1 \+ 4k.*got 18"):
        load_run(CONFIGS / f"{name}.yaml", ["data.num_frames=18"])


@pytest.mark.parametrize("override, message", [
    ("trainer.strategy=zero", "trainer.strategy must be one of"),
    ("loss.adversarial_kind=wgan", "hinge, non_saturating"),
    ("optim.schedule=step", "linear, cosine, constant"),
    ("data.resolution=65", "divisible by the tokenizer's stride"),
    ("data.num_frames=9", "at most data.num_frames = 9"),
    ("model.widths=[32,64,132,128]", r"divisible by 4, from 128 on by 32 .*got \[32, 64, 132, 128\]"),
    ("model.widths=[0,64,96,128]", "widths must be divisible by 4"),
])
def test_values_are_cross_checked(override, message):
    with pytest.raises(ValueError, match=message):
        load_run("tests/fixtures/runs/tokenizer.yaml", [override])


def test_a_clip_that_does_not_fit_the_positions_is_refused_before_any_work():
    run = load_run("tests/fixtures/runs/generator.yaml")
    assert load_run("tests/fixtures/runs/generator.yaml", [f"model.max_seq_len={run.model.seq_len}"])
    with pytest.raises(ValueError, match=f"model.max_seq_len must be at least {run.model.seq_len} for .*got 5"):
        load_run("tests/fixtures/runs/generator.yaml", ["model.max_seq_len=5"])


@pytest.mark.parametrize("override, message", [
    ("trainer.devices=two", "command line 'trainer.devices=two': trainer.devices must be an integer, got 'two'"),
    ("trainer.devices=1.5", "trainer.devices must be an integer, got 1.5"),
    ("data.flip=1", "data.flip must be true or false, got 1"),
    ("optim.lr=true", "optim.lr must be a number, got True"),
    ("optim.betas=[0.9,x]", r"optim.betas\[1\] must be a number, got 'x'"),
    ("optim.betas=0.9", "optim.betas must be a list, got 0.9"),
    ("trainer.ema_decay=null", "trainer.ema_decay must be a number, got None"),
    ("trainer.wandb_project=[a]", r"trainer.wandb_project must be a text or null, got \['a'\]"),
    ("optim=3", "optim must be a section with fields, got 3"),
])
def test_a_value_of_another_type_is_named_with_its_place(override, message):
    with pytest.raises(ValueError, match=message):
        load_run("tests/fixtures/runs/tokenizer.yaml", [override])


def test_numbers_fit_where_yaml_has_them_without_a_point_or_quotes():
    values = ["optim.lr=1", "data.name=101", "trainer.seed=${data.resolution}"]
    run = load_run("tests/fixtures/runs/tokenizer.yaml", values)
    assert (run.optim.lr, type(run.optim.lr), run.data.name, run.trainer.seed) == (1.0, float, "101", 64)


def meta_model(run):
    """The run's model without memory."""
    from nbp.generator.model import Generator
    from nbp.tokenizer.model import Tokenizer

    with torch.device("meta"):
        return {TokenizerRun: Tokenizer, GeneratorRun: Generator}[type(run)](run.model)


@pytest.mark.parametrize("path", RUNS, ids=lambda p: p.stem)
def test_every_shipped_run_loads_and_builds_its_model(path):
    run = load_run(path)
    assert path.read_text().startswith("#"), "a run file opens with its command and purpose"
    assert sum(p.numel() for p in meta_model(run).parameters()) > 1e5


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_a_recipe_opens_with_command_hardware_batch_hours_and_score(path):
    head = "\n".join(line for line in path.read_text().splitlines() if line.startswith("#"))
    for word in ("Run:", "Hardware:", "Hours:", "Published:"):
        assert f"# {word}" in head, f"{path.name} does not state {word}"
    command = re.search(r"# Run: +(.*)", head)[1]
    assert str(path.relative_to(ROOT)) in command or path in _default_runs(command), command
    stated = re.search(r"# Batch: +(\d+) = (\d+) clips x (\d+) GPUs? x (\d+) accumulated", head)
    assert stated, f"{path.name} does not state its batch"
    run = load_run(path, [f"trainer.devices={stated[3]}"])
    per_device = run.batch_size if isinstance(run, GeneratorRun) else run.curriculum[-1].batch_size
    found = (run.trainer.global_batch, per_device, run.trainer.devices, run.accumulate)
    assert found == tuple(map(int, stated.groups()))
    if steps := re.search(r"# Batch:.*; ([\d,]+) steps\.", head):
        planned = run.max_steps if isinstance(run, GeneratorRun) else sum(phase.steps for phase in run.curriculum)
        assert int(steps[1].replace(",", "")) == planned


def _default_runs(command):
    """Run files that a launching script takes where CONFIG is not set."""
    script = next(word for word in command.split() if word.startswith("scripts/"))
    size = re.match(r"SIZE=(\w+) ", command)
    [default] = re.findall(r"CONFIG:-(configs/.*\.yaml)\}", (ROOT / script).read_text())
    return [ROOT / default.replace("${SIZE:-base}", size[1] if size else "base")]


@pytest.mark.parametrize("path", sorted((CONFIGS / "data").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_shipped_data_config_loads(path):
    assert load_config(DataConfig, path, [str(CONFIGS / "debug" / "data.yaml")]).resolution == 32
    assert load_config(DataConfig, path).resolution % 8 == 0


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_the_debug_overlay_shrinks_every_recipe(path):
    kind = {TokenizerRun: "tokenizer", GeneratorRun: "generator"}[type(load_run(path))]
    more = ["data.resolution=32"] if kind == "generator" and load_run(path).data is not None else []
    run = load_run(path, [str(CONFIGS / "debug" / f"{kind}.yaml"), "trainer.devices=2", *more])
    assert sum(p.numel() for p in meta_model(run).parameters()) < 4e6
    assert (run.trainer.global_batch, run.accumulate) == (8, 2)


def test_every_part_is_used():
    text = "".join(path.read_text() for path in [*CONFIGS.rglob("*.yaml"), *(ROOT / "docs").glob("*.md")])
    for path in (CONFIGS / "model").glob("*.yaml"):
        assert f"model/{path.name}" in text, f"no run takes {path}"


def test_a_yaml_file_among_the_overrides_is_merged_in_its_place(tmp_path):
    file = write(tmp_path / "run.yaml", DATA)
    overlay = write(tmp_path / "small.yaml", "resolution: 32\nflip: true\n")
    data = load_config(DataConfig, file, ["flip=false", str(overlay), "resolution=16"])
    assert (data.resolution, data.flip) == (16, True)
    with pytest.raises(ValueError, match="nowhere.yaml does not exist"):
        load_config(DataConfig, file, ["nowhere.yaml"])
    with pytest.raises(ValueError, match="bad.yaml: unknown field resolutoin, did you mean resolution"):
        load_config(DataConfig, file, [str(write(tmp_path / "bad.yaml", "resolutoin: 3\n"))])


@pytest.mark.parametrize("devices, nodes, accumulate", [(8, 1, 8), (8, 8, 1), (1, 1, 64), (4, 4, 4)])
def test_the_global_batch_stays_whatever_the_number_of_devices(devices, nodes, accumulate):
    for name, size in (("generator_ucf101_base", "batch_size=4"),
                       ("tokenizer_ucf101", "curriculum=[{steps: 1, num_frames: 17, batch_size: 4}]")):
        run = load_run(CONFIGS / f"{name}.yaml", [f"trainer.devices={devices}", f"trainer.num_nodes={nodes}", size])
        assert run.accumulate == accumulate
        assert run.trainer.describe_batch(4) == (f"256 = 4 clips x {devices} devices x {nodes} nodes x "
                                                 f"{accumulate} accumulated")


@pytest.mark.parametrize("name, overrides, message", [
    ("generator_ucf101_base", ["trainer.devices=6"], "batch=256 is no multiple of 24 = batch_size 4 x 6 devices"),
    ("generator_ucf101_base", ["trainer.devices=128"], "global_batch=256 is no multiple of 512"),
    ("tokenizer_ucf101", ["curriculum=[{steps: 1, num_frames: 1, batch_size: 8}, "
                          "{steps: 1, num_frames: 17, batch_size: 4}]"], "one batch_size in all phases"),
    ("generator_ucf101_base", ["trainer.devices=0"], "trainer.devices must be at least 1, got 0"),
])
def test_a_batch_that_devices_do_not_divide_is_refused(name, overrides, message):
    with pytest.raises(ValueError, match=message):
        load_run(CONFIGS / f"{name}.yaml", overrides)


@pytest.mark.parametrize("name, shapes", [
    ("finetune_generator_ucf101", {"tok_emb.weight": (96016, 1536), "uncond_embedding": (8, 1536)}),
    ("finetune_generator_k600", {"tok_emb.weight": (64000, 1536), "uncond_embedding": (0, 1536)})])
def test_the_fine_tuning_runs_build_the_official_models(name, shapes):
    from nbp.hub.official import generator_config

    state = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    state |= {f"blocks.{i}.ln1.weight": torch.empty(0) for i in range(24)}
    state["pos_emb"] = torch.empty(1, 5120, 1536, device="meta")
    official, ours = generator_config(state, None, "released"), load_run(CONFIGS / f"{name}.yaml").model
    for field in dataclasses.fields(ours):
        if field.name not in ("dropout", "activation_checkpointing", "condition_dropout"):
            assert getattr(ours, field.name) == getattr(official, field.name), field.name


def test_the_ablations_are_the_papers():
    shapes = {tuple(load_run(path).model.block_shape) for path in (CONFIGS / "ablations").glob("k600_block_*.yaml")}
    assert shapes == {(1, 1, 1), (1, 1, 8), (1, 1, 16), (1, 2, 16), (1, 4, 16), (1, 16, 16), (2, 1, 8), (1, 4, 4),
                      (2, 2, 2)}
    for path in (CONFIGS / "ablations").glob("k600_block_*.yaml"):
        size, shape = path.stem.split("_")[2:]
        model = load_run(path).model
        assert (str(model.block_size), "x".join(map(str, model.block_shape))) == (size, shape)
    ucf = {name: load_run(CONFIGS / "ablations" / f"ucf101_{name}.yaml") for name in ("labels", "cfg", "online")}
    assert ucf["labels"].model.condition == "label" and ucf["labels"].model.num_condition_ids == 101
    assert ucf["cfg"].model.condition_dropout == 0.1
    assert load_run(CONFIGS / "generator_ucf101_base.yaml").model.condition_dropout == 0, "as released"
    assert ucf["online"].tokens is None and ucf["online"].data.fps == 8


def test_a_home_folder_is_meant_by_a_tilde(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    run = load_run("configs/tokenizer_folder.yaml", ["trainer.out=~/run", "data.root=~/videos", "data.name=a~b"])
    assert (run.trainer.out, run.data.root, run.data.name) == ("/home/someone/run", "/home/someone/videos", "a~b")
