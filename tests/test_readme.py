"""Commands of README, CONTRIBUTING and docs/: modules, options, files, scripts, overrides, Python names that exist."""

import importlib
import re
import shlex
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
ALL_TEXT = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)


def commands():
    """Lines of all bash blocks, as {name: value of variables set in front} and words."""
    found = []
    for block in re.findall(r"^ *```bash\n(.*?)^ *```", ALL_TEXT, re.S | re.M):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            variables = dict(word.split("=", 1) for word in words if re.match(r"[A-Z_]+=", word))
            if words:
                found.append((variables, [word for word in words if not re.match(r"[A-Z_]+=", word)]))
    return found


def modules():
    """(module, arguments) of every command that runs one, alone or under torchrun."""
    for _, words in commands():
        if words[0] in ("python", "torchrun") and "-m" in words:
            place = words.index("-m") + 1
            if words[place].startswith("nbp"):
                yield words[place], words[place + 1:]


def shown(value):
    """Test id of a module, a file or arguments."""
    return value if isinstance(value, str) else " ".join(value)[:60] or "alone"


@pytest.mark.parametrize("module, arguments", list(modules()), ids=shown)
def test_a_command_has_the_options_that_it_is_given(module, arguments, capsys):
    main = importlib.import_module(module).main
    subcommand = [arguments[0]] if module in ("nbp.prepare", "nbp.convert") else []
    with pytest.raises(SystemExit) as stop:
        main([*subcommand, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for argument in arguments:
        if argument.startswith("--"):
            assert argument in text, f"{module} has no {argument}"


def runs():
    """(run file, overrides) of every training command."""
    for module, arguments in modules():
        if module == "nbp.train" and arguments[0].endswith(".yaml"):
            yield arguments[0], arguments[1:]
    for variables, words in commands():
        scripts = [number for number, word in enumerate(words) if re.match(r"scripts/.*train/", word)]
        if scripts:
            [default] = re.findall(r"CONFIG:-(configs/.*\.yaml)\}", (ROOT / words[scripts[0]]).read_text())
            default = default.replace("${SIZE:-base}", variables.get("SIZE", "base"))
            overrides = words[scripts[0] + 1:]
            yield variables.get("CONFIG", default), overrides[2:] if words[0] == "bash" else overrides


@pytest.mark.parametrize("config, overrides", list(runs()), ids=shown)
def test_a_training_command_names_a_run_and_fields_that_exist(config, overrides, monkeypatch):
    from nbp.config import load_run

    monkeypatch.chdir(ROOT)
    load_run(config, overrides)


@pytest.mark.parametrize("variables, words", [
    (variables, words) for variables, words in commands() if variables and any("scripts/" in word for word in words)],
    ids=shown)
def test_a_script_reads_the_variables_that_are_set_for_it(variables, words):
    read = "\n".join((ROOT / name).read_text() for name in [*words, "scripts/launch.sh"] if name.startswith("scripts/"))
    for name in variables:
        assert f"${{{name}" in read, f"{words} reads no {name}"


@pytest.mark.parametrize("path", sorted(set(re.findall(
    r"(?:configs|scripts|nbp|docs|tests)/[\w/-]+\.(?:yaml|sh|sbatch|py|md)", ALL_TEXT))))
def test_a_file_that_is_named_is_there(path):
    assert (ROOT / path).is_file()
    if path.endswith(("sh", "sbatch")):
        subprocess.run(["bash", "-n", path], cwd=ROOT, check=True)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_protocol_is_named():
    from nbp.evaluation.protocols import PROTOCOLS

    for name in PROTOCOLS:
        assert f"`{name}`" in ALL_TEXT


def test_the_python_snippet_runs_on_a_small_model(tmp_path, monkeypatch):
    """The lines for official files as they stand, with these replaced by small native models."""
    import torch

    from nbp.config import GeneratorConfig, TokenizerConfig
    from nbp.generator.model import Generator
    from nbp.tokenizer.model import Tokenizer

    Tokenizer(TokenizerConfig([8, 8, 8, 16], [1, 1, 1, 1], [[1, 2, 2], [2, 2, 2], [2, 2, 2]],
                              [5, 5, 5])).save_pretrained(tmp_path / "tokenizer")
    Generator(GeneratorConfig(2, 2, 32, 125, [5, 16, 16], [1, 1, 16], "none", "plain",
                              begin_token=False)).save_pretrained(tmp_path / "generator")
    code = next(block for block in re.findall(r"```python\n(.*?)```", ALL_TEXT, re.S) if "magvit2_ucf.pt" in block)
    code = code.replace("ckpt/NBP-tokenizer-ucf/magvit2_ucf.pt", str(tmp_path / "tokenizer"))
    code = code.replace("ckpt/NBP-k600-base/k600_base_nbp16.ckpt", str(tmp_path / "generator"))
    code = code.replace('device="cuda"', 'device="cpu"')
    code = code.replace("tokenizer)\nindices", 'tokenizer, device="cpu")\nindices')
    names = {"raw_video": torch.rand(1, 3, 17, 128, 128)}
    exec(code, names)  # noqa: S102 - our own README
    assert names["video"].shape == (1, 3, 17, 128, 128)
    assert torch.equal(names["indices"][:, :2], names["tokens"][:, :2])


def test_the_lines_of_the_pipeline_run_on_a_small_model(tmp_path, monkeypatch, i3d_path, capsys):
    """The README's first lines; the released model where it is here, else one with random weights."""
    from pipelines import make_pipeline

    import nbp

    [code] = [block for block in re.findall(r"```python\n(.*?)```", TEXT, re.S) if "VideoPipeline" in block]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ckpt").mkdir()
    for path in (ROOT / "ckpt").iterdir():
        (tmp_path / "ckpt" / path.name).symlink_to(path)
    if not (tmp_path / "ckpt" / "NBP-procgen").exists():
        make_pipeline().save_pretrained("ckpt/NBP-procgen")
    pipe = nbp.VideoPipeline.from_pretrained("ckpt/NBP-procgen", device="cpu")
    for number, clip in enumerate(pipe(num_clips=9, seed=5)):
        nbp.write_video(f"data/procgen/val/{number}.mp4", clip, pipe.fps)
    names = {}
    exec(code, names)  # noqa: S102 - our own README
    assert nbp.probe("runs/games/11.mp4").num_frames == 17 and names["longer"].shape[:3] == (12, 3, 33)
    assert names["tokens"].shape == tuple(pipe.generator.config.grid)
    shown = capsys.readouterr().out.splitlines()
    assert len([line for line in shown if line.startswith("torch.Size")]) == 5 and float(shown[-1]) >= 0
