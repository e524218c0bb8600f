"""Small data sets in the shape of UCF-101 and K600: official names, folders, codecs and sizes, synthetic motion."""

from pathlib import Path

import av
import numpy as np

UCF_CLASSES = ("ApplyEyeMakeup", "Archery", "Biking", "YoYo")


def ucf101(root):
    """`root`/<Class>/v_<Class>_gGG_c01.avi, xvid 320x240 at 25 frames/s, with the official lists of split 1 inside.

    Four classes, groups 1 and 2 for testing, 8 to 10 for training: 8 + 12 videos.
    """
    train, test = [], []
    for number, label in enumerate(UCF_CLASSES):
        for group in (1, 2, 8, 9, 10):
            clip = f"{label}/v_{label}_g{group:02d}_c01.avi"
            write(root / clip, moving(100 * number + group, 60, 240, 320), "mpeg4", 25)
            (test if group < 8 else train).append(f"{clip} {number + 1}" if group >= 8 else clip)
    lists = root / "ucfTrainTestlist"
    lists.mkdir()
    (lists / "classInd.txt").write_text("".join(f"{n} {label}\r\n" for n, label in enumerate(UCF_CLASSES, 1)))
    (lists / "trainlist01.txt").write_text("\r\n".join(train) + "\r\n")
    (lists / "testlist01.txt").write_text("\r\n".join(test) + "\r\n")


def k600(root):
    """`root`/{train,val}/<class>/<id>_<start>_<end>.mp4, h264 at 30 frames/s: 2 classes, 8 + 8 videos."""
    for split, count in (("train", 4), ("val", 4)):
        for number, label in enumerate(("abseiling", "playing piano")):
            for clip in range(count):
                name = f"{split[0]}{number}{clip}AbCdEfGh_{clip:06d}_{clip + 10:06d}.mp4"
                frames = moving(1000 * number + 10 * clip + (split == "val"), 66, 120, 160)
                write(root / split / label / name, frames, "libx264", 30)


def moving(seed, count, height, width):
    """uint8 (count, height, width, 3): a disc that moves over a smooth ground."""
    random = np.random.default_rng(seed)
    ground = random.integers(0, 256, (height // 40, width // 40, 3), dtype=np.uint8).repeat(40, 0).repeat(40, 1)
    colour, place, speed = random.integers(0, 256, 3), random.random(2), random.uniform(-0.02, 0.02, 2)
    y, x = np.mgrid[:height, :width]
    frames = np.empty((count, height, width, 3), np.uint8)
    for t, frame in enumerate(frames):
        cy, cx = (place + speed * t) % 1 * (height, width)
        frame[:] = ground
        frame[(y - cy) ** 2 + (x - cx) ** 2 < (height / 5) ** 2] = colour
    return frames


def write(path, frames, codec, fps):
    """Write frames; mpeg4 as Xvid does, with its tag, B-frames and long groups of pictures."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps, options={"bf": "2", "g": "30"} if codec == "mpeg4" else {})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt, stream.thread_count = "yuv420p", 1
        if codec == "mpeg4":
            stream.codec_context.codec_tag = "XVID"
        for image in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
