"""A mistake is told in the same words by Python, by the command line and by the page."""

import pytest
import torch
from pipelines import make_pipeline

import nbp
from nbp import demo, evaluate, generate
from nbp.system.command import run_command
from nbp.web import actions

# Arguments of a call, options of the command, fields of the page (None: it has no such field), the words.
GENERATING = [
    (dict(classes=["mase"]), ["--labels", "mase"], dict(label="mase"),
     "class mase: the model takes 0..2, or coinrun, jumper, maze; did you mean 'maze'?"),
    (dict(classes=[3]), ["--labels", "3"], dict(label="3"), "class 3: the model takes 0..2, or coinrun, jumper, maze"),
    (dict(prompts=["a maze"]), ["--texts", "a maze"], dict(prompt="a maze"),
     "prompts are for models conditioned on text; this one takes classes"),
    (dict(temperature=0), ["--temperature", "0"], dict(temperature=0), "temperature must be a number above 0, got 0"),
    (dict(temperature=-1), ["--temperature", "-1"], dict(temperature=-1),
     "temperature must be a number above 0, got -1"),
    (dict(temperature=float("nan")), ["--temperature", "nan"], dict(temperature=float("nan")),
     "temperature must be a number above 0, got nan"),
    (dict(top_p=1.5), ["--top-p", "1.5"], dict(top_p=1.5), "top_p must be in [0, 1], or None for no limit, got 1.5"),
    (dict(top_p=-0.5), ["--top-p", "-.5"], dict(top_p=-0.5), "top_p must be in [0, 1], or None for no limit, got -0.5"),
    (dict(top_k=-1), ["--top-k", "-1"], dict(top_k=-1),
     "top_k must be a whole number of ids, or 0 or None for no limit, got -1"),
    (dict(cfg_scale=float("inf")), ["--cfg-scale", "inf"], dict(cfg_scale=float("inf")),
     "cfg_scale must be a number up to 1e+06, or None for no guidance, got inf"),
    (dict(seed=10**13), ["--seed", "10000000000000"], dict(seed=10**13),
     "seed must be a whole number between -1000000000000 and 1000000000000, got 10000000000000"),
    (dict(num_clips=0), ["--num-clips", "0"], None, "num_clips must be at least 1, got 0"),
    (dict(batch_size=0), ["--batch-size", "0"], None, "batch_size must be at least 1, got 0"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "NBP-tiny"
    make_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pipe(folder):
    return nbp.VideoPipeline.from_pretrained(folder, device="cpu")


@pytest.fixture
def command(capsys, monkeypatch):
    """Function(main, arguments) -> the words of the last line on stderr; an option is named as the argument."""
    monkeypatch.setattr("nbp.system.command.keep_freed_memory", lambda *numbers: True)      # of this process

    def run(main, *arguments):
        with pytest.raises(SystemExit) as stop:
            run_command(lambda: main([str(argument) for argument in arguments]))
        assert stop.value.code == 2
        line = capsys.readouterr().err.splitlines()[-1].split("error: ", 1)[1]
        if line.startswith("argument --"):
            option, _, words = line.removeprefix("argument --").partition(": ")
            return f"{option.replace('-', '_')} {words}"
        return line
    return run


def python(call):
    with pytest.raises(ValueError) as error:
        call()
    return str(error.value)


@pytest.mark.parametrize("call, options, fields, words", GENERATING, ids=[row[3][:40] for row in GENERATING])
def test_clips_that_cannot_be_made(folder, pipe, command, tmp_path, call, options, fields, words):
    assert python(lambda: pipe(**call)) == words
    assert command(generate.main, folder, "--out", tmp_path / "out", *options) == words
    assert not (tmp_path / "out").exists(), "nothing is left behind"
    if fields is not None:
        empty = dict(label=None, prompt=None, seed=0, temperature=1, top_k=0, top_p=1, cfg_scale=1)
        [shown] = actions.told(actions.generate, pipe, tmp_path, *(empty | fields).values())
        assert shown.words == words and shown.path is None


def test_a_length_that_is_no_longer(folder, pipe, command, tmp_path):
    words = "num_frames is the length in all and must be above the 5 frames that are given, got 5"
    video = torch.rand(3, 17, 32, 32)
    assert python(lambda: pipe.extend(video[:, :5], 5)) == words
    [shown] = actions.told(actions.extend, pipe, tmp_path, video, 5, 5, None, 0, 1)
    assert shown.words == words
    for name in ("a", "b"):
        nbp.write_video(tmp_path / f"{name}.mp4", video, 15)
        (tmp_path / f"{name}.txt").write_text(f"{name}.mp4\tmaze\n")
    (tmp_path / "classes.txt").write_text("maze\n")
    (tmp_path / "data.yaml").write_text(f"name: x\nroot: {tmp_path}\ntrain_list: a.txt\nval_list: b.txt\n"
                                        "resolution: 32\n")
    assert command(generate.main, folder, "--data", tmp_path / "data.yaml", "--num-frames", "5", "--out",
                   tmp_path / "out") == words


@pytest.mark.parametrize("name, words", [
    ("nowhere", "{0} is not a model folder (expected config.json and model.safetensors in it)"),
    ("empty", "{0} is not a model folder: config.json is missing (expected config.json and model.safetensors)"),
])
def test_models_that_are_not_there(command, tmp_path, name, words):
    (tmp_path / "empty").mkdir()
    path = tmp_path / name
    assert python(lambda: nbp.VideoPipeline.from_pretrained(path)) == words.format(path)
    assert python(lambda: nbp.load_magvit2(path, device="cpu")) == words.format(path)
    assert command(generate.main, path, "--out", tmp_path / "out") == words.format(path)
    assert command(demo.main, path) == words.format(path)


def test_sets_that_cannot_be_scored(command, tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "notes.mp4").write_text("no video")
    nbp.write_video(tmp_path / "real" / "a.mp4", torch.rand(3, 17, 32, 32), 15)
    for real, fake, protocol, words in (
            ("nowhere", "notes", "tats-2048", f"{tmp_path}/nowhere does not exist"),
            ("real", "notes", "tats", "unknown protocol 'tats'; accepted: magvit-ucf,"),
            ("real", "notes", "tats-2048+real=1+fake=1", f"{tmp_path}/notes/notes.mp4: cannot be decoded: ")):
        said = python(lambda: nbp.fvd(tmp_path / real, tmp_path / fake, protocol, device="cpu"))  # noqa: B023
        assert said.startswith(words)
        assert command(evaluate.main, "--real", tmp_path / real, "--fake", tmp_path / fake, "--protocol", protocol,
                       "--cache", tmp_path / "cache", "--out", tmp_path / "out") == said
