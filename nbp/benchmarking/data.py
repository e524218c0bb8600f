"""Training clips from mp4 files through a loader, against the bare reader of the same frames."""

import tempfile
from pathlib import Path

from torch.utils.data import DataLoader

from nbp.benchmarking.evaluation import made_up
from nbp.benchmarking.machine import in_turns, line, measure_machine, report
from nbp.config import DataConfig
from nbp.data.dataset import VideoDataset
from nbp.data.video_io import read_frames
from nbp.training.data import collate_bytes

NUM_FRAMES = 17


def benchmark_data(*, out: str | None, repeats: int, device: str, size: str, num_workers: int) -> None:
    """Print seconds of both and clips per second; the arguments are the command's."""
    count, pixels = (4, 32) if size == "smoke" else (48, 128)
    with tempfile.TemporaryDirectory() as folder:
        made_up(folder, count, pixels)
        names = [f"{number:04d}.mp4" for number in range(count)]
        for split in ("train", "val"):
            Path(folder, f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
        data = DataConfig("made up", folder, "train.txt", "val.txt", pixels, NUM_FRAMES)
        loader = DataLoader(VideoDataset(data, "train", train=True, as_bytes=True), 8,
                            num_workers=num_workers, collate_fn=collate_bytes)

        def bare() -> None:
            for name in names:
                read_frames(Path(folder, name), range(NUM_FRAMES))

        best = in_turns({"bare": bare, "loader": lambda: [None for _ in loader]}, repeats + 1)
    report(measure_machine(device), [line(
        f"{count} clips of {NUM_FRAMES}x{pixels}x{pixels} from mp4, {num_workers} workers", best["loader"],
        "the bare reader", best["bare"], clips_per_s=count / best["loader"])], out)
