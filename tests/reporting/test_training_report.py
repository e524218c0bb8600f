"""The report of any training run, here of two that were stopped."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from nbp.data.sheet import write_picture
from nbp.report import main

MADE = Path(__file__).parents[1] / "fixtures" / "before_layout"


@pytest.mark.parametrize("kind, words", [("tokenizer", "training loss"), ("generator", "nats a token")])
def test_a_run_shows_its_curves_samples_and_settings(tmp_path, kind, words, capsys):
    shutil.copytree(MADE / f"{kind}_run", tmp_path / "run", symlinks=True)
    for step in range(1, 13):
        write_picture(tmp_path / "run" / "samples" / f"step{step:07d}.png", np.full((8, 8, 3), step, np.uint8))
    main([str(tmp_path / "run")])
    text = (tmp_path / "run" / "report.html").read_text()
    assert f"wrote {tmp_path / 'run' / 'report.html'}" in capsys.readouterr().out
    assert f"{kind.capitalize()}: run" in text and words in text and "trainer.seed" in text
    assert re.search(r"<b>4 of \d+</b>", text), "steps done"
    assert re.findall(r"alt='(\w+)'", text) == [f"step{step:07d}" for step in (1, 3, 5, 8, 10, 12)]
    assert "<svg" in text and (tmp_path / "run" / "figure_training.png").is_file()
    assert "http" not in re.sub(r"https?://(www\.)?(w3|matplotlib|purl|creativecommons)\.org", "", text)


def test_another_folder_is_no_run(tmp_path):
    with pytest.raises(ValueError, match="real.npz is missing"):
        main([str(tmp_path)])
