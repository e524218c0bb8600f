"""Pictures as clips of one frame, and a training set of clips and pictures side by side.

Legend: C channels, H W pixels.
"""

from pathlib import Path

import torch

from nbp.config import DataConfig
from nbp.data.annotations import read_annotations
from nbp.data.clips import frames_to_video
from nbp.data.dataset import Sample, VideoDataset, random_square
from nbp.data.pictures import PICTURE_SUFFIXES, read_picture


class ImageDataset(torch.utils.data.Dataset):
    """Training pictures, cropped and mirrored as clips are; an item is a `Sample` of one frame, without a class.

    Args:
        data: its resolution, resize and flip count.
        root: folder of the pictures.
        train_list: annotation list relative to it; None: every picture below it.

    Raises:
        ValueError: no pictures there, or a missing list.
    """

    def __init__(self, data: DataConfig, root: str | Path, train_list: str | None = None) -> None:
        self.data, self.root = data, Path(root)
        if train_list is not None:
            self.paths = [path for path, _ in read_annotations(self.root / train_list)]
        else:
            self.paths = sorted(path.relative_to(self.root).as_posix() for path in self.root.rglob("*")
                                if path.suffix.lower() in PICTURE_SUFFIXES)
        if not self.paths:
            raise ValueError(f"images.root {root} holds no pictures ({', '.join(PICTURE_SUFFIXES)})")

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, key: tuple[int, int, int]) -> Sample:
        """Item of (item, 1, seed): the seed decides crop and mirroring.

        Raises:
            ValueError: the file is not a picture; names it.
        """
        item, _, seed = key
        frames = read_picture(self.root / self.paths[item])[None]  # (1, H, W, 3)
        frames = random_square(frames, self.data, torch.Generator().manual_seed(seed))
        return {"video": frames_to_video(frames), "label": torch.tensor(-1), "text": "", "path": self.paths[item],
                "item": item}


class JointDataset(torch.utils.data.Dataset):
    """Clips first, pictures behind them: item numbers from `len(videos)` on are pictures."""

    def __init__(self, videos: VideoDataset, images: ImageDataset) -> None:
        self.videos, self.images = videos, images

    def __len__(self) -> int:
        return len(self.videos) + len(self.images)

    def __getitem__(self, key: tuple[int, int, int]) -> Sample | None:
        item, num_frames, seed = key
        count = len(self.videos)
        return self.videos[key] if item < count else self.images[item - count, num_frames, seed]
