"""The notebooks run as they stand, with small untrained models where the released or official ones are not here."""

import json
import os
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import pytest
import torch
from pipelines import make_pipeline, make_tokenizer

import nbp

ROOT = Path(__file__).parent.parent
NOTEBOOKS = ROOT / "notebooks"
RELEASED = "ckpt/NBP-procgen"


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Function(name, replaced text -> text) -> (names of the notebook when it is through, pictures it showed)."""
    for name in ("ckpt", "configs", "data/samples"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    previous, pictures = matplotlib.get_backend(), []
    matplotlib.use("Agg")

    def show():
        pictures.append(tmp_path / f"picture-{len(pictures)}.png")
        plt.savefig(pictures[-1])
        plt.close("all")

    monkeypatch.setattr(plt, "show", show)

    def execute(name, **replaced):
        cells = [cell for cell in json.loads((NOTEBOOKS / name).read_text())["cells"] if cell["cell_type"] == "code"]
        assert all(not cell["outputs"] and cell["execution_count"] is None for cell in cells), "clear its outputs"
        code = "\n\n".join("".join(cell["source"]) for cell in cells)
        for old, new in replaced.values():
            assert old in code
            code = code.replace(old, new)
        names = {}
        exec(compile(code, name, "exec"), names)  # noqa: S102 - our own notebook
        return names, pictures

    yield execute
    plt.close("all")
    matplotlib.use(previous)


@pytest.fixture
def model(tmp_path):
    """The released model, or a small one with random weights."""
    if not (ROOT / RELEASED / "model_index.json").is_file():
        make_pipeline().save_pretrained(tmp_path / "NBP-tiny")
        return f'"{RELEASED}"', f'"{tmp_path / "NBP-tiny"}"'
    return f'"{RELEASED}"', f'"{RELEASED}"'


def test_the_official_tokenizer_on_a_real_clip(sample_videos, tmp_path, run, capsys):
    make_tokenizer().save_pretrained(tmp_path / "tokenizer")
    names, pictures = run("load_magvit2.ipynb", tokenizer=("ShuhuaiRen/NBP-tokenizer-ucf",
                                                           str(tmp_path / "tokenizer")))
    assert names["tokens"].shape == (1, 5, 16, 16) and names["video"].shape == (1, 3, 17, 128, 128)
    assert "(1, 3, 17, 128, 128) -> (1, 5, 16, 16)" in capsys.readouterr().out
    assert os.path.getsize(pictures[0]) > 20_000


def test_generate_continue_score(i3d_path, run, model, capsys):
    names, pictures = run("quickstart.ipynb", model=model)
    pipe, clips = names["pipe"], names["clips"]
    assert len(clips) == 4 and len(pictures) == 2 and nbp.probe("runs/quickstart-3.mp4").num_frames == pipe.num_frames
    assert names["longer"].shape[1] == 2 * pipe.num_frames and torch.equal(names["longer"][:, :5], names["given"])
    assert names["report"]["protocol"] == "quickstart" and names["report"]["notes"] and names["report"]["fvd"] > 0
    assert capsys.readouterr().out.count("more frames") == pipe.generator.config.grid[0]


def test_any_video_to_tokens_and_back(sample_videos, run, model, capsys):
    names, pictures = run("tokenizer.ipynb", model=model)
    assert names["tokens"].shape == (1, 5, 8, 8) and names["back"].shape == names["video"].shape == (1, 3, 17, 64, 64)
    out = capsys.readouterr().out
    assert "PSNR" in out and "equal tokens" in out and len(pictures) == 2
    assert nbp.probe("runs/reconstruction.mp4").width == 128


@pytest.mark.slow
def test_a_folder_of_videos_to_a_model(tmp_path, run):
    """Of clips of the released model, as there is no folder of videos."""
    names, _ = run("train_your_own.ipynb")
    assert len(list((tmp_path / "data" / "videos" / "ninja").glob("*.mp4"))) == 4
    assert names["clips"].shape == (2, 3, 17, 32, 32) and names["pipe"].about.classes == ["coinrun", "ninja"]
    again = nbp.VideoPipeline.from_pretrained("runs/own/pipeline", device="cpu")
    assert torch.equal(again(classes=["coinrun"], num_clips=2, seed=0), names["clips"])


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_one_cell_installs(path, tmp_path, monkeypatch):
    """Elsewhere it clones and installs once it is told from where; beside the repository's folder it does nothing."""
    install, *others = ["".join(cell["source"]) for cell in json.loads(path.read_text())["cells"]
                        if cell["cell_type"] == "code"]
    assert "REPOSITORY" in install and not any("REPOSITORY" in other for other in others)
    monkeypatch.chdir(NOTEBOOKS)
    exec(install, {})  # noqa: S102 - our own notebook
    assert Path.cwd() == ROOT
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="nbp is not installed: set REPOSITORY"):
        exec(install, {})  # noqa: S102 - our own notebook
    commands = []

    def call(command, check):
        commands.append(command)
        (tmp_path / "nbp" / "nbp").mkdir(parents=True, exist_ok=True)

    monkeypatch.setattr("subprocess.run", call)
    monkeypatch.setattr("sys.path", [])
    exec(install.replace('REPOSITORY = ""', 'REPOSITORY = "address"'), {})  # noqa: S102 - our own notebook
    assert commands[0][:2] == ["git", "clone"] and commands[0][-2:] == ["address", "nbp"]
    assert commands[1][1:4] == ["-m", "pip", "install"] and Path.cwd() == tmp_path / "nbp"
