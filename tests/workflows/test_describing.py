"""A trained model's folder says what its user would else have to know."""

import json
from pathlib import Path

import pytest

from nbp.config import DataConfig, GeneratorRun, TokenizerRun
from nbp.hub.about import About, read_about, write_about
from nbp.workflows.training import about_run

MADE = Path(__file__).parents[1] / "fixtures" / "before_layout"
DATA = DataConfig("squares", "data", "train.txt", "val.txt", resolution=16, num_frames=9, fps=4)


@pytest.fixture(autouse=True)
def working_folder(monkeypatch):
    monkeypatch.chdir(MADE)


def test_a_tokenizer_has_size_and_rate():
    assert about_run(TokenizerRun(data=DATA)) == About("squares", [], 4, 16, 9)


def test_a_generator_knows_its_classes_from_videos_and_from_tokens():
    assert about_run(GeneratorRun(data=DATA)) == About("squares", ["a", "b"], 4, 16, 9)
    assert about_run(GeneratorRun(tokens="tokens")) == About("squares", ["a", "b"], None, 16, 9)


def test_the_text_tokenizer_is_copied_into_the_folder(tmp_path):
    words = tmp_path / "words"
    words.mkdir()
    (words / "tokenizer.json").write_text("{}")
    write_about(tmp_path / "model", about_run(GeneratorRun(data=DATA)), "generator", words)
    assert read_about(tmp_path / "model").text_tokenizer == "text_tokenizer"
    assert json.loads((tmp_path / "model" / "text_tokenizer" / "tokenizer.json").read_text()) == {}
