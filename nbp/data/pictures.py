"""Picture files -> uint8 pixels.

Legend: H W pixels.
"""

from pathlib import Path

import numpy as np

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
PICTURE_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")  # Pillow cuts deeper ones off at 255


def read_picture(path: Path) -> np.ndarray:
    """Pixels of a picture file, uint8 (H, W, 3), RGB.

    Raises:
        ValueError: not a picture, a damaged one, or one of more than 8 bit; names the file.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            if image.mode not in PICTURE_MODES:
                raise ValueError(f"{path} is a picture of mode {image.mode}; accepted: 8 bit, that is "
                                 f"{', '.join(PICTURE_MODES)}")
            return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError) as error:   # Pillow's word for a broken PNG
        raise ValueError(f"{path} cannot be read as a picture: {error}") from error
