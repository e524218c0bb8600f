"""Pictures as clips of one frame, and a training set of clips and pictures side by side.

Legend: C channels, H W pixels.
"""

import logging
from itertools import chain
from pathlib import Path

import torch

from nbp.config import DataConfig
from nbp.data.annotations import folder_of, read_annotations
from nbp.data.clips import frames_to_video
from nbp.data.dataset import BadFiles, Sample, VideoDataset, random_crop
from nbp.data.pictures import PICTURE_SUFFIXES, read_picture
from nbp.data.video_file import VideoError
from nbp.data.walk import find_files, split_folders

log = logging.getLogger(__name__)


class ImageDataset(torch.utils.data.Dataset):
    """Training pictures, cropped and mirrored as clips are; an item is a `Sample` of one frame, without a class.

    Bad pictures are treated as bad videos are: counted up to `data.max_bad_files`, the next one taken in their place.

    Args:
        data: its resolution, resize, flip and max_bad_files count.
        root: folder of the pictures.
        train_list: annotation list relative to it; None: every picture below it, or below its folder `train` where it
            is divided into train, val and test.

    Raises:
        ValueError: no pictures there, or a missing list.
    """

    def __init__(self, data: DataConfig, root: str | Path, train_list: str | None = None) -> None:
        self.data, self.root = data, Path(root)
        if train_list is not None:
            rows = read_annotations(self.root / train_list, root)
            self.paths, self.root = [path for path, _ in rows], folder_of(root, rows)
        else:
            found = find_files(split_folders(root).get("train", self.root), PICTURE_SUFFIXES)
            self.paths = [path.relative_to(self.root).as_posix() for path in found.files]
            if note := found.note():
                log.warning("images.root %s: %s", root, note)
        if not self.paths:
            raise ValueError(f"images.root {root} holds no pictures ({', '.join(PICTURE_SUFFIXES)})")
        self.bad = BadFiles(len(self.paths), data.max_bad_files)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, key: tuple[int, int, int]) -> Sample:
        """Item of (item, 1, seed): the seed decides crop and mirroring.

        Raises:
            VideoError: the file is not a picture and the allowance of `max_bad_files` is spent; names it.
        """
        item, _, seed = key
        for number in chain(range(item, len(self)), range(item)):
            if number in self.bad:
                continue
            try:
                frames = read_picture(self.root / self.paths[number])[None]  # (1, H, W, 3)
            except VideoError as error:
                self.bad.add(number, error)
                continue
            frames = random_crop(frames, self.data, torch.Generator().manual_seed(seed))
            return {"video": frames_to_video(frames), "label": torch.tensor(-1), "text": "",
                    "path": self.paths[number], "item": number}
        raise ValueError(f"{self.root}: none of the {len(self)} pictures can be read")


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
