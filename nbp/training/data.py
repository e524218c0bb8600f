"""The order of training clips, as a pure function of (seed, step, rank), and the loaders over it.

Nothing needs to be saved to resume in the middle of an epoch: a sampler that starts at step s yields exactly what an
uninterrupted one yields from step s on. Works for clips of video and for cached tokens alike: both data sets accept a
`ClipKey`.
"""

import hashlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, TypedDict, cast

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from nbp.config.runs import CurriculumPhase, ImageConfig, TrainerConfig
from nbp.data.dataset import Sample, VideoDataset
from nbp.data.images import ImageDataset, JointDataset
from nbp.data.tokens import TokenDataset, TokenSample
from nbp.training.stop_signals import ignore_in_worker

# Settings of a token cache that make other tokens of the same files.
CUT_FIELDS = ("resolution", "num_frames", "fps", "resize", "clips_per_video", "precision")


class Batch(TypedDict, total=False):
    """What a loader yields: `video` or `indices`, and the rest."""

    video: Tensor        # (B, 3, T, H, W) float32 in [0, 1]
    indices: Tensor      # (B, t, h, w) int64, cached tokens
    label: Tensor        # (B,) int64, -1 without a class
    text: list[str]
    path: list[str]
    item: Tensor         # (B,) int64


def collate_bytes(samples: list[Any]) -> Batch:
    """A batch whose video is uint8 on its way to the device: a quarter of what workers, pinning and copies move.
    Its channels lie innermost, as readers decode and convolutions compute."""
    if "video" not in samples[0]:
        return cast(Batch, torch.utils.data.default_collate(samples))
    clips = [sample["video"] for sample in samples]
    clips = [(clip * 255).round_().byte() if clip.is_floating_point() else clip for clip in clips]
    batch = torch.utils.data.default_collate([{**sample, "video": clip.movedim(0, -1)}
                                              for sample, clip in zip(samples, clips)])
    return cast(Batch, {**batch, "video": batch["video"].movedim(-1, 1)})


def float_video(batch: Batch) -> Batch:
    """Invert `collate_bytes`, bit for bit where the device divides as the CPU does."""
    if "video" not in batch or batch["video"].dtype != torch.uint8:
        return batch
    return {**batch, "video": batch["video"].float().div_(255)}


class ClipKey(NamedTuple):
    """One training sample: which item of the dataset, how many frames, and the seed of its random choices."""

    item: int
    num_frames: int
    seed: int


class StepBatchSampler(torch.utils.data.Sampler):
    """Yields lists of `ClipKey`, one list per micro-batch of this rank, from optimizer step `start_step` on.

    Each epoch visits every item once in a fresh order; its last, incomplete batch is filled up from the next one.
    Micro-batches of `images`, single frames, are evenly spread among those of clips, at the same time on all ranks and
    in an order of their own: of `num_pictures` items behind the clips, or of the clips themselves where there are none.
    """

    def __init__(self, num_items: int, phases: Sequence[CurriculumPhase], accumulate: int = 1, seed: int = 0,
                 rank: int = 0, world: int = 1, start_step: int = 0, images: ImageConfig | None = None,
                 num_pictures: int = 0) -> None:
        if num_items < 1:
            raise ValueError("the training set is empty")
        self.clips, self.phases, self.accumulate = _Stream(num_items, seed), phases, accumulate
        self.rank, self.world, self.start_step = rank, world, start_step
        self.images = images
        self.pictures = _Stream(num_pictures or num_items, mix_seed(seed, 1 << 62), num_items if num_pictures else 0)

    def __len__(self) -> int:
        """Micro-batches of the whole run, those before `start_step` included."""
        return sum(phase.steps for phase in self.phases) * self.accumulate

    def __iter__(self) -> Iterator[list[ClipKey]]:
        micro_batch, drawn = 0, dict[_Stream, int]()
        for phase in self.phases:
            for _ in range(phase.steps * self.accumulate):
                stream, size, num_frames = self.clips, phase.batch_size, phase.num_frames
                share = 0.0 if self.images is None else self.images.share
                if self.images is not None and int((micro_batch + 1) * share + 1e-9) > int(micro_batch * share + 1e-9):
                    stream, size, num_frames = self.pictures, self.images.batch_size, 1
                first = drawn.get(stream, 0)
                drawn[stream] = first + size * self.world
                if micro_batch >= self.start_step * self.accumulate:
                    start = first + self.rank * size
                    yield [stream.key(n, num_frames) for n in range(start, start + size)]
                micro_batch += 1


class _Stream:
    """An endless shuffled sequence of items: epoch after epoch, each in an order of its own."""

    def __init__(self, num_items: int, seed: int, first_item: int = 0) -> None:
        self.num_items, self.seed, self.first_item = num_items, seed, first_item
        self._epoch = -1

    def key(self, n: int, num_frames: int) -> ClipKey:
        """`ClipKey` of the n-th draw."""
        epoch, position = divmod(n, self.num_items)
        if self._epoch != epoch:
            generator = torch.Generator().manual_seed(mix_seed(self.seed, -1 - epoch))
            self._epoch, self._order = epoch, torch.randperm(self.num_items, generator=generator)  # (num_items,)
        return ClipKey(self.first_item + int(self._order[position]), num_frames, mix_seed(self.seed, n))


def mix_seed(seed: int, n: int) -> int:
    """A well-spread 63-bit seed of two integers (the finaliser of SplitMix64)."""
    mask = (1 << 64) - 1
    x = (seed * 0x9E3779B97F4A7C15 + n * 0xD1B54A32D192ED03 + 0x632BE59BD9B4E019) & mask
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = ((x ^ (x >> shift)) * factor) & mask
    return (x ^ (x >> 31)) >> 1


def _digest(names: list[object]) -> str:
    return hashlib.sha256(repr(names).encode()).hexdigest()


class ClipDataModule(pl.LightningDataModule):
    """Loaders over a training and a validation dataset: the step-indexed sampler, and fixed validation batches.

    `train` is indexed with `ClipKey`; `val_batch_size` is per device. `tokenizer_sha256` names the model whose tokens
    are trained on (None: pixels are), `text_ids_sha256` the ids of all class names (None: no texts), `pictures` where
    images come from (None: frames of `train`).
    """

    trainer: pl.Trainer

    def __init__(self, train: VideoDataset | TokenDataset, val: VideoDataset | TokenDataset,
                 phases: Sequence[CurriculumPhase], val_batch_size: int, trainer_config: TrainerConfig, accumulate: int,
                 tokenizer_sha256: str | None = None, images: ImageConfig | None = None,
                 pictures: ImageDataset | None = None, text_ids_sha256: str | None = None) -> None:
        super().__init__()
        self.tokenizer_sha256, self.text_ids_sha256 = tokenizer_sha256, text_ids_sha256
        self.images, self.pictures = images, pictures
        self.train, self.val, self.phases = train, val, phases
        self.val_batch_size, self.config, self.accumulate = val_batch_size, trainer_config, accumulate

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run must find again: the training clips in their order, and what makes tokens of them."""
        return {"train_clips": len(self.train), "train_sha256": _digest(self.train.clip_names()),
                "beside_sha256": _digest(self._beside()), "tokenizer_sha256": self.tokenizer_sha256,
                "text_ids_sha256": self.text_ids_sha256, "clips_cut": self._cut()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """ValueError: the checkpoint's clips, in whose order the run has its place, or its tokenizer are others."""
        if self.config.accept_changes:
            return
        known = state.get("tokenizer_sha256")       # earlier checkpoints lack it
        if known is not None and known != self.tokenizer_sha256:
            raise ValueError("the checkpoint was trained on tokens of another tokenizer: the weights at tokenizer= "
                             "have changed since, and every token means something else. Restore them, choose another "
                             "trainer.out, or set trainer.accept_changes=true to go on with the new tokens")
        cut = self._cut()
        if (before := state.get("clips_cut") or cut) != cut:
            changed = "; ".join(f"{name} was {before.get(name)!r}, is now {cut.get(name)!r}"
                                for name in sorted(before.keys() | cut.keys()) if before.get(name) != cut.get(name))
            raise ValueError(f"the checkpoint was trained on tokens of clips that were cut otherwise: {changed}. "
                             "Restore that token cache (tokens=), choose another trainer.out, or set "
                             "trainer.accept_changes=true to go on with the new one")
        if state.get("beside_sha256", _digest(self._beside())) != _digest(self._beside()):
            raise ValueError("the checkpoint was trained with other pictures (images.root, images.train_list), or with "
                             "other labels or classes of its tokens. Restore them, choose another trainer.out, or set "
                             "trainer.accept_changes=true to go on with the new ones")
        known = state.get("text_ids_sha256")
        if known is not None and known != self.text_ids_sha256:
            raise ValueError("the checkpoint was trained with other ids of the class names: the text tokenizer at "
                             "text_tokenizer= is another one, and every condition means something else. Restore it, "
                             "choose another trainer.out, or set trainer.accept_changes=true")
        if state["train_sha256"] != _digest(self.train.clip_names()):
            raise ValueError(f"the checkpoint was trained on {state['train_clips']} clips, the training list now has "
                             f"{len(self.train)}, others or in another order. Restore the list, choose another "
                             "trainer.out, or set trainer.accept_changes=true to go on with the new one")

    def setup(self, stage: str) -> None:
        """Say where validation would look at training clips, which an overfitted model does best."""
        train, val = ({name[0] for name in data.clip_names() if isinstance(name, tuple)}
                      for data in (self.train, self.val))
        if (shared := sorted(train & val)) and self.trainer.is_global_zero:
            print(f"{len(shared)} of {len(val)} validation videos are training videos as well, first {shared[0]}: "
                  "scores say how well they are remembered", file=sys.stderr, flush=True)

    def validation_sha256(self) -> str:
        """Of the validation clips that are looked at, by all ranks."""
        count = self._count(self.config.val_batches * self.val_batch_size * self.trainer.world_size)
        return _digest([count, *self.val.clip_names()])

    def _cut(self) -> dict[str, Any]:
        """How the clips of a token cache were cut and tokenized; {} of videos, of which the run file says it."""
        if not isinstance(self.train, TokenDataset):
            return {}
        return {name: self.train.meta["data"].get(name) for name in CUT_FIELDS}

    def _beside(self) -> list[object]:
        """What is trained on beside the clips by name: pictures in their order, labels of tokens."""
        pictures = None if self.pictures is None else self.pictures.paths
        labels = [self.train.labels.tolist(), self.train.classes] if isinstance(self.train, TokenDataset) else None
        return [pictures, labels]

    def train_dataloader(self) -> DataLoader:
        """Micro-batches of this rank from the trainer's step on, so that a resumed run goes on in its order."""
        dataset: Dataset = self.train
        if self.pictures is not None:
            assert isinstance(self.train, VideoDataset)
            dataset = JointDataset(self.train, self.pictures)
        module: Any = self.trainer.lightning_module      # its seed changes with every rollback
        sampler = StepBatchSampler(len(self.train), self.phases, self.accumulate, module.seed, self.trainer.global_rank,
                                   self.trainer.world_size, self.trainer.global_step, self.images,
                                   0 if self.pictures is None else len(self.pictures))
        return StepLoader(dataset, batch_sampler=sampler, **self._options())

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        return float_video(batch)

    def val_dataloader(self) -> DataLoader:
        # Evenly spread over the list, so that few validation batches still see every class.
        items = self.spread(self.config.val_batches * self.val_batch_size * self.trainer.world_size)
        return DataLoader(PresentItems(self.val, items), batch_size=self.val_batch_size, **self._options())

    def spread(self, count: int) -> list[int]:
        """This rank's share of `count` validation items, or of all where there are fewer; evenly spaced, as many on
        every rank, because ranks meet at every batch; a set smaller than their number is repeated."""
        count = self._count(count)
        return [index * len(self.val) // count for index in range(count)][
            self.trainer.global_rank::self.trainer.world_size]

    def _count(self, asked: int) -> int:
        """Clips of all ranks where so many are asked for."""
        return spread_count(asked, len(self.val), self.trainer.world_size)

    def chosen_clips(self, count: int) -> DataLoader:
        """Batches of this rank's share of `count` validation clips, always the same ones."""
        return DataLoader(PresentItems(self.val, self.spread(count)), self.val_batch_size, collate_fn=collate_bytes)

    def _options(self) -> dict[str, Any]:
        workers = self.config.num_workers
        return {"num_workers": workers, "persistent_workers": workers > 0, "worker_init_fn": ignore_in_worker,
                "pin_memory": torch.cuda.is_available(), "collate_fn": collate_bytes}


class PresentItems(Dataset):
    """Chosen items of a dataset that gives None for unreadable ones, for which the next readable one stands in."""

    def __init__(self, dataset: VideoDataset | TokenDataset, items: list[int]) -> None:
        self.dataset, self.items = dataset, items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, number: int) -> Sample | TokenSample:
        for step in range(len(self.dataset)):
            sample = self.dataset[(self.items[number] + step) % len(self.dataset)]
            if sample is not None:
                return sample
        raise ValueError("none of the validation clips can be read")


def spread_count(asked: int, there: int, world: int) -> int:
    """How many of `asked` clips `world` ranks take together, as many each, of a set of `there`."""
    return max(1, min(there, asked) // world) * world


class StepLoader(DataLoader):
    """Tells Lightning that it may be resumed anywhere: its sampler starts at `trainer.global_step`."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass
