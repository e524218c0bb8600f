"""Picture files -> uint8 pixels.

Legend: H W pixels.
"""

import struct
import zlib
from pathlib import Path

import numpy as np

from nbp.data.video_file import VideoError

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".avif", ".tif", ".tiff", ".ppm", ".pgm",
                    ".jp2")
PICTURE_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")  # Pillow cuts deeper ones off at 255


def read_picture(path: Path) -> np.ndarray:
    """Pixels of a picture file, turned as its EXIF data say: uint8 (H, W, 3), RGB.

    Raises:
        VideoError: not a picture, a damaged one, or one of more than 8 bit; names the file.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            if image.mode not in PICTURE_MODES:
                raise VideoError(f"{path} is a picture of mode {image.mode}; accepted: 8 bit, that is "
                                 f"{', '.join(PICTURE_MODES)}")
            if image.format in ("WEBP", "PNG", "GIF", "AVIF") and getattr(image, "is_animated", False):
                raise VideoError(f"{path} is an animation, not one picture; save it as .gif or .mp4, which are videos")
            return np.array(ImageOps.exif_transpose(image).convert("RGB"))
    except VideoError:
        raise
    # A broken PNG is a SyntaxError to Pillow; its readers of other formats let through what they stumble over.
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, OverflowError, MemoryError, struct.error,
            zlib.error, Image.DecompressionBombError) as error:
        raise VideoError(f"{path} cannot be read as a picture: {error}") from error
