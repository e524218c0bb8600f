"""What a model folder says of itself, and its card."""

import json

import pytest
import yaml
from pipelines import ABOUT, make_pipeline, make_tokenizer

from nbp.hub.about import About, card, read_about, write_about


def test_what_is_written_is_read(tmp_path):
    write_about(tmp_path, ABOUT, "generator")
    assert read_about(tmp_path) == ABOUT


def test_a_folder_of_before_says_nothing_and_loads(tmp_path):
    make_tokenizer().save_pretrained(tmp_path)
    assert not (tmp_path / "about.json").exists() and read_about(tmp_path) == About()


def test_facts_of_the_tokenizer_fill_those_of_the_generator():
    known = About(fps=8, classes=["a"])
    assert known.or_else(About(fps=15, resolution=64)) == About(fps=8, classes=["a"], resolution=64)


@pytest.mark.parametrize("values, words", [
    ({"clases": ["a"]}, "unknown field clases, did you mean classes?"),
    ({"fps": "fast"}, "fps must be a number"),
    ({"sampling": {"temperature": "hot"}}, "sampling.temperature must be a number"),
])
def test_a_damaged_file_is_named(tmp_path, values, words):
    (tmp_path / "about.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match="about.json") as error:
        read_about(tmp_path)
    assert words in str(error.value)


def test_the_card_has_metadata_use_facts_and_scores(tmp_path):
    make_pipeline().save_pretrained(tmp_path / "NBP-tiny")
    text = (tmp_path / "NBP-tiny" / "README.md").read_text()
    _, front, body = text.split("---\n", 2)
    metadata = yaml.safe_load(front)
    assert metadata["library_name"] == "nbp" and {"video", "video-generation"} <= set(metadata["tags"])
    assert metadata["metrics"] == ["gfvd"]
    for words in ("# NBP-tiny", 'nbp.VideoPipeline.from_pretrained("NBP-tiny")', "17 frames of 32x32",
                  "coinrun, jumper, maze", "temperature 0.8", "| gfvd | 123.4 | quickstart |"):
        assert words in body
    assert "9 frames of 32x64" in card(About(resolution=[32, 64], num_frames=9), "generator", "x")
    assert "video-tokenizer" in card(About(), "tokenizer", "x")


def test_a_card_that_a_person_wrote_stays(tmp_path):
    (tmp_path / "README.md").write_text("mine")
    write_about(tmp_path, ABOUT, "generator")
    assert (tmp_path / "README.md").read_text() == "mine"


def test_of_a_language_model_s_folder_the_tokenizer_is_copied(tmp_path):
    source = tmp_path / "llama"
    source.mkdir()
    for name in ("model-00001-of-00002.safetensors", "pytorch_model.bin", "tokenizer.model", "tokenizer_config.json",
                 "source.spm"):
        (source / name).write_text("{}")
    write_about(tmp_path / "model", ABOUT, "generator", source)
    assert sorted(path.name for path in (tmp_path / "model" / "text_tokenizer").iterdir()) == [
        "source.spm", "tokenizer.model", "tokenizer_config.json"]
