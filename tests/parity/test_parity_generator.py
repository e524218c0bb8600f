"""The generator against recorded outputs of the official code on rule-made weights (tests/parity)."""

import argparse
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from parity import weights_rule
from parity.compare import close, same, tensor

from nbp.download import load_transformer
from nbp.generator.masks import attention_mask
from nbp.generator.nucleus import filter_logits

PARITY = Path(__file__).parent
SMALL = json.loads((PARITY / "generator_small.json").read_text())
FILES = {"k600_t4_tiny": "gen_k600_t4_tiny", "label_hybrid_t4_tiny": "gen_label_hybrid_t4_tiny",
         "text_hybrid_t4": "gen_text_hybrid_t4"}


def write_checkpoint(path, case):
    """A Lightning checkpoint in the official layout, with rule-made weights."""
    kind = case["kind"]
    args = argparse.Namespace(
        n_layer=case["n_layer"], n_head=case["n_head"], n_embd=case["n_embd"], block_size=case["block_size"],
        token_number_per_step=case["tnps"], hybrid="hybrid" in kind, starts_with_bov="hybrid" in kind,
        unconditional=kind == "uncond", class_cond_dim=case["cond_stage_vocab"], vtokens_pos=False,
        cond_token_num=case["state_dict"]["transformer.uncond_embedding"][0], vocab_size=16384,
        first_stage_vocab_size=16384, sequence_length=17, resolution=32, transformer_dropout=0.1)
    content = {"epoch": 1, "global_step": 2, "pytorch-lightning_version": "1.5.4",
               "state_dict": weights_rule.state_dict(case["state_dict"]),
               "hyper_parameters": {"args": args, "cond_stage_key": "text" if "text" in kind else "label",
                                    "ckpt_path": None, "ignore_keys": ["mask"], "bov_token": 0}}
    torch.save(content, path)
    return path


@pytest.fixture(scope="module", params=list(FILES))
def case(request, tmp_path_factory):
    """(name, recorded arrays, generator loaded from an official checkpoint file)."""
    path = write_checkpoint(tmp_path_factory.mktemp("official") / "model.ckpt", SMALL[request.param])
    recorded = dict(np.load(PARITY / f"{FILES[request.param]}.npz"))
    return request.param, recorded, load_transformer(path, device="cpu")


def condition_of(recorded):
    return tensor(recorded["c_idx"]) if recorded["c_idx"].shape[1] else None


def prefix_of(recorded):
    """Rows of video codes in front of the sampled ones: the K600 case only."""
    return tensor(recorded["sample_prefix"]) if recorded["c_idx"].shape[1] == 0 else None


def test_training_forward(case):
    name, recorded, generator = case
    codes, condition = tensor(recorded["z"]), condition_of(recorded)
    with torch.no_grad():
        logits = generator(codes, condition)
        nll, rank = generator.score(codes, condition)
        loss = generator.loss(codes, condition)
    close(f"{name} logits", logits[..., tensor(recorded["logit_cols"])], recorded["logits"], 1e-4)
    close(f"{name} logsumexp", logits.logsumexp(-1), recorded["logits_lse"], 1e-4)
    same(f"{name} argmax", logits.argmax(-1), recorded["logits_argmax"])
    close(f"{name} nll", nll, recorded["nll"], 1e-4)
    close(f"{name} loss", loss, recorded["loss"], 1e-5)
    close(f"{name} accuracy top 1", (rank < 1).float().mean()[None] * 100, recorded["acc1"], 1e-5)
    close(f"{name} accuracy top 5", (rank < 5).float().mean()[None] * 100, recorded["acc5"], 1e-5)


def test_mask_and_inputs(case):
    name, recorded, generator = case
    shape = tuple(recorded["mask_shape"])
    want = np.unpackbits(recorded["mask"], axis=-1, count=shape[-1]).astype(bool).reshape(shape)
    got = attention_mask(generator.layout, 0, shape[-1]).expand(shape)
    same(f"{name} mask", got, want)
    shape = recorded["sample_mask"].shape
    got = attention_mask(generator.layout, 0, shape[-1])
    same(f"{name} mask of the first sampling step", torch.ones(shape) if got is None else got.expand(shape),
         recorded["sample_mask"])
    ids = generator.layout.stream(tensor(recorded["z"]))
    ids = ids[:, :generator.layout.num_inputs(recorded["z"].shape[1])]
    condition = tensor(recorded["c_idx"]) + generator.layout.condition_offset
    same(f"{name} input ids", torch.cat([condition, ids], dim=1), recorded["train_input"])
    same(f"{name} video offset", generator.layout.video_offset, recorded["n_shift"])


def test_greedy(case, monkeypatch):
    name, recorded, generator = case
    prefix, condition, calls = prefix_of(recorded), condition_of(recorded), []
    decoder = generator._decoder

    def recording(*arguments):
        logits_of = decoder(*arguments)

        def step(ids, first, count):
            logits = logits_of(ids, first, count)
            calls.append((ids.clone(), first, logits[:, -1]))
            return logits

        return step

    monkeypatch.setattr(generator, "_decoder", recording)
    codes = generator.generate(condition, prefix, grid=(5, 4, 4), greedy=True).flatten(1)
    given = 0 if prefix is None else prefix.shape[1]
    same(f"{name} greedy samples", codes[:, given:], recorded["greedy_clamped"])
    ids, first, logits = zip(*calls)
    condition_ids = tensor(recorded["c_idx"]) + generator.layout.condition_offset
    before = condition_ids.shape[1]
    same(f"{name} greedy inputs", torch.cat([condition_ids, *ids], 1), recorded["greedy_inputs"])
    same(f"{name} greedy call positions", [0] + [at + before for at in first[1:]], recorded["greedy_call_pos"])
    same(f"{name} greedy call lengths", [before + ids[0].shape[1]] + [i.shape[1] for i in ids[1:]],
         recorded["greedy_call_len"])
    close(f"{name} greedy logits at the last position of each call",
          torch.stack(logits, 1)[..., tensor(recorded["logit_cols"])], recorded["greedy_logits_lastpos"], 1e-4)


def test_greedy_without_filter_is_unchanged(case):
    name, recorded, generator = case
    arguments = dict(condition=condition_of(recorded), prefix=prefix_of(recorded), grid=(5, 4, 4), greedy=True)
    assert torch.equal(generator.generate(**arguments), generator.generate(**arguments, top_k=None, top_p=None))


def test_seeded_samples(case):
    name, recorded, generator = case
    prefix, condition = prefix_of(recorded), condition_of(recorded)
    prefix = prefix[:1] if prefix is not None else None
    condition = condition[:1] if condition is not None else None
    given = 0 if prefix is None else prefix.shape[1]
    offset = generator.layout.video_offset

    def check(label, want, seed, **options):
        codes = generator.generate(condition, prefix, grid=(5, 4, 4), generator=torch.Generator().manual_seed(seed),
                                   **options).flatten(1)[:, given:]
        want = np.clip(want - offset, 0, generator.config.num_codes - 1)
        same(f"{name} {label}", codes[:, :want.shape[1]], want)

    seed = int(recorded["sampled_seed"])
    check("seeded samples", recorded["sampled"], seed, top_k=int(recorded["sampled_top_k"]),
          top_p=float(recorded["sampled_top_p"]))
    check("seeded samples, temperature 0.7, no filter", recorded["sampled_t07_nofilter"], seed + 1, temperature=0.7,
          top_k=None, top_p=None)


def test_global_seed_is_the_default(case):
    name, recorded, generator = case
    prefix, condition = prefix_of(recorded), condition_of(recorded)
    torch.manual_seed(int(recorded["sampled_seed"]))
    codes = generator.generate(condition[:1] if condition is not None else None,
                               prefix[:1] if prefix is not None else None, grid=(5, 4, 4),
                               top_k=int(recorded["sampled_top_k"]), top_p=float(recorded["sampled_top_p"])).flatten(1)
    want = np.clip(recorded["sampled"] - generator.layout.video_offset, 0, generator.config.num_codes - 1)
    assert (codes[:, -want.shape[1]:].numpy() == want).all()


def test_filter():
    recorded = np.load(PARITY / "filter.npz")
    for name in recorded.files:
        if not name.startswith("kept"):
            continue
        source, top_k, top_p = name.split("_")
        logits = tensor(recorded["logits64k" if source == "kept64k" else "logits"]).float()
        kept = filter_logits(logits, int(top_k), float(top_p)) > -torch.inf
        want = recorded[name]
        if source == "kept64k":
            want = np.unpackbits(want, axis=-1, count=logits.shape[-1]).astype(bool)
        same(f"filter {name}", kept, want)
