"""The import rules that keep the packages apart."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NBP = ROOT / "nbp"
PARTS = ("data", "tokenizer", "generator", "evaluation")


def imports(path):
    """Full names of everything a file imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("part", PARTS)
def test_parts_never_import_one_another_nor_training(part):
    forbidden = tuple(f"nbp.{other}" for other in PARTS + ("training",) if other != part)
    for path in (NBP / part).rglob("*.py"):
        bad = {name for name in imports(path) if name.startswith(forbidden)}
        assert not bad, f"{path} imports {bad}"


@pytest.mark.parametrize("library, allowed", [
    ("omegaconf", ["config/loading.py"]),
    ("av", ["data/video_io.py"]),
    ("decord", ["data/video_io.py"]),
    ("pytorch_lightning", ["train.py", "training/", "convert.py"]),
    ("deepspeed", ["training/", "convert.py"]),
    ("torchvision", []),
])
def test_a_library_has_one_home(library, allowed):
    for path in NBP.rglob("*.py"):
        used = any(name.split(".")[0] == library for name in imports(path))
        home = any(str(path.relative_to(NBP)).startswith(prefix) for prefix in allowed)
        assert not used or home, f"{path} imports {library}"


def test_the_models_import_without_heavy_libraries():
    code = ("import sys, nbp, nbp.tokenizer.model, nbp.generator.model, nbp.download; "
            "print([m for m in ('pytorch_lightning', 'deepspeed', 'wandb', 'transformers', 'omegaconf', 'av', 'decord', "
            "'scipy', 'matplotlib') if m in sys.modules])")
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_source_stays_readable():
    for path in NBP.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert text.count("\n") <= 300, f"{path} is too long"
        assert text.lstrip().startswith('"""') or path.name == "__init__.py", f"{path} has no module docstring"
        assert max(map(len, text.splitlines()), default=0) <= 150, f"{path} has a line over 150 characters"


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
