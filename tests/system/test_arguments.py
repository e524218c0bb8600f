"""Changes to a configuration may stand before, between and behind the options of a command."""

import importlib

import pytest

COMMANDS = {
    "train": ["run.yaml", "a.b=1", "--minutes", "3", "c=2", "--profile", "d=3"],
    "plan": ["run.yaml", "a.b=1", "--gpus", "8", "c=2", "--gpu", "a100-80g", "d=3"],
    "tokenize": ["--tokenizer", "t", "a.b=1", "--data", "d.yaml", "c=2", "--out", "o", "d=3"],
    "reconstruct": ["a.b=1", "--tokenizer", "t", "c=2", "--data", "d.yaml", "--out", "o", "--no-fvd", "d=3"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_changes_stand_anywhere(command):
    options = importlib.import_module(f"nbp.{command}").parse(COMMANDS[command])
    assert options.overrides == ["a.b=1", "c=2", "d=3"]
    assert getattr(options, "config", None) in ("run.yaml", None)
    assert getattr(options, "out", "o") == "o"


def test_an_unknown_option_is_still_refused(capsys):
    with pytest.raises(SystemExit):
        importlib.import_module("nbp.train").parse(["run.yaml", "a.b=1", "--minute-s", "3"])
    assert "unrecognized arguments: --minute-s" in capsys.readouterr().err
