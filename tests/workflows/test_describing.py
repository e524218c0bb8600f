"""A trained model's folder says what its user would else have to know."""

import json
from pathlib import Path

import pytest

from nbp.config import DataConfig, GeneratorRun, TokenizerRun
from nbp.data.annotations import write_annotations
from nbp.data.video_io import write_video
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
    assert about_run(GeneratorRun(tokens="tokens")) == About("squares", ["a", "b"], 8, 16, 9), "files of 8 a second"


def test_tokens_may_lie_behind_a_url(tmp_path):
    import fsspec

    url = f"memory://{tmp_path.name}"
    for place in (url, MADE.as_uri()):
        if place == url:
            fsspec.filesystem("memory").put(str(MADE / "tokens"), f"/{tmp_path.name}/tokens", recursive=True)
        assert about_run(GeneratorRun(tokens=f"{place}/tokens")) == about_run(GeneratorRun(tokens="tokens"))


@pytest.mark.parametrize("rates, expected", [((12, 12), 12), ((12, 25), None)])
def test_the_rate_is_that_of_the_files_where_they_agree(make_frames, tmp_path, rates, expected):
    for number, rate in enumerate(rates):
        write_video(tmp_path / f"{number}.mp4", make_frames(1, size=16)[0], rate)
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    write_annotations(tmp_path / "train.txt", [(f"{name}.mp4", "") for name in (0, 1, "bad")])
    data = DataConfig("own", str(tmp_path), "train.txt", "val.txt")
    assert about_run(TokenizerRun(data=data)).fps == expected
    (tmp_path / "train.txt").unlink()
    assert about_run(TokenizerRun(data=data)).fps is None


def test_the_text_tokenizer_is_copied_into_the_folder(tmp_path):
    words = tmp_path / "words"
    words.mkdir()
    (words / "tokenizer.json").write_text("{}")
    write_about(tmp_path / "model", about_run(GeneratorRun(data=DATA)), "generator", words)
    assert read_about(tmp_path / "model").text_tokenizer == "text_tokenizer"
    assert json.loads((tmp_path / "model" / "text_tokenizer" / "tokenizer.json").read_text()) == {}
