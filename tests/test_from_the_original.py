"""docs/from-the-original.md names every flag of the release, and what it names exists."""

import dataclasses
import importlib
import re
from pathlib import Path

import pytest

from nbp.config import GeneratorRun

TEXT = (Path(__file__).parents[1] / "docs" / "from-the-original.md").read_text(encoding="utf-8")
ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in TEXT.splitlines() if line.startswith("| `--")]
FLAGS = """--batch_size --base_lr --lr_min --warmup_steps --tokenizer_path --default_root_dir --data_path
    --train_datalist --val_datalist --vocab_size --block_size --n_layer --n_head --n_embd --resolution --sequence_length
    --max_steps --semi_ar --token_number_per_step --llama_tokenizer --hybrid --fps --cond_token_num --unconditional
    --starts_with_bov --cond_stage_key --bf16 --use_deepspeed --grad_accumulates --gpt_ckpt --tokenizer_ckpt --n_sample
    --top_k --top_p --data_dir --data_list --class_cond --cfg_ratio --no_scale_cfg --seed --eval_resolution --save_video
    --frm_sampling_strategy --ckpt --dataset --save --save_videos""".split()


def fields(schema, prefix=""):
    """Dotted names of all fields of a run, those of its data included."""
    found = set()
    for field in dataclasses.fields(schema):
        kinds = [kind for kind in (field.type, *getattr(field.type, "__args__", ())) if dataclasses.is_dataclass(kind)]
        found |= {prefix + field.name}
        for kind in kinds:
            found |= fields(kind, f"{prefix}{field.name}.")
    return found


def test_every_flag_has_a_row():
    assert set(re.findall(r"`(--\w+)`", " ".join(row[0] for row in ROWS))) == set(FLAGS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_what_a_flag_is_here_exists(row, capsys):
    if row[2].strip("`").startswith("nbp."):
        with pytest.raises(SystemExit):
            importlib.import_module(row[2].strip("`")).main(["--help"])
        assert row[1].strip("`") in capsys.readouterr().out
    else:
        known = fields(GeneratorRun)
        for name in re.findall(r"`([\w.]+)`", row[1]):
            assert name in known, f"no field {name}"


@pytest.mark.parametrize("name", ["NBP-tokenizer-ucf", "NBP-tokenizer-k600", "NBP-ucf-base", "NBP-ucf-3b",
                                  "NBP-k600-base", "NBP-k600-3b"])
def test_every_repository_of_the_release_is_named(name):
    assert f"`ShuhuaiRen/{name}`" in TEXT
