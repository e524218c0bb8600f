"""What earlier code wrote is still read and gone on with, and gives the same; fixtures/before_layout/make.md."""

import contextlib
import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from nbp import convert, evaluate, generate, reconstruct, tokenize, train
from nbp.download import load_magvit2, load_transformer

MADE = Path(__file__).parent / "fixtures" / "before_layout"
MODELS = ["--generator", "generator", "--tokenizer", "tokenizer", "--device", "cpu"]
SAMPLES = {"greedy": dict(greedy=True), "seeded": dict(seed=5), "continued": dict(seed=7),
           "narrow": dict(seed=6, temperature=0.8, top_k=20, top_p=0.7), "guided": dict(seed=8, cfg_scale=2.0)}
pytestmark = pytest.mark.filterwarnings("ignore:the .* set has only")


@pytest.fixture(autouse=True)
def made(tmp_path, monkeypatch):
    """A copy of what was made, as working directory: its paths are relative. Without GPUs."""
    shutil.copytree(MADE, tmp_path / "made", symlinks=True)
    monkeypatch.chdir(tmp_path / "made")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)


def close(found, made, atol=1e-5):
    """Equal up to the rounding of another processor."""
    np.testing.assert_allclose(np.asarray(found), np.asarray(made), rtol=1e-4, atol=atol)


def read_json(path):
    return json.loads(Path(path).read_text())


def assert_few_differ(found, made, share=0.02):
    """Token ids: rounding may move one that lies between two levels."""
    assert found.shape == made.shape and (np.asarray(found) != made).mean() <= share


@contextlib.contextmanager
def untouched(folder, pattern="*.*"):
    """No such file below the folder is written, added or removed meanwhile."""
    def state():
        return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in Path(folder).rglob(pattern)}

    before = state()
    yield
    assert state() == before and before


def test_a_tokenizer():
    made, tokenizer = np.load("tokenizer.npz"), load_magvit2("tokenizer", resolution=16, device="cpu")
    video, codes = torch.from_numpy(made["frames"]) / 255, torch.from_numpy(made["codes"])
    with torch.no_grad():
        close(tokenizer.encode(video, quantize=False), made["latents"])
        assert_few_differ(tokenizer.encode(video)[1], made["indices"])
        for indices in (codes, codes.flatten(1)):
            close(tokenizer.decode_from_code_indices(indices), made["decoded"])


@pytest.mark.parametrize("path", ["generator", "official.ckpt", "converted"])
def test_a_generator_and_an_official_file(path):
    if path == "converted":
        convert.main(["official-to-native", "official.ckpt", "native"])
        convert.main(["native-to-official", "native", "converted"])
    made = np.load("generator.npz" if path == "generator" else "official.npz")
    generator = load_transformer(path, device="cpu")
    codes, labels = torch.from_numpy(made["codes"]), torch.tensor([0, 1])
    with torch.no_grad():
        close(generator(codes, labels), made["logits"])
    for name in SAMPLES.keys() & made.keys():
        sampling = SAMPLES[name].copy()
        stream = torch.Generator().manual_seed(sampling.pop("seed", 0))
        prefix = codes[:, :1] if name == "continued" else None
        assert np.array_equal(generator.generate(labels, prefix=prefix, generator=stream, **sampling), made[name]), name


def test_a_token_cache(capsys):
    command = ["--tokenizer", "tokenizer", "--data", "data.yaml", "--num-workers", "0", "--device", "cpu", "--out"]
    with untouched("tokens"):
        tokenize.main([*command, "tokens"])
    assert capsys.readouterr().out.count("already complete") == 2
    tokenize.main([*command, "again"])
    for split in ("train", "val"):
        again, tokens = Path("again", split), Path("tokens", split)
        meta = read_json(again / "meta.json")
        assert meta["data"].pop("files_sha256")       # which caches of before lack
        assert meta == read_json(tokens / "meta.json")
        assert read_json(again / "part-0000.json") == read_json(tokens / "part-0000.json")
        found, made = (load_file(folder / "tokens-0000-00000.safetensors") for folder in (again, tokens))
        assert_few_differ(found["indices"], made["indices"])
        assert all(np.array_equal(found[name], made[name]) for name in ("label", "item"))


def score(cache):
    """Reports on clip sets, tokens and videos against a data config, as features/ and evaluated/ were made."""
    return evaluate.main([
        "--real", "data.yaml", "--fake", "generated", "reconstruction", "tokens/val", "data/train",
        "--protocol", "larp", "--set", "frames=9", "real=8", "fake=8", "resolution=32", "real_split=val",
        "--tokenizer", "tokenizer", "--weights", "network.pt", "--trust-torchscript", "--device", "cpu",
        "--cache", cache, "--out", "scores"])


def test_cached_features_and_their_scores():
    with untouched("features"):
        reports = score("features")
    assert read_json("scores/scores.json") == reports
    for report, made in zip(reports, read_json("evaluated/scores.json"), strict=True):
        assert report.keys() == made.keys()
        for name in made.keys() - {"scores", "commit", "versions", "device"}:
            assert report[name] == made[name], name
        assert report["scores"].keys() == made["scores"].keys()
        # Of reconstructions both clips of a video are drawn or none, since pairs are known.
        paired = {"kvd", "fvd_interval_95"} if report["fake"]["name"] == "reconstruction" else set()
        for name, value in made["scores"].items():
            if name not in paired:
                close(report["scores"][name], value)


def test_features_made_again():
    score("again")
    made = sorted(Path("features").rglob("*.*"))
    assert sorted(Path("again").rglob("*.*")) == [Path("again", path.relative_to("features")) for path in made]
    for path in made:
        if path.suffix == ".npy":
            close(np.load(Path("again", path.relative_to("features"))), np.load(path), atol=1e-3)


def test_a_clip_set_that_is_finished_and_one_that_was_stopped():
    command = [*MODELS, "--num-clips", "8", "--seed", "3", "--batch-size", "2", "--out"]
    with untouched("generated", "clips.npz"):
        generate.main([*command, "generated"])
    generate.main([*command, "generated_stopped"])
    generate.main([*command, "today"])
    found, made, today = (np.load(f"{folder}/clips.npz") for folder in ("generated_stopped", "generated", "today"))
    assert not Path("generated_stopped/parts").exists() and found.files == made.files
    # Four clips were there; the others have today's random numbers.
    for name in ("indices", "label", "path"):
        assert np.array_equal(found[name], np.concatenate([made[name][:4], today[name][4:]])), name
    assert np.abs(found["video"][:4].astype(int) - made["video"][:4]).max() <= 1
    with pytest.raises(ValueError, match="made with other settings"):
        generate.main([*command, "generated", "--seed", "4"])


def test_a_reconstructed_clip_set_is_not_made_again():
    """The command goes on with its scores, for which there are no weights here."""
    command = ["--tokenizer", "tokenizer", "--data", "data.yaml", "--device", "cpu", "--out", "reconstruction",
               "--weights", "nowhere.safetensors"]
    with untouched("reconstruction", "*.npz"):
        with pytest.raises(ValueError, match="weights nowhere.safetensors .*do not exist"):
            reconstruct.main(command)
        with pytest.raises(ValueError, match="made with other settings"):
            reconstruct.main([*command, "fps=4"])


@pytest.mark.parametrize("kind", ["tokenizer", "generator"])
def test_a_stopped_run_goes_on_to_what_it_would_have_been(kind, capsys):
    run, losses = Path(f"{kind}_run"), read_json("losses.json")[kind]
    assert train.main([f"{kind}.yaml"]) == 0
    assert (run / "checkpoints" / "last.ckpt").resolve().name == "step0000008.ckpt"
    assert "resume:" not in capsys.readouterr().err, "a field of the configuration is another"
    rows = [list(csv.DictReader((run / f"logs/version_{number}/metrics.csv").read_text().splitlines()))
            for number in (0, 1)]
    assert {int(row["step"]) for row in rows[1] if row["train/loss"]} == {4, 5, 6, 7}
    for name in losses:
        found = {row["step"]: float(row[name]) for row in rows[0] + rows[1] if row.get(name)}
        assert found.keys() == losses[name].keys(), name
        for step in found:
            close(found[step], losses[name][step], atol=1e-4)
    new, old = read_json(run / "model/config.json"), read_json(f"{kind}/config.json")
    assert new["config"].items() >= old.pop("config").items() and new.items() >= old.items()   # fields may be added
    found, made = load_file(run / "model/model.safetensors"), load_file(Path(kind, "model.safetensors"))
    assert found.keys() == made.keys()
    for name in made:
        close(found[name], made[name])
