"""Models by path and by id, with a hub on loopback; huggingface_hub reads its settings when it is imported."""

import os
import subprocess
import sys
from pathlib import Path

import model_hub
import pytest
from pipelines import make_pipeline

from nbp.hub.locating import locate

ROOT = Path(__file__).parents[2]
OFFICIAL = ROOT / "tests" / "fixtures" / "before_layout" / "official.ckpt"


def run(code, address, cache, **variables):
    environment = os.environ | {"HF_ENDPOINT": address, "HF_HUB_CACHE": str(cache), "HF_TOKEN": "made-up",
                                "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1",
                                "PYTHONPATH": str(ROOT), **variables}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_pipeline_goes_to_the_hub_and_comes_back_also_offline(tmp_path):
    make_pipeline().save_pretrained(tmp_path / "NBP-tiny")
    load = f"""
import nbp, torch
here = nbp.VideoPipeline.from_pretrained({str(tmp_path / "NBP-tiny")!r}, "cpu")
PUSH
there = nbp.VideoPipeline.from_pretrained("someone/NBP-tiny", "cpu")
print(torch.equal(here(seed=1), there(seed=1)), there.about == here.about,
      nbp.load_magvit2("someone/NBP-tiny", device="cpu").num_codes)"""
    with model_hub.serve() as hub:
        push = "print(here.push_to_hub('someone/NBP-tiny'))"
        out = run(load.replace("PUSH", push), hub.address, tmp_path / "cache").splitlines()
        files = hub.repos["someone/NBP-tiny"]
        assert out[0].startswith(f"{hub.address}/someone/NBP-tiny/commit/") and out[1] == "True True 125"
        assert {"README.md", "model_index.json", "tokenizer/config.json", "generator/model.safetensors"} <= set(files)
        assert b"# NBP-tiny" in files["README.md"]
    out = run(load.replace("PUSH", ""), hub.address, tmp_path / "cache", HF_HUB_OFFLINE="1")
    assert out.strip() == "True True 125", "the hub is gone, the cache is not"


def test_an_id_of_an_original_release_gives_its_file(tmp_path):
    repos = {"ShuhuaiRen/NBP-k600-base": {"k600_base_nbp16.ckpt": OFFICIAL.read_bytes(), "README.md": b""}}
    with model_hub.serve(repos) as hub:
        out = run("import nbp\nprint(nbp.load_transformer('ShuhuaiRen/NBP-k600-base', device='cpu').config)\n"
                  "try:\n    nbp.load_transformer('ShuhuaiRen/nothing', device='cpu')\n"
                  "except ValueError as error:\n    print(error)", hub.address, tmp_path / "cache")
    assert "full_head=True" in out and "ShuhuaiRen/nothing is neither a model folder nor a model hub id" in out


def test_a_folder_with_an_official_file_stands_for_it(tmp_path):
    (tmp_path / "magvit2_ucf.pt").write_bytes(b"")
    assert locate(tmp_path, "tokenizer") == tmp_path / "magvit2_ucf.pt"
    (tmp_path / "other.ckpt").write_bytes(b"")
    with pytest.raises(ValueError, match=r"several files \(magvit2_ucf.pt, other.ckpt\): name one"):
        locate(tmp_path, "tokenizer")


def test_a_pipeline_folder_holds_two_models(tmp_path):
    make_pipeline().save_pretrained(tmp_path)
    assert locate(tmp_path, "generator") == tmp_path / "generator"
    assert locate(tmp_path / "tokenizer", "tokenizer") == tmp_path / "tokenizer"


def test_hidden_files_beside_an_official_one_are_none(tmp_path):
    for name in ("k600.ckpt", "._k600.ckpt", ".a.1234.ckpt"):
        (tmp_path / name).write_bytes(b"")
    assert locate(tmp_path, "generator") == tmp_path / "k600.ckpt"
    (tmp_path / "ucf.ckpt").write_bytes(b"")
    with pytest.raises(ValueError, match=r"holds several files \(k600.ckpt, ucf.ckpt\): name one"):
        locate(tmp_path, "generator")
