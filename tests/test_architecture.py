"""The rules of the house hold for nbp/, and each of them can fail."""

import ast
import subprocess
import sys
from pathlib import Path

import architecture
import pytest

ROOT = Path(__file__).parent.parent
NBP = ROOT / "nbp"
# Faults that are being mended, by the beginning of their line: this may shrink, never grow.
MENDING = {
    "long_code": ("nbp: ",),
}


@pytest.mark.parametrize("rule", architecture.RULES, ids=lambda rule: rule.__name__)
def test_a_rule_holds(rule):
    mending = MENDING.get(rule.__name__, ())
    assert [fault for fault in rule(NBP) if not fault.startswith(mending or "\0")] == []


def faults(rule, folder, **files):
    """Faults of a made-up package "nbp"; a_b="text" is the file nbp/a/b.py."""
    for name, text in files.items():
        path = folder / "nbp" / f"{name.replace('_', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return list(rule(folder / "nbp"))


@pytest.mark.parametrize("files, fault", [
    ({"data_clips": "import nbp.hub.models", "hub_models": ""}, None),
    ({"hub_models": "from nbp.data.clips import cut", "data_clips": ""}, "1: hub imports nbp.data.clips"),
    ({"hub_models": "def f():\n    from nbp.data import clips", "data_clips": ""}, "2: hub imports nbp.data.clips"),
    ({"hub_models": "if TYPE_CHECKING:\n    import nbp.data.clips", "data_clips": ""},
     "2: hub imports nbp.data.clips"),
    ({"hub_models": "from ..data.clips import cut", "data_clips": ""}, "1: hub imports nbp.data.clips"),
    ({"data_clips": "from nbp.tokenizer import fsq", "tokenizer_fsq": ""}, "1: data imports nbp.tokenizer.fsq"),
    ({"train": "from nbp import convert", "convert": ""}, "1: train imports nbp.convert"),
    ({"quickstart_stages": "import nbp.train", "train": ""}, "1: quickstart imports nbp.train"),
    ({"train": "from nbp.data import clips, cut", "data_clips": "import nbp.data.cut", "data_cut": ""}, None),
])
def test_an_import_that_goes_up_is_found(files, fault, tmp_path):
    found = faults(architecture.upward_imports, tmp_path, **files)
    assert (found == []) if fault is None else (len(found) == 1 and found[0].endswith(fault))


def test_a_circle_is_found(tmp_path):
    files = {"data_a": "from nbp.data.b import x", "data_b": "from nbp.data import c"}
    assert not faults(architecture.circles, tmp_path, **files, data_c="")
    [found] = faults(architecture.circles, tmp_path, data_c="def f():\n    import nbp.data.a")
    assert all(f"nbp.data.{name}" in found for name in "abc")


@pytest.mark.parametrize("code, bare", [
    ("def f(a: int, *b: int, c: int = 1, **d: int) -> None: pass", None),
    ("class A:\n    def f(self, a: int) -> int:\n        return a", None),
    ("class A:\n    @classmethod\n    def f(cls) -> int: pass", None),
    ("class A:\n    @staticmethod\n    def g(a: int) -> int: pass", None),
    ("def f(a) -> None: pass", "a"),
    ("def f(a: int): pass", "its result"),
    ("def f(*a, b: int, **c) -> None: pass", "a, c"),
    ("class A:\n    def __init__(self): pass", "its result"),
    ("class A:\n    @staticmethod\n    def g(a) -> int: pass", "a"),
    ("def f() -> None:\n    def g(a): pass", "a, its result"),
])
def test_a_signature_without_types_is_found(code, bare, tmp_path):
    found = faults(architecture.unannotated_signatures, tmp_path, data_a=code)
    assert (found == []) if bare is None else (len(found) == 1 and found[0].endswith(f"the type of {bare}"))


def test_long_code_is_found(tmp_path, monkeypatch):
    function = "def f():\n" + "    pass\n" * 59
    assert not faults(architecture.long_code, tmp_path, data_a=function)
    function += "    pass\n"
    assert faults(architecture.long_code, tmp_path, data_a=function) == ["nbp/data/a.py:1: f has 61 lines"]
    assert faults(architecture.long_code, tmp_path, data_a="\n" * 301) == ["nbp/data/a.py: 301 lines"]
    monkeypatch.setattr(architecture, "MAX_ALL", 400)
    assert faults(architecture.long_code, tmp_path, data_a="\n" * 300, data_b="\n" * 101) == ["nbp: 401 lines"]


COMMAND = '''"""Train: python -m nbp.train CONFIG"""
import argparse

from nbp.system.command import run_command
from nbp.training.fit import fit

DEFAULT = 3


def main(arguments: list[str] | None = None) -> None:
    """Read arguments, then train."""
    options = parse(arguments)
    print(fit(options.config, options.steps))


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    for name in ("config", "steps"):
        parser.add_argument(name)
    if not arguments:
        parser.error("nothing to do")
    return parser.parse_args(arguments)


def add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data")


if __name__ == "__main__":
    run_command(main)
'''


@pytest.mark.parametrize("old, new, fault", [
    ("", "", None),
    ("print(fit(", "for n in range(3):\n        print(fit(", "13: main does more than one call: for n in range(3):"),
    ("print(fit(", "if options.x:\n        print(fit(", "13: main does more than one call: if options.x:"),
    ("print(fit(", "with open('x'):\n        print(fit(", "13: main does more than one call: with open('x'):"),
    ("print(fit(", "print([n for n in x])\n    print(fit(", "13: main does more than one call: print([n for n in x])"),
    ("    print(fit(", "    loaded = fit(options)\n    print(fit(", "10: main calls fit"),
    ("    print(fit(", "    options.n = 1\n" * 7 + "    print(fit(", "10: main has 9 statements"),
    ("(parser: argparse.ArgumentParser) -> None", "(parser: int) -> int", "25: add_data has nothing to do with"),
    ("DEFAULT = 3", "class Trainer:\n    pass", "7: ClassDef in a command"),
    ("    run_command(main)", "    main()", "29: a command ends in run_command(main)"),
])
def test_a_command_that_does_more_than_its_arguments_and_one_call_is_found(old, new, fault, tmp_path):
    assert old in COMMAND
    found = faults(architecture.busy_commands, tmp_path, train=COMMAND.replace(old, new, 1))
    assert (found == []) if fault is None else any(fault in line for line in found), found


def test_a_library_among_the_commands_and_too_many_modules_are_found(tmp_path):
    assert not faults(architecture.top_modules, tmp_path, train=COMMAND, download="")
    assert faults(architecture.top_modules, tmp_path, saving="") == ["nbp/saving.py: a library"]
    files = {f"command{number}": COMMAND for number in range(12)}
    assert faults(architecture.top_modules, tmp_path, saving=COMMAND, **files) == ["nbp: 15 modules at the top"]


def test_a_folder_without_a_layer_is_found(tmp_path):
    [found] = faults(architecture.unknown_folders, tmp_path, utils_a="", data_b="")
    assert found == "nbp/utils: no layer has this folder"


def imports(path):
    """Full names of everything a file imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("library, allowed", [
    ("omegaconf", ["config/loading.py"]),
    ("av", ["data/video_"]),
    ("decord", ["data/video_"]),
    ("pytorch_lightning", ["train.py", "training/", "workflows/converting.py"]),
    ("deepspeed", ["training/", "workflows/converting.py"]),
    ("torchvision", []),
])
def test_a_library_has_one_home(library, allowed):
    for path in NBP.rglob("*.py"):
        used = any(name.split(".")[0] == library for name in imports(path))
        home = any(str(path.relative_to(NBP)).startswith(prefix) for prefix in allowed)
        assert not used or home, f"{path} imports {library}"


def test_the_models_import_without_heavy_libraries():
    code = ("import sys, nbp, nbp.tokenizer.model, nbp.generator.model, nbp.download; "
            "print([m for m in ('pytorch_lightning', 'deepspeed', 'wandb', 'transformers', 'omegaconf', 'av', "
            "'decord', 'scipy', 'matplotlib') if m in sys.modules])")
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_a_file_says_what_it_is_for():
    for path in NBP.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert text.lstrip().startswith('"""') or path.name == "__init__.py", f"{path} has no module docstring"


def test_shell_scripts_are_thin():
    for path in (ROOT / "scripts").rglob("*.sh"):
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        assert len(lines) <= 15, f"{path} has {len(lines)} lines"
        sourced = path.name in ("environment.sh", "launch.sh")
        assert sourced or any(line.startswith("set -eu") for line in lines), f"{path} does not stop on errors"


def test_installation_takes_nothing_away():
    """The original's setup.sh uninstalled the Lightning that its code needs."""
    for name in ("setup.sh", "scripts/environment.sh"):
        assert "uninstall" not in (ROOT / name).read_text(encoding="utf-8")


def test_what_tools_leave_behind_is_not_tracked():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("no git repository")
    assert [name for name in listed.stdout.splitlines() if "cache" in name.split("/")[0] or name.endswith(".pyc")] == []
