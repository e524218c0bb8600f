"""The commands of docs/own-videos.md on a handful of files: what prepare prints is what trains."""

import shlex
import shutil

import pytest
import torch

from nbp import generate, prepare, tokenize, train
from nbp.data import clip_set
from nbp.data.tokens import TokenDataset
from nbp.download import load_magvit2
from nbp.training.metrics_log import read_metrics


@pytest.mark.parametrize("size", [("32",), ("16", "48")], ids="x".join)
def test_a_folder_of_videos_becomes_two_models_and_new_clips(clips_root, tmp_path, capsys, size):
    for number, video in enumerate(sorted(clips_root.rglob("*.mp4"))[:6]):
        target = tmp_path / "videos" / ("hop", "roll", "spin")[number % 3] / f"{number}.mp4"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(video, target)
    prepare.main(["folder", "--root", str(tmp_path / "videos"), "--resolution", *size])
    commands = [shlex.split(line) for line in capsys.readouterr().out.splitlines() if line.startswith("  python -m")]
    for (_, _, module, config, *overrides), kind in zip(commands, ("tokenizer", "generator"), strict=True):
        assert (module, config) == ("nbp.train", f"configs/{kind}_folder.yaml")
        small = [f"trainer.out={tmp_path / kind}", "trainer.global_batch=2",
                 *(["tokenizer=" + str(tmp_path / "tokenizer" / "model")] if kind == "generator" else [])]
        train.main([config, f"configs/debug/{kind}.yaml", *overrides, *small])
        assert len(read_metrics(tmp_path / kind)["train/loss"]) == 4
    models = [f"--{kind}={tmp_path / kind / 'model'}" for kind in ("tokenizer", "generator")]
    generate.main([*models, "--num-clips", "3", "--out", str(tmp_path / "new")])
    assert clip_set.load(tmp_path / "new")["label"].tolist() == [0, 1, 2]
    generate.main([*models, "--data", str(tmp_path / "videos" / "data.yaml"), "--num-clips", "3",
                   "--out", str(tmp_path / "continued")])
    shape = (3, 17, int(size[0]), int(size[-1]), 3)
    assert all(clip_set.load(tmp_path / name)["video"].shape == shape for name in ("new", "continued"))
    tokenize.main([models[0], "--data", str(tmp_path / "videos" / "data.yaml"), "--out", str(tmp_path / "tokens")])
    tokens = TokenDataset(tmp_path / "tokens" / "train")
    assert tokens.grid == (5, int(size[0]) // 8, int(size[-1]) // 8) and len(tokens) == 3
    with torch.no_grad():
        flat = load_magvit2(tmp_path / "tokenizer" / "model", [int(size[0]), int(size[-1])], "cpu")
        assert flat.decode_from_code_indices(tokens[0]["indices"].flatten()[None]).shape == (1, 3, *shape[1:4])
