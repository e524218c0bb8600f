"""Contact sheets: clips as strips of frames in one picture.

Legend: T frames, H W pixels; clips are uint8 (T, H, W, 3).
"""

import os
from collections.abc import Sequence

import numpy as np

from nbp.system.files import atomic_path

GAP, TITLE_WIDTH = 2, 150  # pixels between frames, and of the titles, on sheets with titles


def contact_sheet(clips: Sequence[np.ndarray] | np.ndarray, num_frames: int = 5, columns: int = 1,
                  titles: Sequence[str] = ()) -> np.ndarray:
    """Draw clips of one size, each as a strip of frames spread evenly over it, on white.

    Args:
        clips: clips (T, H, W, 3), or an array (N, T, H, W, 3); their lengths may differ.
        num_frames: of each strip; a clip with fewer shows all it has.
        columns: strips in a row.
        titles: of the clips, each left of its strip; such sheets also have gaps between the frames.

    Returns:
        uint8 (H', W', 3).
    """
    height, width = clips[0].shape[1:3]
    gap, margin = (GAP, TITLE_WIDTH) if titles else (0, 0)
    strip = margin + min(num_frames, max(map(len, clips))) * (width + gap)
    sheet = np.full((-(-len(clips) // columns) * (height + gap), columns * strip, 3), 255, np.uint8)
    for number, clip in enumerate(clips):
        top, left = number // columns * (height + gap), number % columns * strip
        if titles:
            sheet[top:top + height, left:left + margin] = _title(titles[number], height, margin)
        chosen = np.linspace(0, len(clip) - 1, min(num_frames, len(clip))).round().astype(int)
        for place, frame in enumerate(chosen):
            start = left + margin + place * (width + gap)
            sheet[top:top + height, start:start + width] = clip[frame]
    return sheet


def _title(text: str, height: int, width: int) -> np.ndarray:
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (width, height), "white")
    ImageDraw.Draw(image).text((4, height // 2 - 6), text, fill="black")
    return np.asarray(image)


def write_picture(path: str | os.PathLike[str], pixels: np.ndarray) -> None:
    """Write uint8 (H, W, 3) as a picture of the suffix's kind, atomically."""
    from PIL import Image

    with atomic_path(path) as temporary:
        Image.fromarray(pixels).save(temporary)
