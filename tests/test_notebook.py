"""The notebook runs as it stands, with the official file replaced by a small tokenizer."""

import json
import os
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt

from nbp.config import TokenizerConfig
from nbp.tokenizer.model import Tokenizer

ROOT = Path(__file__).parent.parent
NOTEBOOK = ROOT / "notebooks" / "load_magvit2.ipynb"


def test_it_shows_a_real_clip_and_its_reconstruction(sample_videos, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "tokenizer"
    Tokenizer(TokenizerConfig([8, 8, 8, 16], [1, 1, 1, 1], [[1, 2, 2], [2, 2, 2], [2, 2, 2]], [5, 5, 5])
              ).save_pretrained(folder)
    cells = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in cells), "clear its outputs"
    code = ["".join(cell["source"]) for cell in cells]
    assert "ckpt/NBP-tokenizer-ucf/magvit2_ucf.pt" in code[0]
    code[0] = code[0].replace("ckpt/NBP-tokenizer-ucf/magvit2_ucf.pt", str(folder))
    monkeypatch.chdir(ROOT)
    previous = matplotlib.get_backend()
    matplotlib.use("Agg")
    names, picture = {}, tmp_path / "picture.png"
    monkeypatch.setattr(plt, "show", lambda: plt.savefig(picture))
    try:
        for source in code:
            exec(source, names)  # noqa: S102 - our own notebook
    finally:
        plt.close("all")
        matplotlib.use(previous)
    assert names["tokens"].shape == (1, 5, 16, 16) and names["video"].shape == (1, 3, 17, 128, 128)
    assert "(1, 3, 17, 128, 128) -> (1, 5, 16, 16)" in capsys.readouterr().out
    assert os.path.getsize(picture) > 20_000
