"""The documentation builds as a site: no link and no name of the reference leads nowhere."""

import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent


def test_every_page_is_in_the_contents():
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = {path.name for path in (ROOT / "docs").glob("*.md")}
    assert set(re.findall(r"([\w-]+\.md)", text)) == pages
    assert yaml.safe_load(text)["docs_dir"] == "docs"


def test_the_reference_has_every_public_name():
    import nbp

    text = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    for name in nbp.__all__:
        home = getattr(nbp, name)
        assert f"::: {home.__module__}.{name}" in text


@pytest.mark.skipif(not all(find_spec(name) for name in ("mkdocs", "material", "mkdocstrings")),
                    reason="mkdocs is not installed (extra docs)")
def test_it_builds_without_a_warning(tmp_path):
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    for path in ROOT.iterdir():     # links to files outside docs/ are looked up, and lost: they are not on the site
        if not (tmp_path / path.name).exists() and not path.name.startswith((".", "runs")):
            (tmp_path / path.name).symlink_to(path)
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    reference = (tmp_path / "site" / "reference" / "index.html").read_text(encoding="utf-8")
    for name in ("VideoPipeline", "read_video", "push_to_hub"):
        assert name in reference
    for page in (tmp_path / "site").rglob("*.html"):
        for target in re.findall(r'href="([^"#:?]+)["#]', page.read_text(encoding="utf-8")):
            if page.name != "404.html":
                assert (page.parent / target).exists(), f"{page} links to {target}"
