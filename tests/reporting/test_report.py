"""The report from the outputs of a run: what it holds, what it says about missed checks, what it refuses."""

import base64
import csv
import dataclasses
import json
import re

import numpy as np
import pytest

from nbp import report
from nbp.config import GeneratorRun, TokenizerRun, load_config, save_config
from nbp.data import clip_set
from nbp.data.tokens import TokenWriter
from nbp.reporting import clips, figures
from nbp.reporting.checks import checks
from nbp.reporting.inputs import read_run
from nbp.system.files import write_json

CLASSES = ["bigfish", "coinrun", "leaper"]


def make_scores():
    """Scores of a run that reaches everything."""
    def entry(fvd, **values):
        return {"clips": 6, "fvd": fvd, "fvd_interval_95": [fvd - 5, fvd + 5], "kvd": fvd / 100,
                "class_consistency": 0.75, "class_consistency_by_class": {"0": 1.0, "1": 0.5, "2": 0.75}, **values}

    real = entry(0.0)
    del real["fvd"], real["kvd"], real["fvd_interval_95"]
    sets = {"real": real, "train": entry(60.0), "reconstruction": entry(90.0, psnr=18.2, ssim=0.6, lpips=0.21,
            code_usage=0.4, code_entropy_bits=9.0, code_perplexity=512.0),
            "pooled": entry(200.0, psnr=18.0, ssim=0.5, lpips=0.6),
            "generated": entry(120.0, fvd_to_reconstructions=80.0),
            "class_tokens": entry(180.0, fvd_to_reconstructions=190.0),
            "uniform_tokens": entry(400.0, fvd_to_reconstructions=380.0),
            "predicted": entry(100.0, fvd_to_reconstructions=70.0),
            "frozen": entry(130.0, fvd_to_reconstructions=110.0)}
    return {"protocol": "quickstart", "sets": sets,
            "protocol_fields": {"name": "quickstart", "network": "i3d-tf", "num_frames": None},
            "weights_sha256": "ab" * 32, "seed": 0, "lpips_net": "alex",
            "centroids": {"source": "train, 36 clips", "clips": 36},
            "notes": ["the real set has only 6 clips"], "versions": {}, "commit": "0123456789ab"}


@pytest.fixture
def run(tmp_path):
    """Folder with small outputs of every stage."""
    rng = np.random.default_rng(0)
    video = rng.integers(0, 256, (6, 9, 16, 16, 3), dtype=np.uint8)
    label, path = np.arange(6) % 3, np.array([f"val/{n}.mp4" for n in range(6)])
    clip_set.write_arrays(tmp_path / "reconstruction/real.npz", {"video": video, "label": label, "path": path})
    for name in ("reconstruction", "baselines/pooled", "baselines/frozen", "generated", "predicted"):
        clip_set.save(tmp_path / name, video, label, path, meta={"seed": 3, "prefix_frames": 5})
    with TokenWriter(tmp_path / "tokens/train", {"grid": [3, 2, 2], "num_codes": 64, "tokenizer_hash": "0" * 64,
                                                 "data": {}, "classes": CLASSES}) as writer:
        writer.add([0, 1, 2], np.zeros((3, 3, 2, 2), np.int64), [0, 1, 2], ["a", "b", "c"])
    tokenizer = load_config(TokenizerRun, "configs/tokenizer_procgen.yaml")
    generator = load_config(GeneratorRun, "configs/generator_procgen.yaml", [
        "model.num_codes=64", "model.code_levels=null", "model.grid=[3,2,2]", "model.block_shape=[1,1,2]",
        "model.num_condition_ids=3"])
    for kind, config, metrics in (("tokenizer", tokenizer, ("train/reconstruction", "train/logit_real", "val/psnr")),
                                  ("generator", generator, ("train/loss", "val/loss", "val/top1"))):
        save_config(config, tmp_path / kind / "config.yaml")
        write_metrics(tmp_path / kind / "logs/version_0/metrics.csv", metrics)
    write_json(tmp_path / "generator/model/config.json", {"config": dataclasses.asdict(generator.model)})
    write_json(tmp_path / "scores.json", make_scores())
    row = {"num_steps": 7, "seconds": 0.5}
    write_json(tmp_path / "benchmark.json", {"next_block": row | {"block_shape": [1, 1, 2]}, "speedup": 1.7,
                                             "next_token": row | {"block_shape": [1, 1, 1]}, "decode_s": 0.1})
    write_json(tmp_path / "stages.json", {"stages": [
        {"name": name, "command": f"python -m nbp.{name} --root 'a <b>'", "log": f"logs/{name}.log", "attempts": 2,
         "seconds": 61.0, "peak_memory_bytes": 2**30, "finished": True}
        for name in ("prepare", "tokenizer", "generator", "evaluate")]})
    return tmp_path


def write_metrics(path, names):
    path.parent.mkdir(parents=True)
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, ["epoch", "step", *names])
        writer.writeheader()
        for step in range(0, 600, 10):
            writer.writerow({"step": step, names[0]: 1 / (step + 1), names[1]: step})
        writer.writerow({"step": 599, names[2]: 0.5})


def test_report_holds_everything_and_loads_nothing(run, capsys):
    report.main([str(run)])
    text = (run / "report.html").read_text()
    assert not re.search(r"(src|href)=['\"](?!data:|#)", text) and "@import" not in text
    for phrase in ("7 of 7", "Reconstruction", "Generation", "Prediction", "Training", "block-causal mask",
                   "All scores", "Next-block against next-token", "Stages", "Where and with what", "i3d-tf",
                   "0123456789ab", "the real set has only 6 clips", "&lt;b&gt;", "python -m nbp.prepare", *CLASSES):
        assert phrase in text, phrase
    videos = re.findall(r"<video src='data:video/mp4;base64,([^']+)' autoplay loop muted playsinline", text)
    assert len(videos) == 9 and all(b"ftyp" in base64.b64decode(video)[:16] for video in videos)
    assert text.count("<svg") == 4 and figures.INK not in re.sub(r"<style>.*?</style>", "", text, flags=re.S)
    summary = json.loads((run / "report.json").read_text())
    assert len(summary["checks"]) == 7 and all(check["passed"] for check in summary["checks"])
    assert summary["training"]["generator"]["val/top1"] == 0.5 and summary["seeds"]["generate"] == 3
    for name in ("sheet_reconstruction", "sheet_generated", "sheet_predicted", "figure_mask", "figure_tokenizer",
                 "figure_generator", "figure_consistency"):
        assert (run / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    stated = ("Scores by the protocol quickstart: Frechet distances over all frames with i3d-tf (I3D, Kinetics-400, "
              "sha256 abababababab), LPIPS with the alex network, resampling with seed 0.")
    printed = capsys.readouterr().out
    assert stated in text and printed.startswith(stated) and "NOT REACHED" not in printed


def test_missed_checks_are_said_with_their_distance(run, capsys):
    scores = make_scores()
    scores["sets"]["generated"]["class_consistency"] = 0.45
    scores["sets"]["generated"] |= {"fvd": 210.0, "fvd_to_reconstructions": 200.0}
    write_json(run / "scores.json", scores)
    report.main([str(run)])
    text = (run / "report.html").read_text()
    assert text.count("✗ missed by") == 3 and "4 of 7" in text
    assert "✗ missed by 15 points" in text and "✗ missed by 30.0" in text and "✗ missed by 10.0" in text
    assert "trained for 61 s, and its validation PSNR still changed by" in text
    assert capsys.readouterr().out.count("NOT REACHED") == 3


def test_limits_are_those_of_the_requirements():
    scores = make_scores()["sets"]
    limits = {check.name: check.limit for check in checks(scores)}
    assert limits == {"Reconstruction, LPIPS": 0.6, "Reconstruction, rFVD": 200.0, "Reconstruction, PSNR (dB)": 17.0,
                      "Generation, gFVD against class frequencies": 180.0,
                      "Generation in the tokenizer's own pictures, FVD against chance": 190.0,
                      "Generation, class consistency": 0.6,
                      "Prediction in the tokenizer's own pictures, FVD": 110.0}
    scores["pooled"]["psnr"] = 19.2                       # exactly 1 dB better than the reconstruction: still reached
    scores["predicted"]["fvd_to_reconstructions"] = 110.0   # as bad as the frozen frame: not better
    passed = {check.name: check.passed for check in checks(scores)}
    assert passed["Reconstruction, PSNR (dB)"] and not passed["Prediction in the tokenizer's own pictures, FVD"]


@pytest.mark.parametrize("missing, stage", [
    ("scores.json", "evaluate"), ("benchmark.json", "benchmark"), ("reconstruction/real.npz", "reconstruct"),
    ("generated/clips.npz", "generate"), ("predicted/clips.npz", "predict"),
    ("baselines/frozen/clips.npz", "baselines"), ("tokenizer/config.yaml", "tokenizer"),
    ("tokens/train/meta.json", "tokens")])
def test_a_missing_output_is_named_with_its_stage(run, missing, stage):
    (run / missing).unlink()
    with pytest.raises(ValueError, match=f"{missing} is missing; the stage `{stage}` writes it"):
        report.main([str(run)])


def test_scores_of_an_earlier_version_are_to_be_measured_again(run):
    scores = make_scores()
    del scores["sets"]["generated"]["fvd_to_reconstructions"]
    write_json(run / "scores.json", scores)
    with pytest.raises(ValueError, match="earlier versions did not measure: run python -m nbp.evaluate "):
        report.main([str(run)])


def test_curves_skip_empty_cells(run):
    curves = read_run(run).curves["generator"]
    assert curves["val/top1"] == ([599], [0.5]) and len(curves["train/loss"][0]) == 60


def test_a_training_without_metrics_is_named(run):
    (run / "tokenizer/logs/version_0/metrics.csv").unlink()
    with pytest.raises(ValueError, match="tokenizer holds no logs"):
        report.main([str(run)])


def test_given_frames_are_marked():
    clip = np.full((4, 8, 8, 3), 200, np.uint8)
    marked = clips.mark_given(clip, 3)
    assert marked.shape == (4, 12, 12, 3) and (marked[:, 2:-2, 2:-2] == 200).all()
    assert (marked[:3, 0] == clips.GIVEN_COLOUR).all() and (marked[3, 0] == 32).all()
    assert clips.side_by_side([clip, clip]).shape == (4, 8, 18, 3)
