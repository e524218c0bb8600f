"""What setup.py asks for is what the code imports, and what is installed here."""

import ast
import sys
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
# procgen2 pins an old numpy, so setup.sh installs it without its dependencies; wandb is loaded by Lightning's logger.
NOT_IN_SETUP, NOT_IMPORTED = {"procgen2"}, {"wandb"}


def requirements():
    """install_requires by name."""
    [listed] = [keyword.value for node in ast.walk(ast.parse((ROOT / "setup.py").read_text(encoding="utf-8")))
                if isinstance(node, ast.Call) for keyword in node.keywords if keyword.arg == "install_requires"]
    return {canonicalize_name(found.name): found for found in map(Requirement, ast.literal_eval(listed))}


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


def test_every_import_is_declared_and_nothing_else():
    assert imported() - NOT_IN_SETUP == requirements().keys() - NOT_IMPORTED


def test_the_ranges_hold_what_is_installed():
    for name, requirement in requirements().items():
        if requirement.marker is None or requirement.marker.evaluate():
            version = metadata.version(name)
            assert requirement.specifier.contains(version, prereleases=True), f"{name} {version} is not {requirement}"
