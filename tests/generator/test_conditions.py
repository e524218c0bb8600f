"""Labels and texts as condition ids, under the installed transformers."""

import json
from pathlib import Path

import pytest
import torch
from generators import TEXT, UNCONDITIONAL, build, codes, config

from nbp.data.classes import UCF101_CLASSES, class_text
from nbp.generator.conditions import condition_encoder, pad_right, train_text_tokenizer

RECORDED = json.loads((Path(__file__).parents[1] / "parity" / "llama_ucf_ids.json").read_text())


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A SentencePiece vocabulary with LLaMA's settings, trained on the class names."""
    import sentencepiece

    folder = tmp_path_factory.mktemp("llama")
    (folder / "names.txt").write_text("\n".join([class_text(name) for name in UCF101_CLASSES] * 3))
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "names.txt"), model_prefix=str(folder / "tokenizer"), vocab_size=600, model_type="bpe",
        byte_fallback=True, unk_id=0, bos_id=1, eos_id=2, pad_id=-1, normalization_rule_name="identity",
        split_digits=True, allow_whitespace_only_pieces=True, remove_extra_whitespaces=False, minloglevel=2)
    (folder / "tokenizer_config.json").write_text(json.dumps(
        {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False, "bos_token": "<s>",
         "eos_token": "</s>", "unk_token": "<unk>", "pad_token": None, "padding_side": "left"}))
    return folder


def official(**changes):
    """Settings of an official hybrid model with 8 condition tokens."""
    return config(**{**TEXT, "num_condition_ids": 600, "condition_len": 8, "pad_visibility": "causal", **changes})


def test_class_texts_are_the_recorded_ones():
    assert list(UCF101_CLASSES) == RECORDED["classes"]
    assert [class_text(name) for name in UCF101_CLASSES] == RECORDED["texts"]


def test_recorded_ids_by_the_padding_rule():
    assert pad_right(RECORDED["ids_untruncated"], 8, RECORDED["pad_token_id"]).tolist() == RECORDED["ids_max8"]


LLAMA = Path(__file__).parents[2] / "ckpt" / "llama"


@pytest.mark.skipif(not (LLAMA / "tokenizer.model").is_file(), reason="needs LLaMA's tokenizer files in ckpt/llama")
def test_ids_of_the_real_llama_vocabulary():
    encode = condition_encoder(official(num_condition_ids=32_000), LLAMA)
    assert encode({"text": RECORDED["texts"]}).tolist() == RECORDED["ids_max8"]


def test_llama_ids(llama):
    """Begin, pieces, then 2s on the right, whatever side the tokenizer's own settings pad on."""
    import sentencepiece

    model = sentencepiece.SentencePieceProcessor(model_file=str(llama / "tokenizer.model"))
    texts = RECORDED["texts"] + ["", "Hello World!", "a  b", "naïve café", "日本", " leading", "a\nb"]
    want = [([1] + model.encode(text) + [2] * 8)[:8] for text in texts]
    assert condition_encoder(official(), llama)({"text": texts}).tolist() == want
    # Special tokens inside a text are themselves, as in the recorded strings.
    ids = condition_encoder(official(), llama)({"text": ["<s>", "x</s>y"]}).tolist()
    assert ids == [[1, 1, 2, 2, 2, 2, 2, 2], ([1, *model.encode("x"), 2, *model.encode("y")] + [2] * 8)[:8]]


def test_llama_ids_equal_those_of_transformers(llama):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(llama)
    want = pad_right([tokenizer(text)["input_ids"] for text in RECORDED["texts"]], 8, 2)
    assert torch.equal(condition_encoder(official(), llama)({"text": RECORDED["texts"]}), want)


def test_a_tokenizer_trained_on_the_class_names(tmp_path):
    texts = [class_text(name) for name in UCF101_CLASSES]
    train_text_tokenizer(texts, tmp_path, vocab_size=500)
    settings = config(**{**TEXT, "num_condition_ids": 500, "condition_len": 12, "pad_token": 2})
    encode = condition_encoder(settings, tmp_path)
    ids = encode({"text": texts})
    assert ids.shape == (101, 12) and ids.dtype == torch.int64
    assert (ids[:, 0] == 0).all() and len(set(map(tuple, ids.tolist()))) == 101
    assert all(set(row[row.index(2):]) == {2} for row in ids.tolist() if 2 in row)
    assert encode({"text": ["Zürich 日本"]}).max() < 500
    generator = build(**{**TEXT, "num_condition_ids": 500, "condition_len": 12, "pad_token": 2})
    assert generator.loss(codes(2, (2, 4, 4)), ids[:2]).isfinite()


def test_a_vocabulary_that_bytes_alone_exceed_is_refused(tmp_path):
    with pytest.raises(ValueError, match="vocab_size must be at least 259, one id a byte and three special"):
        train_text_tokenizer(["yo yo"], tmp_path, vocab_size=258)
    train_text_tokenizer(["yo yo"], tmp_path, vocab_size=259)
    assert len(json.loads((tmp_path / "tokenizer.json").read_text())["model"]["vocab"]) == 259


@pytest.mark.parametrize("visibility", ["never", "causal"])
def test_a_tokenizer_that_names_no_end_takes_the_pad_of_the_model(tmp_path, visibility):
    train_text_tokenizer(["yo yo"], tmp_path)
    path = tmp_path / "tokenizer_config.json"
    facts = json.loads(path.read_text())
    path.write_text(json.dumps({name: facts[name] for name in facts if name not in ("eos_token", "pad_token")}))
    (tmp_path / "special_tokens_map.json").unlink(missing_ok=True)
    settings = {**TEXT, "num_condition_ids": 512, "condition_len": 8, "pad_visibility": visibility}
    with pytest.raises(ValueError, match="neither a pad nor an end-of-sentence token: set pad_token in the model"):
        condition_encoder(config(**{**settings, "pad_token": None}), tmp_path)
    assert condition_encoder(config(**{**settings, "pad_token": 7}), tmp_path)({"text": ["y"]})[0, -1] == 7


def test_labels():
    encode = condition_encoder(config())
    assert encode({"label": torch.tensor([0, 2])}).tolist() == [[0], [2]]
    for label in (-1, 3):
        with pytest.raises(ValueError, match=f"labels must lie in 0..2, got {label}"):
            encode({"label": torch.tensor([label])})
    assert condition_encoder(config(**UNCONDITIONAL)) is None


def test_bad_folders(tmp_path, llama):
    with pytest.raises(ValueError, match="needs a tokenizer folder"):
        condition_encoder(official())
    with pytest.raises(ValueError, match="nothing is not a tokenizer folder"):
        condition_encoder(official(), tmp_path / "nothing")
    with pytest.raises(ValueError, match="holds no tokenizer that transformers reads"):
        condition_encoder(official(), tmp_path)
    with pytest.raises(ValueError, match="has 600 ids, the model knows 20"):
        condition_encoder(official(num_condition_ids=20), llama)
    (tmp_path / "tokenizer.model").write_text("no model")
    with pytest.raises(ValueError, match="is not a SentencePiece model"):
        condition_encoder(official(), tmp_path)
