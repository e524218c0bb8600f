"""Mistakes end in one line and exit code 2, bugs keep their traceback, and an interrupted command says how to go on."""

import argparse
import importlib
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from nbp.config import load_config
from nbp.data.video_io import VideoError
from nbp.hub.fetch import FetchError
from nbp.system.command import PACKAGE, at_least, mistake, positive
from nbp.system.files import read_json

ROOT = Path(__file__).parents[2]
MISTAKES = {  # command: what is typed, and what the line names
    "benchmark": (["--generator", "nowhere", "--tokenizer", "nowhere"], "nowhere"),
    "convert": (["official-to-native", "nowhere.pt", "out"], "nowhere.pt"),
    "demo": (["nowhere"], "nowhere"),
    "evaluate": (["--real", "nowhere", "--fake", "nowhere", "--protocol", "none"], "none"),
    "generate": (["--generator", "nowhere", "--tokenizer", "nowhere", "--out", "out"], "nowhere"),
    "hub.fetch": (["/proc/nowhere"], "/proc/nowhere"),
    "plan": (["nowhere.yaml", "--gpus", "1", "--gpu", "h100-80g"], "nowhere.yaml"),
    "prepare": (["folder", "--root", "nowhere"], "nowhere"),
    "quickstart": (["--smoke", "--out", "/proc/nowhere"], "/proc/nowhere"),
    "quickstart.baselines": (["--real", "nowhere.npz", "--generated", "nowhere", "--predicted", "nowhere",
                              "--tokenizer", "nowhere", "--tokens", "nowhere", "--out", "out"], "nowhere.npz"),
    "quickstart.scores": (["nowhere", "--data", "nowhere.yaml"], "nowhere"),
    "reconstruct": (["--tokenizer", "nowhere", "--data", "nowhere.yaml", "--out", "out"], "nowhere"),
    "report": (["nowhere"], "nowhere"),
    "tokenize": (["--tokenizer", "nowhere", "--data", "nowhere.yaml", "--out", "out"], "nowhere"),
    "train": (["nowhere.yaml"], "nowhere.yaml"),
}


ENDING = """
import atexit, sys
import torch.distributed as dist
from nbp.system.command import run_command
def main():
    if "alone" not in sys.argv:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    atexit.register(lambda: print("left" if not dist.is_initialized() else "stays"))
run_command(main)
"""


@pytest.mark.parametrize("extra", [[], ["alone"]])
def test_a_command_leaves_its_group(extra):
    """Threads of a group that is still there may abort the process as it ends."""
    done = python("-c", ENDING, *extra)
    assert (done.returncode, done.stdout.strip()) == (0, "left"), done.stderr


def python(*arguments, folder=ROOT, **variables):
    environment = {name: value for name, value in os.environ.items() if name != "NBP_DEBUG"}
    environment |= {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""} | variables
    return subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True,
                          timeout=1800)


def test_every_command_is_tried():
    runs = {path for path in (ROOT / "nbp").rglob("*.py") if '__name__ == "__main__"' in path.read_text()}
    names = {".".join(path.relative_to(ROOT / "nbp").with_suffix("").parts).removesuffix(".__main__") for path in runs}
    assert names == MISTAKES.keys()
    for path in runs:
        assert path.read_text().endswith('if __name__ == "__main__":\n    run_command(main)\n'), path


@pytest.mark.parametrize("command", MISTAKES)
def test_a_mistake_ends_a_command_in_one_line(command, tmp_path, monkeypatch, capsys):
    arguments, named = MISTAKES[command]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [command, *arguments])
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setattr("signal.signal", lambda *_: None)
    module = f"nbp.{command}" if (ROOT / f"nbp/{command.replace('.', '/')}.py").is_file() else f"nbp.{command}.__main__"
    monkeypatch.delitem(sys.modules, module, raising=False)
    with pytest.raises(SystemExit) as stop:
        runpy.run_module(module, run_name="__main__")
    assert stop.value.code == 2
    [*_, last] = error = capsys.readouterr().err.splitlines()
    assert last.startswith("error: ") and named in last and "Traceback" not in error, error


def test_a_mistake_ends_the_process_with_code_2(tmp_path):
    result = python("-m", "nbp.plan", *MISTAKES["plan"][0], folder=tmp_path)
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1


@pytest.mark.parametrize("command", ["generate", "evaluate", "tokenize", "reconstruct"])
def test_numbers_that_cannot_be_are_refused_by_name(command, capsys):
    main = importlib.import_module(f"nbp.{command}").main
    for option, value in (("--batch-size", "0"), ("--batch-size", "many")):
        with pytest.raises(SystemExit) as stop:
            main([*MISTAKES[command][0], option, value])
        assert stop.value.code == 2 and f"argument {option}: " in capsys.readouterr().err.splitlines()[-1]


def test_types_of_arguments():
    assert at_least(0)("0") == 0 and positive("0.5") == 0.5
    for type_, text in ((at_least(1), "0"), (at_least(0), "-1"), (positive, "0"), (positive, "-2"), (positive, "inf")):
        with pytest.raises(argparse.ArgumentTypeError, match=f"got {text}"):
            type_(text)


def run(body, **variables):
    """Run a command whose main has this body."""
    return python("-c", f"from nbp.system.command import run_command\ndef main():\n    {body}\nrun_command(main)",
                  **variables)


def test_a_number_that_main_returns_is_the_exit_code():
    for returned, code in (("None", 0), ("143", 143), ("[{'fvd': 1.0}]", 0), ("'text'", 0)):
        result = run(f"return {returned}")
        assert result.returncode == code and result.stderr == ""


def test_debugging_shows_the_traceback_of_a_mistake():
    body = "from nbp.system.files import read_json; read_json('nowhere.json')"
    assert run(body).stderr == "error: nowhere.json: No such file or directory\n"
    result = run(body, NBP_DEBUG="1")
    assert result.returncode == 2 and "Traceback" in result.stderr
    assert result.stderr.endswith("\nerror: nowhere.json: No such file or directory\n")


@pytest.mark.parametrize("body", ["assert False", "{}['key']", "raise RuntimeError('broken')", "int('x')", "len(3)"])
def test_a_bug_keeps_its_traceback(body):
    result = run(body)
    assert result.returncode == 1 and "Traceback" in result.stderr and "error: " not in result.stderr.lower()[:20]


def test_an_interrupted_command_says_how_to_go_on():
    result = run("raise KeyboardInterrupt")
    assert result.returncode == 130
    assert result.stderr.strip() == "stopped; run the same command again to go on"


def test_every_rank_ends_with_the_exit_code_and_says_which_it_is():
    result = run("open('nowhere')", WORLD_SIZE="2", RANK="1")
    assert result.returncode == 2 and result.stderr == "error (rank 1): nowhere: No such file or directory\n"


def test_a_reader_that_has_seen_enough_is_no_error():
    command = ("from nbp.system.command import run_command\n"
               "def main():\n    for n in range(100000): print(n)\nrun_command(main)")
    result = subprocess.run(f"'{sys.executable}' -c '{command}' | head -1", shell=True, cwd=ROOT, capture_output=True,
                            text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert result.stdout == "0\n" and result.stderr == ""


def caught(function, *arguments):
    with pytest.raises(Exception) as found:
        function(*arguments)
    return mistake(found.value)


def test_only_what_nbp_raises_itself_is_a_mistake(tmp_path):
    (tmp_path / "broken.json").write_text("{")
    assert "broken.json is not valid JSON" in caught(read_json, tmp_path / "broken.json")
    assert caught(int, "x") is None, "raised outside of nbp"
    # Within nbp, but by an expression: nobody checked the number and wrote a message.
    namespace = {}
    source = "def number(text):\n    return int(text)\ndef checked(text):\n    raise ValueError('not\\na number')\n"
    exec(compile(source, f"{PACKAGE}made_up.py", "exec"), namespace)
    assert caught(namespace["number"], "x") is None
    assert caught(namespace["checked"], "x") == "not a number"


def test_what_a_library_raises_below_nbp_is_a_bug(tmp_path):
    class Config:
        def __init__(self):
            raise ValueError("from a library")

    (tmp_path / "config.yaml").write_text("{}")
    assert caught(load_config, Config, tmp_path / "config.yaml") is None


def test_the_system_the_network_and_missing_packages_are_mistakes():
    assert mistake(OSError(28, "No space left on device", "clips.npz")) == "clips.npz: No space left on device"
    assert mistake(OSError("no such model")) == "no such model"
    assert mistake(FetchError("copy the file here")) == "copy the file here"
    assert mistake(ModuleNotFoundError("No module named 'wandb.sdk'")).endswith('python -m pip install ".[train]"')
    assert mistake(ModuleNotFoundError("No module named 'einops'")).endswith("python -m pip install .")
    assert mistake(ModuleNotFoundError("install wandb")) == "install wandb"
    assert mistake(ModuleNotFoundError("No module named 'nbp.missing'")) is None


class Items:
    def __init__(self, error):
        self.error = error

    def __len__(self):
        return 1

    def __getitem__(self, item):
        if self.error == "bug":
            return int("x")
        return read_json(self.error)


def test_a_mistake_found_by_a_worker_is_told_from_its_bug(tmp_path):
    from torch.utils.data import DataLoader

    (tmp_path / "broken.json").write_text("{")
    message = caught(lambda: list(DataLoader(Items(tmp_path / "broken.json"), num_workers=1)))
    assert message.startswith(f"{tmp_path}/broken.json is not valid JSON: ") and "Traceback" not in message
    assert caught(lambda: list(DataLoader(Items("bug"), num_workers=1))) is None


def test_a_video_error_is_a_mistake(tmp_path):
    from nbp.data.video_io import probe

    (tmp_path / "empty.mp4").write_bytes(b"")
    assert issubclass(VideoError, ValueError)
    assert "empty.mp4" in caught(probe, tmp_path / "empty.mp4")
