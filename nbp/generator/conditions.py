"""Labels and texts -> condition ids (B, C).

A text's ids are [special ids in front, words], cut to C and filled up on the right. LLaMA folders (SentencePiece
`tokenizer.model`) are read directly, so that their ids do not depend on the transformers release; any other
Hugging Face tokenizer folder goes through transformers.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nbp.config import GeneratorConfig

FEWEST_IDS = 256 + 3     # of a text tokenizer that is trained: bytes and special ones
ConditionEncoder = Callable[[Mapping[str, Any]], Tensor]     # of a batch: "label" int64 (B,), "text" a list of B str


class Vocabulary(NamedTuple):
    """A text tokenizer: text -> ids, how many ids there are, and the special ones that can fill up a condition."""

    encode: Callable[[str], list[int]]
    size: int
    fill_up: tuple[int | None, ...]


def condition_encoder(config: GeneratorConfig, text_tokenizer: str | Path | None = None) -> ConditionEncoder | None:
    """Function from a batch to condition ids.

    Args:
        config: `GeneratorConfig`.
        text_tokenizer: tokenizer folder, for text-conditioned models only.

    Returns:
        Function(dict with "label" int64 (B,) or "text", list of B strings) -> int64 (B, C); None for unconditional
        models.

    Raises:
        ValueError: a text-conditioned model without a folder, a folder that holds no tokenizer, or a tokenizer with
            more ids than the model.
    """
    if config.condition == "none":
        return None
    if config.condition == "label":
        return lambda batch: _labels(batch["label"], config.num_condition_ids)
    if text_tokenizer is None:
        raise ValueError("a text-conditioned model needs a tokenizer folder (text_tokenizer)")
    encode = TextEncoder(text_tokenizer, config)
    return lambda batch: encode(batch["text"])


def text_ids_sha256(encode: Callable[[dict[str, Any]], Tensor], texts: Iterable[str]) -> str:
    """What tells one text tokenizer from another: a hex digest of the ids that the texts become, in any order."""
    ids = encode({"text": sorted(set(texts))})      # (number of texts, C)
    return hashlib.sha256(ids.numpy().tobytes()).hexdigest()


class TextEncoder:
    """Texts -> ids int64 (B, C).

    The fill-up id is `config.pad_token`; official models, whose pads are not hidden, have the tokenizer's
    end-of-sentence id, or its own pad id where it has none; `config.pad_token` where it has neither.

    Args:
        folder: tokenizer folder.
        config: `GeneratorConfig` of a text-conditioned model.

    Raises:
        ValueError: see `condition_encoder`.
    """

    def __init__(self, folder: str | Path, config: GeneratorConfig) -> None:
        folder = Path(folder)
        self.vocabulary = _sentencepiece(folder) if _is_llama(folder) else _hugging_face(folder)
        if self.vocabulary.size > config.num_condition_ids:
            raise ValueError(f"{folder} has {self.vocabulary.size} ids, the model knows {config.num_condition_ids}")
        self.length = config.condition_len
        pads = [config.pad_token if config.pad_visibility == "never" else None, *self.vocabulary.fill_up,
                config.pad_token]
        known = [pad for pad in pads if pad is not None]
        if not known:
            raise ValueError(f"{folder} has neither a pad nor an end-of-sentence token: set pad_token in the model")
        self.pad = known[0]

    def __call__(self, texts: Iterable[str]) -> Tensor:
        return pad_right([self.vocabulary.encode(text) for text in texts], self.length, self.pad)


def pad_right(ids: Iterable[list[int]], length: int, pad: int) -> Tensor:
    """Cut lists of ids to `length` and fill them up behind: int64 (B, length)."""
    return torch.tensor([(row + [pad] * length)[:length] for row in ids])      # (B, length)


def train_text_tokenizer(texts: Iterable[str], folder: str | Path, vocab_size: int = 512) -> None:
    """Train a small byte-level BPE tokenizer on class names or captions and write it as a folder.

    Args:
        texts: list of str.
        folder: created if missing; holds `tokenizer.json` and its config.
        vocab_size: largest number of ids, special ones included (0 <s> in front of a text, 1 </s>, 2 <pad>), at least
            `FEWEST_IDS`, which every byte takes.

    Raises:
        ValueError: fewer.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    if vocab_size < FEWEST_IDS:
        raise ValueError(f"vocab_size must be at least {FEWEST_IDS}, one id a byte and three special ones, got "
                         f"{vocab_size}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(sorted(set(texts)), trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=["<s>", "</s>", "<pad>"], initial_alphabet=alphabet, show_progress=False))
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 0)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    fast.save_pretrained(folder)


def _labels(label: Tensor, num_classes: int) -> Tensor:
    if label.device.type == "cuda":          # not waited for: the device itself stops
        torch._assert_async(((label >= 0) & (label < num_classes)).all(), f"labels must lie in 0..{num_classes - 1}")
    elif len(label) and not (0 <= int(label.min()) and int(label.max()) < num_classes):
        raise ValueError(f"labels must lie in 0..{num_classes - 1}, got {int(label.min())}..{int(label.max())} "
                         "(-1: a clip without a class)")
    return label.long()[:, None]      # (B, 1)


def _is_llama(folder: Path) -> bool:
    settings = folder / "tokenizer_config.json"
    if not (folder / "tokenizer.model").is_file():
        return False
    if not settings.is_file():
        return True
    return json.loads(settings.read_text()).get("tokenizer_class", "Llama").startswith("Llama")


def _sentencepiece(folder: Path) -> Vocabulary:
    """A LLaMA vocabulary; `fill_up` is its end of sentence."""
    from sentencepiece import SentencePieceProcessor

    try:
        model = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    except (OSError, RuntimeError) as error:
        raise ValueError(f"{folder / 'tokenizer.model'} is not a SentencePiece model: {error}") from error
    marks = {model.id_to_piece(i): i for i in (model.unk_id(), model.bos_id(), model.eos_id()) if i >= 0}
    pattern = re.compile("(" + "|".join(map(re.escape, marks)) + ")")

    def encode(text: str) -> list[int]:
        ids = [model.bos_id()]
        for part in filter(None, pattern.split(text)):
            ids += [marks[part]] if part in marks else model.encode(part)
        return ids

    return Vocabulary(encode, model.vocab_size(), (model.eos_id(),))


def _hugging_face(folder: Path) -> Vocabulary:
    """Any other tokenizer folder; `fill_up` is its end of sentence, or else its pad."""
    from transformers import AutoTokenizer

    if not folder.is_dir():
        raise ValueError(f"{folder} is not a tokenizer folder")
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{folder} holds no tokenizer that transformers reads: {error}") from error
    return Vocabulary(lambda text: tokenizer(text)["input_ids"], len(tokenizer),
                      (tokenizer.eos_token_id, tokenizer.pad_token_id))
