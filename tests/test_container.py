"""The Dockerfile, as far as it can be looked at without an engine."""

import re
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "Dockerfile").read_text(encoding="utf-8")


def instructions():
    """(name, text) of each instruction."""
    code = "\n".join(line for line in TEXT.splitlines() if not line.startswith("#"))
    return re.findall(r"^([A-Z]+) +(.+)$", code.replace("\\\n", " "), re.M)


def test_it_pins_what_it_starts_from_and_takes_the_torch_of_setup_py():
    names = [name for name, _ in instructions()]
    assert set(names) <= {"FROM", "ARG", "ENV", "RUN", "WORKDIR", "COPY", "CMD"} and names[0] == "FROM"
    assert re.fullmatch(r"python:3\.\d+-slim-\w+", dict(instructions())["FROM"])
    [torch] = re.findall(r'"(torch>=[^"]+)"', (ROOT / "setup.py").read_text(encoding="utf-8"))
    assert f'"{torch}"' in TEXT


def test_what_it_runs_is_there():
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    for script in re.findall(r"\bsh ([\w/.-]+\.sh)", TEXT):
        assert (ROOT / script).is_file() and script not in ignored
    modules = re.findall(r"python -m (nbp\.\w+)", TEXT)
    assert "nbp.demo" in modules and all(find_spec(name) for name in modules)


def test_it_leaves_data_weights_and_history_out():
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    assert {".git", "runs", "data/*", "ckpt/*"} <= set(ignored)
    assert all((ROOT / name[1:]).exists() for name in ignored if name.startswith("!") and name.endswith(".md"))
