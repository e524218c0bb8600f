"""What the shell scripts hand on, with `python` replaced by a recorder: arguments, variables, refusals."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from nbp.config import DataConfig, load_config

ROOT = Path(__file__).parents[2]
TRAIN = [f"scripts/{kind}_train/train_{data}.sh" for kind in ("tokenizer", "lm") for data in ("ucf", "k600")]
EVALUATE = ["scripts/lm_eval/eval_ucf.sh", "scripts/lm_eval/eval_k600.sh"]


def command(folder, name, text):
    """Put a shell command into folder/bin."""
    path = folder / "bin" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("#!/bin/bash\n" + text)
    path.chmod(0o755)


@pytest.fixture
def recorded(tmp_path):
    """Function(script, arguments, variables) -> (exit code, python's argument lists, stderr)."""
    command(tmp_path, "python", 'echo "$*" >> "$RECORD"\n')

    def call(script, *arguments, **variables):
        record = tmp_path / "record"
        record.unlink(missing_ok=True)
        kept = {name: os.environ[name] for name in ("HOME", "LANG") if name in os.environ}
        environment = kept | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "RECORD": str(record)} | variables
        result = subprocess.run(["bash", str(ROOT / script), *map(str, arguments)], cwd=tmp_path, env=environment,
                                capture_output=True, text=True)
        return result.returncode, record.read_text().splitlines() if record.exists() else [], result.stderr
    return call


@pytest.mark.parametrize("script", TRAIN)
def test_training_takes_the_official_arguments_and_overrides_behind_them(recorded, script):
    code, [line], _ = recorded(script, 4, 1, "optim.lr=1", "configs/debug/tokenizer.yaml")
    assert code == 0
    assert line.startswith("-m torch.distributed.run --nproc-per-node=4 --standalone -m nbp.train configs/")
    assert line.endswith(".yaml trainer.devices=4 trainer.num_nodes=1 optim.lr=1 configs/debug/tokenizer.yaml")
    assert (ROOT / line.split()[6]).is_file()
    code, [line], _ = recorded(script, 1, 1, CONFIG="other.yaml")
    assert " nbp.train other.yaml " in line


@pytest.mark.parametrize("size", ["base", "xl", "3b"])
@pytest.mark.parametrize("data, config", [("ucf", "ucf101"), ("k600", "k600")])
def test_one_variable_chooses_the_size(recorded, size, data, config):
    _, [line], _ = recorded(f"scripts/lm_train/train_{data}.sh", 8, 1, SIZE=size)
    assert f"nbp.train configs/generator_{config}_{size}.yaml " in line
    assert (ROOT / f"configs/generator_{config}_{size}.yaml").is_file()


@pytest.mark.parametrize("script", TRAIN + EVALUATE)
def test_several_nodes_meet_at_the_master_address(recorded, script):
    code, lines, _ = recorded(script, 8, 2, MASTER_ADDR="node7", MASTER_PORT="1234", RDZV_ID="job")
    assert code == 0
    ids = ["job-generate", "job"] if script in EVALUATE else ["job"]    # the first one's meeting is over
    assert len(lines) == len(ids)
    for line, name in zip(lines, ids):
        assert f"--nnodes=2 --rdzv-backend=c10d --rdzv-id={name} --rdzv-endpoint=node7:1234" in line
    code, lines, error = recorded(script, 8, 2)
    assert code != 0 and not lines and "MASTER_ADDR: with NNODES > 1, set it" in error


@pytest.mark.parametrize("script", TRAIN + EVALUATE + ["scripts/zero_to_fp32.sh"])
def test_without_arguments_a_script_says_how_it_is_used(recorded, script):
    code, lines, error = recorded(script)
    assert code != 0 and not lines and f"usage: {Path(script).name} " in error


@pytest.mark.parametrize("script, protocol, clips", [
    ("scripts/lm_eval/eval_ucf.sh", "nbp-gfvd-ucf", "10000"),
    ("scripts/lm_eval/eval_k600.sh", "nbp-gfvd-k600", "50000")])
def test_evaluation_generates_then_scores_under_the_published_protocol(recorded, tmp_path, script, protocol, clips):
    _, [generate, evaluate], _ = recorded(script, 8, 1, "--cfg-scale", "1.5", OUT="o", EVALUATE="--seed 3 --intervals")
    assert "-m nbp.generate --generator ckpt/" in generate and f"--out o --num-clips {clips} " in generate
    assert generate.endswith("--cfg-scale 1.5")
    assert "-m nbp.evaluate " in evaluate and "--fake o --out o/scores " in evaluate
    assert evaluate.endswith(f"--protocol {protocol} --seed 3 --intervals")
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "magvit2_ucf.pt").touch()
    for official, tokenizer in ((True, ""), (True, "magvit2_ucf.pt"), (True, "ShuhuaiRen/NBP-tokenizer-ucf"),
                                (True, f"{tmp_path}/weights"), (False, "mine"), (False, f"{tmp_path}"),
                                (False, "runs/my.pth"), (False, "runs/v1.pt2/model")):
        _, lines, _ = recorded(script, 8, 1, TOKENIZER=tokenizer)
        for name in [word for word in " ".join(lines).split() if word.startswith("configs/")]:
            assert (ROOT / name).is_file() and (load_config(DataConfig, name).resize == "squash") is official


def test_a_failed_generation_is_not_scored(recorded, tmp_path):
    command(tmp_path, "python", 'echo "$*" >> "$RECORD"\nexit 3\n')
    code, lines, _ = recorded("scripts/lm_eval/eval_ucf.sh", 1, 1)
    assert code == 3 and len(lines) == 1


def test_conversion_keeps_the_callers_paths(recorded, tmp_path):
    (tmp_path / "checkpoint").mkdir()
    _, [line], _ = recorded("scripts/zero_to_fp32.sh", "checkpoint", "new/weights.ckpt")
    assert line == f"-m nbp.convert deepspeed-to-fp32 {tmp_path}/checkpoint {tmp_path}/new/weights.ckpt"


def test_slurm_gives_each_node_its_script_and_the_first_nodes_name(tmp_path):
    command(tmp_path, "scontrol", "printf 'alpha\\nbeta\\n'\n")
    command(tmp_path, "srun", 'echo "$MASTER_ADDR $MASTER_PORT $RDZV_ID $*"\nexit 5\n')
    result = start_job(tmp_path, "scripts/lm_train/train_ucf.sh", "optim.lr=1")
    output, error = result.communicate(timeout=600)
    assert output.split() == ["alpha", "20042", "42", "--cpus-per-task=64", "--kill-on-bad-exit=1", "bash",
                              "scripts/lm_train/train_ucf.sh", "8", "2", "optim.lr=1"]
    assert result.returncode == 5, "the job fails where the training fails"


def test_slurm_saves_and_queues_again_before_the_time_limit(tmp_path):
    command(tmp_path, "scontrol", f'echo "$*" >> {tmp_path}/log\necho alpha\n')
    command(tmp_path, "scancel", f'echo "scancel $*" >> {tmp_path}/log\ntouch {tmp_path}/stop\n')
    command(tmp_path, "srun", f"touch {tmp_path}/started\nuntil [ -e {tmp_path}/stop ]; do sleep 0.05; done\n"
                              f"sleep 0.3\necho saved >> {tmp_path}/log\nexit 1\n")
    job = start_job(tmp_path, "scripts/lm_train/train_ucf.sh")
    deadline = time.monotonic() + 600
    while not (tmp_path / "started").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    job.send_signal(signal.SIGUSR1)
    job.communicate(timeout=600)
    assert (tmp_path / "log").read_text().splitlines() == [
        "show hostnames node[1-2]", "scancel --signal=TERM 42", "saved", "requeue 42"]


def start_job(folder, *arguments):
    """Run train.sbatch as SLURM does on the first node."""
    environment = {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "SLURM_JOB_ID": "42", "SLURM_NNODES": "2",
                   "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_GPUS_ON_NODE": "8",
                   "SLURM_CPUS_PER_TASK": "64"}
    return subprocess.Popen(["bash", str(ROOT / "scripts/slurm/train.sbatch"), *arguments], env=environment, cwd=folder,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("path", sorted((ROOT / "scripts").rglob("*.s*h")) + [ROOT / "scripts/slurm/train.sbatch"],
                         ids=lambda path: path.name)
def test_a_script_parses_and_says_what_it_does(path):
    subprocess.run(["bash", "-n", str(path)], check=True)
    first = [line for line in path.read_text().splitlines() if not line.startswith("#!")][0]
    assert first.startswith("# ")


def test_scoring_scripts_hand_on_sets_model_and_options(recorded):
    code, [line], _ = recorded("scripts/fvd.sh", 2, 1, "a", "b", "--seed", "3", PROTOCOL="larp")
    assert code == 0 and line.endswith(" -m nbp.evaluate --real a --fake b --protocol larp --seed 3")
    code, [line], _ = recorded("scripts/recons/eval_tokenizer.sh", 2, 1, "--max-clips", "9", TOKENIZER="t", OUT="o")
    assert code == 0 and line.endswith(" -m nbp.reconstruct --tokenizer t --data configs/data/ucf101.yaml --out o "
                                       "--protocol nbp-rfvd --max-clips 9")
    _, [line], _ = recorded("scripts/recons/eval_tokenizer.sh", 2, 1)
    assert " --tokenizer ckpt/NBP-tokenizer-ucf/magvit2_ucf.pt --data configs/data/ucf101_official.yaml " in line
    for script, arguments in (("scripts/fvd.sh", (1, 1, "a")), ("scripts/recons/eval_tokenizer.sh", (1,))):
        code, lines, error = recorded(script, *arguments)
        assert code and not lines and "usage: " in error


@pytest.mark.parametrize("counts", [("8", "two"), ("8", "0"), ("0", "1"), ("-1", "1"), ("1.5", "1")])
def test_counts_that_are_none_are_refused(counts):
    done = subprocess.run(["bash", "scripts/fvd.sh", *counts, "A", "B"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and f"NGPUS NNODES ..., got {counts[0]} and {counts[1]}" in done.stderr
