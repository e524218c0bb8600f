"""Batches for training: the step-indexed sampler over a dataset, and fixed validation batches.

Works for clips of video and for cached tokens alike: both datasets accept a `ClipKey`.
"""

import hashlib

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from nbp.data.images import JointDataset
from nbp.training.sampler import Images, StepBatchSampler
from nbp.training.stop_signals import ignore_in_worker


class ClipDataModule(pl.LightningDataModule):
    """Loaders over a training and a validation dataset.

    Args:
        train, val: map-style datasets; `train` is indexed with `ClipKey`.
        phases: list of `nbp.training.sampler.Phase`.
        val_batch_size: clips per device in validation.
        trainer_config: `nbp.config.TrainerConfig`.
        images: `nbp.config.ImageConfig` of a run that mixes pictures in, or None.
        pictures: `ImageDataset` they come from; None: frames of `train`.
    """

    def __init__(self, train, val, phases, val_batch_size, trainer_config, images=None, pictures=None):
        super().__init__()
        self.images, self.pictures = images, pictures
        self.train, self.val, self.phases = train, val, phases
        self.val_batch_size, self.config = val_batch_size, trainer_config

    def state_dict(self):
        """What a resumed run must find again: the training clips in their order."""
        return {"train_clips": len(self.train), "train_sha256": self._digest()}

    def load_state_dict(self, state):
        """Compare with a checkpoint's training clips.

        Raises:
            ValueError: they are others, so that the place in their order means something else.
        """
        if state["train_sha256"] != self._digest() and not self.config.accept_changes:
            raise ValueError(f"the checkpoint was trained on {state['train_clips']} clips, the training list now has "
                             f"{len(self.train)}, others or in another order. Restore the list, choose another "
                             "trainer.out, or set trainer.accept_changes=true to go on with the new one")

    def _digest(self):
        return hashlib.sha256(repr(self.train.clip_names()).encode()).hexdigest()

    def train_dataloader(self):
        dataset, images, count = self.train, None, len(self.train)
        if self.images is not None and self.pictures is None:
            images = Images(self.images.share, self.images.batch_size, count)
        elif self.images is not None:
            dataset = JointDataset(self.train, self.pictures)
            images = Images(self.images.share, self.images.batch_size, len(self.pictures), first_item=count)
        sampler = StepBatchSampler(
            count, self.phases, self.config.accumulate, self.trainer.lightning_module.seed,
            self.trainer.global_rank, self.trainer.world_size, start_step=self.trainer.global_step, images=images)
        return self._loader(dataset, StepLoader, batch_sampler=sampler)

    def val_dataloader(self):
        # Evenly spread over the list, so that few validation batches still see every class.
        items = self.spread(self.config.val_batches * self.val_batch_size * self.trainer.world_size)
        return self._loader(PresentItems(self.val, items), batch_size=self.val_batch_size)

    def spread(self, count):
        """This rank's share of `count` validation items, or of all where there are fewer; evenly spaced.

        Every rank gets as many, because ranks meet at every batch; a set smaller than their number is repeated.
        """
        rank, world = self.trainer.global_rank, self.trainer.world_size
        count = max(1, min(len(self.val), count) // world) * world
        return [index * len(self.val) // count for index in range(count)][rank::world]

    def chosen_clips(self, count):
        """Batches of this rank's share of `count` validation clips, always the same ones."""
        return DataLoader(PresentItems(self.val, self.spread(count)), batch_size=self.val_batch_size)

    def _loader(self, dataset, loader=DataLoader, **batching):
        workers = self.config.num_workers
        return loader(dataset, num_workers=workers, persistent_workers=workers > 0, worker_init_fn=ignore_in_worker,
                      pin_memory=torch.cuda.is_available(), **batching)


class PresentItems(torch.utils.data.Dataset):
    """Chosen items of a dataset that gives None for unreadable ones; the next readable item stands in for those.

    Args:
        dataset: map-style.
        items: numbers of items.
    """

    def __init__(self, dataset, items):
        self.dataset, self.items = dataset, items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, number):
        for step in range(len(self.dataset)):
            sample = self.dataset[(self.items[number] + step) % len(self.dataset)]
            if sample is not None:
                return sample
        raise ValueError("none of the validation clips can be read")


class StepLoader(DataLoader):
    """Tells Lightning that it may be resumed anywhere: its sampler starts at `trainer.global_step`."""

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass
