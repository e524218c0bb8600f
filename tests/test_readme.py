"""The README's commands: modules, options, files and Python names that exist."""

import importlib
import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def lines_of(language):
    blocks = re.findall(rf"```{language}\n(.*?)```", TEXT, re.S)
    return [line.split("  #")[0].strip() for block in blocks for line in block.splitlines() if line.strip()]


COMMANDS = [line for line in lines_of("bash") if line.startswith("python -m nbp.")]


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_has_the_options_that_the_readme_gives_it(line, capsys, monkeypatch):
    _, _, module, *arguments = shlex.split(line)
    main = importlib.import_module(module).main
    subcommand = [arguments[0]] if module == "nbp.prepare" else []
    with pytest.raises(SystemExit) as stop:
        main([*subcommand, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for argument in arguments:
        if argument.startswith("--"):
            assert argument in text, f"{module} has no {argument}"


@pytest.mark.parametrize("path", sorted(set(re.findall(r"(?:configs|scripts|nbp)/[\w/]+\.(?:yaml|sh|py)", TEXT))))
def test_a_file_that_the_readme_names_is_there(path):
    assert (ROOT / path).is_file()


def test_every_protocol_is_named():
    from nbp.evaluation.protocols import PROTOCOLS

    for name in PROTOCOLS:
        assert f"`{name}`" in TEXT


def test_the_python_snippet_runs_on_a_small_model(tmp_path, monkeypatch):
    """The README's own lines, with the official files replaced by small native models."""
    import torch

    from nbp.config import GeneratorConfig, TokenizerConfig
    from nbp.generator.model import Generator
    from nbp.tokenizer.model import Tokenizer

    Tokenizer(TokenizerConfig([8, 8, 8, 16], [1, 1, 1, 1], [[1, 2, 2], [2, 2, 2], [2, 2, 2]],
                              [5, 5, 5])).save_pretrained(tmp_path / "tokenizer")
    Generator(GeneratorConfig(2, 2, 32, 125, [5, 16, 16], [1, 1, 16], "none", "plain",
                              begin_token=False)).save_pretrained(tmp_path / "generator")
    code = "\n".join(re.findall(r"```python\n(.*?)```", TEXT, re.S))
    code = code.replace("ckpt/NBP-tokenizer-ucf/magvit2_ucf.pt", str(tmp_path / "tokenizer"))
    code = code.replace("ckpt/NBP-k600-base/k600_base_nbp16.ckpt", str(tmp_path / "generator"))
    code = code.replace('device="cuda"', 'device="cpu"').replace("tokenizer)\nindices", 'tokenizer, device="cpu")\nindices')
    names = {"raw_video": torch.rand(1, 3, 17, 128, 128)}
    exec(code, names)  # noqa: S102 - our own README
    assert names["video"].shape == (1, 3, 17, 128, 128)
    assert torch.equal(names["indices"][:, :2], names["tokens"][:, :2])
