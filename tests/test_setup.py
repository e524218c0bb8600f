"""What setup.py asks for is what the code imports and what is installed here, and the base works without the extras."""

import ast
import platform
import runpy
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from nbp.config import GeneratorConfig, TokenizerConfig
from nbp.generator.model import Generator
from nbp.generator.native import library
from nbp.system.command import EXTRAS
from nbp.tokenizer.model import Tokenizer

ROOT = Path(__file__).parent.parent
# procgen2 pins an old numpy, so setup.sh installs it without its dependencies; wandb is loaded by Lightning's logger.
NOT_IN_SETUP, NOT_IMPORTED = {"procgen2"}, {"wandb"}
# Run before a command: what only the extras bring cannot be imported, as if it were not installed.
BLOCK = f"""
import sys
from importlib.machinery import PathFinder
find, blocked = PathFinder.find_spec, {sorted([*EXTRAS, "lightning", "lightning_fabric"])}
PathFinder.find_spec = lambda name, *where: None if name.split(".")[0] in blocked else find(name, *where)
"""


@pytest.fixture(scope="module")
def declared():
    """What setup() is called with."""
    with pytest.MonkeyPatch.context() as patch:
        found = {}
        patch.setattr("setuptools.setup", found.update)
        runpy.run_path(str(ROOT / "setup.py"))
    return found


def by_name(requirements):
    return {canonicalize_name(found.name): found for found in map(Requirement, requirements)}


def imported():
    """Names of the distributions that hold what nbp/ imports."""
    modules = set()
    for path in (ROOT / "nbp").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                modules |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                modules.add(node.module.split(".")[0])
    homes = metadata.packages_distributions()
    return {canonicalize_name(homes[name][0]) for name in modules - sys.stdlib_module_names - {"nbp"}}


def test_every_import_is_declared_and_nothing_else(declared):
    base, extras = by_name(declared["install_requires"]), declared["extras_require"]
    train, demo = by_name(extras["train"]), by_name(extras["demo"])
    assert not base.keys() & (train.keys() | demo.keys())
    assert imported() - NOT_IN_SETUP == (base.keys() | train.keys() | demo.keys()) - NOT_IMPORTED
    for name, found in (("train", train), ("demo", demo)):
        assert {canonicalize_name(module) for module in EXTRAS if EXTRAS[module] == name} == found.keys()
        assert set(extras[name]) < set(extras["dev"])


def test_the_ranges_hold_what_is_installed(declared):
    for name, requirement in by_name([*declared["install_requires"], *declared["extras_require"]["dev"]]).items():
        if requirement.marker is None or requirement.marker.evaluate():
            version = metadata.version(name)
            assert requirement.specifier.contains(version, prereleases=True), f"{name} {version} is not {requirement}"


def test_every_source_of_the_step_in_c_is_compiled_checked_and_shipped(declared):
    folder = ROOT / "nbp/generator/native"
    names = {path.name for path in folder.iterdir() if path.suffix in (".h", ".cpp")}
    assert names == set(library.SOURCES)
    assert all(any(Path(name).match(pattern) for pattern in declared["package_data"]["nbp.generator.native"])
               for name in names)
    for extension in declared["ext_modules"]:
        assert extension.optional and {Path(path).name for path in [*extension.sources, *extension.depends]} == names
        assert f"-DSOURCE={library.source()}u" in extension.extra_compile_args
    able = sys.platform == "linux" and platform.machine() == "x86_64"
    assert len(declared["ext_modules"]) == (3 if able else 0)


def without_extras(code, folder, *arguments):
    """Run Python code, or `python -m CODE` with arguments, where no extra is installed."""
    if arguments:
        code = f"import runpy; sys.argv[1:] = {[*map(str, arguments)]}; runpy.run_module('{code}', run_name='__main__')"
    return subprocess.run([sys.executable, "-c", BLOCK + code], cwd=folder, capture_output=True, text=True, timeout=900,
                          env={"PATH": "", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""})


@pytest.mark.slow
def test_models_generation_and_evaluation_work_without_the_extras(tmp_path, i3d_path):
    torch.manual_seed(0)
    Tokenizer(TokenizerConfig([8, 8, 8, 16], [1, 1, 1, 1], [[1, 2, 2], [2, 2, 2], [2, 2, 2]],
                              [5, 5, 5])).save_pretrained(tmp_path / "tokenizer")
    Generator(GeneratorConfig(2, 2, 32, 125, [5, 4, 4], [1, 1, 4], "none", "plain", begin_token=True)
              ).save_pretrained(tmp_path / "generator")
    result = without_extras("import nbp; tokenizer = nbp.load_magvit2('tokenizer', device='cpu'); "
                            "nbp.load_transformer('generator', tokenizer, device='cpu')", tmp_path)
    assert result.returncode == 0, result.stderr
    result = without_extras("nbp.generate", tmp_path, "--generator", "generator", "--tokenizer", "tokenizer", "--out",
                            "generated", "--num-clips", 8)
    assert result.returncode == 0, result.stderr
    np.save(tmp_path / "real.npy", np.random.default_rng(0).integers(0, 256, (8, 17, 32, 32, 3), dtype=np.uint8))
    result = without_extras("nbp.evaluate", tmp_path, "--real", "real.npy", "--fake", "generated", "--protocol",
                            "quickstart", "--weights", i3d_path)
    assert result.returncode == 0 and "fvd" in result.stdout.lower(), result.stdout + result.stderr


@pytest.mark.parametrize("command", [("nbp.train", ROOT / "configs/tokenizer_procgen.yaml"),
                                     ("nbp.benchmark", "sampling"), ("nbp.report", "run")])
def test_what_needs_the_extra_of_training_says_how_to_install_it(tmp_path, command):
    module, *arguments = command
    result = without_extras(module, tmp_path, *arguments)
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert result.stderr.startswith("error: pytorch_lightning is not installed; ")
    assert result.stderr.endswith(' python -m pip install ".[train]"\n')


def test_the_public_names_are_offered_and_cost_nothing_before_they_are_used():
    code = ("import sys, nbp; assert 'torch' not in sys.modules; print([name for name in nbp.__all__ if name not in "
            "dir(nbp) or not callable(getattr(nbp, name))]); assert not hasattr(nbp, 'nothing')")
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"


def test_a_commit_is_checked_as_the_tests_check_it():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    script = (ROOT / "scripts/test.sh").read_text().splitlines()
    checks = [line for line in script if " -m ruff " in line or " -m mypy " in line]
    assert [hook["entry"] for hook in hooks[:2]] == checks
