"""Small synthetic videos."""

import numpy as np


def moving_square(seed, count=20, size=32):
    """uint8 (count, size, size, 3): a coloured square that moves over a coloured ground."""
    random = np.random.default_rng(seed)
    frames = np.tile(random.integers(0, 256, 3, dtype=np.uint8), (count, size, size, 1))
    colour, place, speed = random.integers(0, 256, 3), random.integers(0, 16, 2), random.integers(-1, 2, 2)
    for t in range(count):
        y, x = (place + speed * t) % (size - 8)
        frames[t, y:y + 8, x:x + 8] = colour
    return frames
