"""The shell scripts themselves, with two processes on a CPU and the debug overlays, from video files to scores."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import trees

from nbp.config import load_run
from nbp.data import clip_set
from nbp.generator.model import Generator
from nbp.system.files import read_json
from nbp.tokenizer.model import Tokenizer
from nbp.training.metrics_log import read_metrics

ROOT = Path(__file__).parents[2]


def run(*command, **variables):
    """Run a command in the repository, or in FOLDER, with further variables; returns what it printed."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    cpu = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    environment = os.environ | cpu | {"PATH": path} | {k: str(v) for k, v in variables.items()}
    result = subprocess.run([str(part) for part in command], cwd=variables.get("FOLDER", ROOT), env=environment,
                            capture_output=True, text=True, timeout=1800)
    assert result.returncode == 0, f"{command}\n{result.stdout[-2000:]}\n{result.stderr[-4000:]}"
    return result.stdout


class Chain:
    """The commands of docs/ucf101.md for one data set, each on two processes unless it says otherwise."""

    def __init__(self, data, folder):
        self.data, self.folder, self.root = data, folder, folder / "data"
        self.short = {"ucf101": "ucf", "k600": "k600"}[data]
        getattr(trees, data)(self.root)
        run("python", "-m", "nbp.prepare", data, "--root", self.root)
        self.text = ["model.num_condition_ids=512", f"text_tokenizer={folder / 'words'}"] if data == "ucf101" else []
        if self.text:
            run("python", "-m", "nbp.prepare", "text", "--root", self.root, "--out", folder / "words")

    def tokenizer(self, strategy):
        """Train; returns the run folder."""
        out = self.folder / f"tokenizer_{strategy}"
        printed = run("bash", ROOT / f"scripts/tokenizer_train/train_{self.short}.sh", 2, 1,
                      "configs/debug/tokenizer.yaml", f"data.root={self.root}", f"trainer.out={out}",
                      f"trainer.strategy={strategy}")
        assert re.search("batch +8 = 2 clips x 2 devices x 1 nodes x 2 accumulated", printed), printed
        return out

    def tokens(self, tokenizer):
        """Tokenize; returns the cache."""
        data = {"ucf101": "ucf101", "k600": "k600_generator"}[self.data]
        run("python", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "nbp.tokenize",
            "--tokenizer", tokenizer / "model", "--data", f"configs/data/{data}.yaml", "--out", self.folder / "tokens",
            "--num-workers", 0, "configs/debug/data.yaml", f"root={self.root}")
        return self.folder / "tokens"

    def generator(self, strategy, tokenizer, tokens, *launcher):
        """Train; returns the run folder."""
        out = self.folder / f"generator_{strategy}{len(launcher)}"
        launcher = launcher or ("bash", ROOT / f"scripts/lm_train/train_{self.short}.sh", 2, 1)
        run(*launcher, "configs/debug/generator.yaml", f"tokens={tokens}", f"tokenizer={tokenizer / 'model'}",
            f"trainer.out={out}", f"trainer.strategy={strategy}", *self.text)
        return out

    def score(self, processes, tokenizer, generator):
        """Generate and score; returns the clips and the scores."""
        out, data = self.folder / f"clips{processes}", self.folder / "eval.yaml"
        name = {"ucf101": "ucf101", "k600": "k600_eval"}[self.data]
        data.write_text(f"base: [{ROOT / 'configs/data' / name}.yaml]\nroot: {self.root}\nresolution: 32\n")
        run("bash", ROOT / f"scripts/lm_eval/eval_{self.short}.sh", processes, 1, "--num-clips", 9, "--batch-size", 2,
            GENERATOR=generator / "model", TOKENIZER=tokenizer / "model", DATA=data, OUT=out, PROTOCOL="quickstart",
            TEXT=self.folder / "words", CLASSES=self.root / "classes.txt",
            EVALUATE=f"--no-intervals --cache {self.folder / f'features{processes}'} --ckpt {ROOT / 'ckpt'}")
        [report] = read_json(out / "scores" / "scores.json")
        return clip_set.load(out), report


def losses(out):
    """Logged losses of a run, step by step."""
    metrics = read_metrics(out)
    return [value for name in ("train/loss", "train/discriminator", "val/loss")
            for value in metrics.get(name, {}).values()]


def check_conversion(run_folder, target):
    """Both ways to one float32 file give every weight of the exported model."""
    checkpoint = run_folder / "checkpoints" / "last.ckpt"
    assert (checkpoint / "zero_to_fp32.py").is_file(), "DeepSpeed leaves its own script in the folder"
    trained = Generator.from_pretrained(run_folder / "model").state_dict()
    run("bash", ROOT / "scripts/zero_to_fp32.sh", checkpoint, target)
    state = torch.load(target, weights_only=True)["state_dict"]
    for name, tensor in trained.items():
        assert state[f"model.{name}"].dtype == torch.float32
        torch.testing.assert_close(state[f"model.{name}"], tensor, rtol=0, atol=0)
    return state


@pytest.mark.slow(seconds=80)
def test_k600_from_videos_to_one_file_of_weights(tmp_path):
    chain = Chain("k600", tmp_path)
    tokenizer = chain.tokenizer("ddp")
    tokens = chain.tokens(tokenizer)
    generator = chain.generator("deepspeed_2", tokenizer, tokens)
    assert len(read_metrics(generator)["train/loss"]) == 4, "steps are optimizer steps, not micro-batches"
    check_conversion(generator, tmp_path / "weights.ckpt")


@pytest.mark.slow(seconds=180)
@pytest.mark.parametrize("data", ["ucf101", "k600"])
def test_every_engine_and_number_of_ranks_agrees(data, tmp_path):
    chain = Chain(data, tmp_path)
    tokenizers = [chain.tokenizer(strategy) for strategy in ("ddp", "deepspeed_2")]
    # Rounding to codes is not continuous: an error of 1e-7 may turn one code of hundreds, which changes a loss by 1e-3
    # and shows in the PSNR. Without accumulation losses differ by 4e-2, with a tenth more learning rate by 5e-3.
    assert losses(tokenizers[1]) == pytest.approx(losses(tokenizers[0]), rel=4e-3)
    psnr = [[*read_metrics(out)["val/psnr"].values()] for out in tokenizers]
    assert psnr[1] == pytest.approx(psnr[0], abs=0.05)
    tokens = chain.tokens(tokenizers[0])
    generators = {strategy: chain.generator(strategy, tokenizers[0], tokens)
                  for strategy in ("ddp", "deepspeed_1", "deepspeed_2", "deepspeed_3")}
    for strategy, out in generators.items():
        assert losses(out) == pytest.approx(losses(generators["ddp"]), abs=1e-4), strategy
        if strategy != "ddp":
            state = check_conversion(out, tmp_path / f"{strategy}.ckpt")
    folder = generators["deepspeed_3"] / "checkpoints" / "last.ckpt"
    run("python", "zero_to_fp32.py", ".", tmp_path / "own", FOLDER=folder)
    own = torch.load(tmp_path / "own" / "pytorch_model.bin", weights_only=True)
    assert set(own) == set(state) and all(torch.equal(own[name], state[name]) for name in state)


@pytest.mark.slow(seconds=80)
@pytest.mark.parametrize("data", ["ucf101", "k600"])
def test_evaluation_with_two_ranks_equals_one(data, tmp_path):
    chain = Chain(data, tmp_path)
    for kind, model, text in (("tokenizer", Tokenizer, []), ("generator", Generator, chain.text)):
        name = {"tokenizer": data, "generator": f"{data}_base"}[kind]
        config = load_run(ROOT / f"configs/{kind}_{name}.yaml", [str(ROOT / f"configs/debug/{kind}.yaml"), *text]).model
        torch.manual_seed(0)
        model(config).save_pretrained(tmp_path / kind / "model")
    (clips, report), (alone, report_alone) = (chain.score(n, tmp_path / "tokenizer", tmp_path / "generator")
                                              for n in (2, 1))
    assert len(clips["video"]) == 9, "the ranks share them unevenly"
    for name in clips:
        assert (clips[name] == alone[name]).all(), name
    assert report["scores"].keys() == report_alone["scores"].keys() >= {"fvd", "kvd"}
    for name, value in report_alone["scores"].items():
        assert report["scores"][name] == pytest.approx(value, rel=1e-6), name


@pytest.mark.slow
def test_reconstruction_with_two_ranks_equals_one(tmp_path):
    trees.ucf101(tmp_path / "data")
    run("python", "-m", "nbp.prepare", "ucf101", "--root", tmp_path / "data")
    torch.manual_seed(0)
    Tokenizer(load_run(ROOT / "configs/tokenizer_ucf101.yaml", [str(ROOT / "configs/debug/tokenizer.yaml")]).model
              ).save_pretrained(tmp_path / "model")
    clips, scores = [], []
    for processes in (2, 1):
        out = tmp_path / f"reconstruction{processes}"
        run("bash", ROOT / "scripts/recons/eval_tokenizer.sh", processes, 1, "--split", "train", "--max-clips", 9,
            "--batch-size", 2, "--cache", tmp_path / f"features{processes}", "configs/debug/data.yaml",
            f"root={tmp_path / 'data'}", TOKENIZER=tmp_path / "model", OUT=out)
        clips.append(clip_set.load(out))
        scores.append(read_json(out / "scores.json")["scores"])
    assert len(clips[0]["video"]) == 9, "the ranks share them unevenly"
    assert all((clips[0][name] == clips[1][name]).all() for name in clips[1])
    assert scores[0].keys() == scores[1].keys() >= {"rfvd", "psnr", "ssim", "lpips"}
    for name, value in scores[1].items():
        assert scores[0][name] == pytest.approx(value, rel=1e-6), name


@pytest.mark.slow(seconds=80)
def test_two_nodes_of_a_slurm_job_train_as_two_processes_do(tmp_path):
    chain = Chain("k600", tmp_path)
    tokenizer = chain.tokenizer("ddp")
    tokens = chain.tokens(tokenizer)
    one_node = chain.generator("ddp", tokenizer, tokens)
    commands = tmp_path / "bin"
    commands.mkdir()
    (commands / "scontrol").write_text("#!/bin/sh\necho localhost\n")
    (commands / "srun").write_text('#!/bin/bash\nshift 2\n"$@" & first=$!\n"$@" && wait $first\n')
    for name in ("scontrol", "srun"):
        (commands / name).chmod(0o755)
    job = ("env", f"PATH={commands}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
           f"SLURM_JOB_ID={os.getpid()}", "SLURM_JOB_NODELIST=node[1-2]", "SLURM_NNODES=2", "SLURM_GPUS_ON_NODE=1")
    two_nodes = chain.generator("ddp", tokenizer, tokens, *job, "bash", "scripts/slurm/train.sbatch",
                                "scripts/lm_train/train_k600.sh")
    assert losses(two_nodes) == pytest.approx(losses(one_node), abs=1e-6)
