"""Pictures as clips of one frame, and a training set of clips and pictures side by side.

Legend: C channels, H W pixels.
"""

from pathlib import Path

import numpy as np
import torch

from nbp.data.annotations import read_annotations
from nbp.data.clips import frames_to_video
from nbp.data.dataset import random_square

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")


class ImageDataset(torch.utils.data.Dataset):
    """Training pictures, cropped and mirrored as clips are.

    An item is a dict: video float32 (C, 1, H, W) in [0, 1]; label -1; text ""; path, relative to the root; item.

    Args:
        data: DataConfig with resolution, resize and flip.
        root: folder of the pictures.
        train_list: annotation list relative to it; None: every picture below it.

    Raises:
        ValueError: no pictures there, or a missing list.
    """

    def __init__(self, data, root, train_list=None):
        self.data, self.root = data, Path(root)
        if train_list is not None:
            self.paths = [path for path, _ in read_annotations(self.root / train_list)]
        else:
            self.paths = sorted(path.relative_to(self.root).as_posix() for path in self.root.rglob("*")
                                if path.suffix.lower() in SUFFIXES)
        if not self.paths:
            raise ValueError(f"images.root {root} holds no pictures ({', '.join(SUFFIXES)})")

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, key):
        """Item of (item, 1, seed): the seed decides crop and mirroring.

        Raises:
            ValueError: the file is not a picture; names it.
        """
        from PIL import Image

        item, _, seed = key
        path = self.root / self.paths[item]
        try:
            with Image.open(path) as image:
                frames = np.asarray(image.convert("RGB"))[None]
        except OSError as error:
            raise ValueError(f"{path} is not a picture: {error}") from error
        frames = random_square(frames, self.data, torch.Generator().manual_seed(seed))
        return {"video": frames_to_video(frames), "label": torch.tensor(-1), "text": "", "path": self.paths[item],
                "item": item}


class JointDataset(torch.utils.data.Dataset):
    """Clips first, pictures behind them: item numbers from `len(videos)` on are pictures."""

    def __init__(self, videos, images):
        self.videos, self.images = videos, images

    def __len__(self):
        return len(self.videos) + len(self.images)

    def __getitem__(self, key):
        item, *rest = key
        count = len(self.videos)
        return self.videos[key] if item < count else self.images[(item - count, *rest)]
