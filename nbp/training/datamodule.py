"""Batches for training: the step-indexed sampler over a dataset, and fixed validation batches.

Works for clips of video and for cached tokens alike: both datasets accept a `ClipKey`.
"""

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Subset

from nbp.data.dataset import collate_present
from nbp.data.images import JointDataset
from nbp.training.sampler import Images, StepBatchSampler


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

    def train_dataloader(self):
        dataset, images, count = self.train, None, len(self.train)
        if self.images is not None and self.pictures is None:
            images = Images(self.images.share, self.images.batch_size, count)
        elif self.images is not None:
            dataset = JointDataset(self.train, self.pictures)
            images = Images(self.images.share, self.images.batch_size, len(self.pictures), first_item=count)
        sampler = StepBatchSampler(
            count, self.phases, self.config.accumulate, self.config.seed, self.trainer.global_rank,
            self.trainer.world_size, start_step=self.trainer.global_step, images=images)
        return self._loader(dataset, StepLoader, batch_sampler=sampler)

    def val_dataloader(self):
        rank, world = self.trainer.global_rank, self.trainer.world_size
        # Evenly spread over the list, so that few validation batches still see every class.
        wanted = min(len(self.val), self.config.val_batches * self.val_batch_size * world)
        items = [index * len(self.val) // wanted for index in range(wanted)]
        return self._loader(Subset(self.val, items[rank::world]), batch_size=self.val_batch_size,
                            collate_fn=collate_present)

    def _loader(self, dataset, loader=DataLoader, **batching):
        workers = self.config.num_workers
        return loader(dataset, num_workers=workers, persistent_workers=workers > 0, pin_memory=torch.cuda.is_available(),
                      **batching)


class StepLoader(DataLoader):
    """Tells Lightning that it may be resumed anywhere: its sampler starts at `trainer.global_step`."""

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass
