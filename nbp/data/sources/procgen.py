"""Procgen: 64x64 clips of twelve games, rendered from levels that training and validation do not share.

maze, heist, chaser and miner are left out: almost nothing moves in them under random actions.
Rule for a clip: random actions, each held for 4 to 8 steps; 24 consecutive frames without an episode start;
frames 4 and 16 differ by at least 4 grey levels on average; at most one clip from a level. Every other
window is thrown away and more levels are played until each game has its share.
Source: procgen 0.10 (Cobbe et al. 2020, arXiv 1912.01588), "easy" distribution: larger objects than "hard".
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nbp.data.annotations import Row, write_lists
from nbp.data.video_io import write_video
from nbp.system.files import read_json, write_json
from nbp.system.progress import progress

if TYPE_CHECKING:
    from procgen import ProcgenGym3Env

GAMES = ("bigfish", "bossfight", "caveflyer", "climber", "coinrun", "dodgeball",
         "fruitbot", "jumper", "leaper", "ninja", "plunder", "starpilot")
INSTALL = "pip install --no-deps procgen2==0.10.7 gym3==0.3.3 gym==0.26.2 cffi pycparser imageio filelock"
FPS = 15
NUM_FRAMES = 24
MIN_MOTION = 4.0
LEVELS = {"train": (0, 1_000_000), "val": (1_000_000, 1_000_000)}  # first level, number of levels

_ACTIONS = (0, 1, 2, 3, 5, 6, 7, 8, 9)  # the eight directions and fire
_HOLD = (4, 8)
_STEPS = 160
_WINDOW_STRIDE = 8
_MAX_ROUNDS = 200


def motion(frames: np.ndarray) -> np.ndarray:
    """Mean absolute difference of frames 4 and 16, in grey levels (0 to 255).

    Args:
        frames: uint8 (..., T, H, W, 3) with T >= 17.
    """
    return np.abs(frames[..., 16, :, :, :].astype(np.int16) - frames[..., 4, :, :, :]).mean((-3, -2, -1))


def prepare(root: str | Path, num_train: int, num_val: int, seed: int = 0,
            num_threads: int = 2) -> dict[str, dict[str, float]]:
    """Render `<root>/<split>/<game>/<level>.mp4` and write the annotation lists.

    A second call with the same arguments finds the lists and renders nothing.

    Returns:
        {"train": {game: mean motion}, "val": {...}}, also kept in `<root>/procgen.json`.

    Raises:
        ValueError: fewer clips than games.
        ModuleNotFoundError: the simulator is not installed; the message holds the command.
    """
    root = Path(root)
    if min(num_train, num_val) < len(GAMES):
        raise ValueError(f"procgen needs at least one clip for each of the {len(GAMES)} games, "
                         f"got {num_train} training and {num_val} validation clips")
    settings = {"num_train": num_train, "num_val": num_val, "seed": seed, "num_frames": NUM_FRAMES, "fps": FPS,
                "min_motion": MIN_MOTION, "levels": {split: list(levels) for split, levels in LEVELS.items()}}
    record = root / "procgen.json"
    if record.is_file() and (root / "train.txt").is_file():
        done = read_json(record)
        if done["settings"] == settings:
            return done["motion"]
    rows: dict[str, list[Row]] = {}
    motions: dict[str, dict[str, float]] = {}
    for split, total in (("train", num_train), ("val", num_val)):
        clips = _encode(root, split, total, seed, num_threads)
        shown = list(progress(clips, total, f"procgen {split}", unit="clips"))
        rows[split] = sorted((clip, game) for clip, game, _ in shown)
        motions[split] = {game: float(np.mean([value for _, name, value in shown if name == game])) for game in GAMES}
    write_lists(root, rows["train"], rows["val"])
    write_json(record, {"settings": settings, "motion": motions})
    return motions


def _encode(root: Path, split: str, total: int, seed: int, num_threads: int) -> Iterator[tuple[str, str, float]]:
    """Yield (relative path, game, motion) of every clip once it is on disk."""
    with ThreadPoolExecutor(num_threads) as pool:
        for number, game in enumerate(GAMES):
            share = total // len(GAMES) + (number < total % len(GAMES))
            written = []
            for level, frames in render(game, split, share, seed):
                clip = f"{split}/{game}/{level:07d}.mp4"
                # crf 6 with full colour resolution: 46 dB against the simulator's pictures, 51 kB a clip.
                written.append((clip, game, float(motion(frames)), pool.submit(
                    write_video, root / clip, frames, FPS, crf=6, pixel_format="yuv444p", preset="superfast")))
            for clip, name, value, job in written:
                job.result()
                yield clip, name, value


def render(game: str, split: str, num_clips: int, seed: int = 0) -> Iterator[tuple[int, np.ndarray]]:
    """Play `game` until `num_clips` clips pass the module's rule; the same arguments give the same clips.

    Yields:
        (level, uint8 frames (24, 64, 64, 3)).

    Raises:
        RuntimeError: the rule rejects nearly everything, so that the number is out of reach.
    """
    seen: set[int] = set()
    for round_number in range(_MAX_ROUNDS):
        rng = np.random.default_rng([seed, sorted(LEVELS).index(split), GAMES.index(game), round_number])
        frames, levels, starts = _play(game, split, min(64, max(16, 2 * num_clips)), rng)
        for env in range(len(frames)):
            window = _pick_window(frames[env], starts[env], rng)
            if window is None or levels[env, window] in seen:
                continue
            seen.add(levels[env, window])
            yield int(levels[env, window]), frames[env, window:window + NUM_FRAMES]
            if len(seen) == num_clips:
                return
    raise RuntimeError(f"procgen {game}: only {len(seen)} of {num_clips} clips move enough "
                       f"(motion >= {MIN_MOTION}) after {_MAX_ROUNDS} rounds")


def _pick_window(frames: np.ndarray, starts: np.ndarray, rng: np.random.Generator) -> int | None:
    """A random first frame among the windows that pass the rule; None if there is none."""
    windows = [first for first in range(0, len(frames) - NUM_FRAMES + 1, _WINDOW_STRIDE)
               if not starts[first + 1:first + NUM_FRAMES].any()
               and motion(frames[first:first + NUM_FRAMES]) >= MIN_MOTION]
    return int(rng.choice(windows)) if windows else None


def _play(game: str, split: str, num_envs: int,
          rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Run `num_envs` simulators for 160 steps.

    Returns:
        frames uint8 (envs, steps, 64, 64, 3), level of each step int64 (envs, steps), and bool (envs, steps)
        that is true where an episode starts.
    """
    start_level, num_levels = LEVELS[split]
    env = _simulator()(num=num_envs, env_name=game, start_level=start_level, num_levels=num_levels,
                       rand_seed=int(rng.integers(2 ** 31)), distribution_mode="easy", num_threads=0)
    frames = np.empty((num_envs, _STEPS, 64, 64, 3), np.uint8)
    levels = np.empty((num_envs, _STEPS), np.int64)
    starts = np.empty((num_envs, _STEPS), bool)
    action, left, level = (np.zeros(num_envs, kind) for kind in (np.int32, int, int))
    for step in range(_STEPS):
        _, observation, first = env.observe()
        if first.any():
            level = np.array([info["level_seed"] for info in env.get_info()])
        frames[:, step], levels[:, step], starts[:, step] = observation["rgb"], level, first
        change = (left <= 0) | first
        action[change] = rng.choice(_ACTIONS, change.sum())
        left[change] = rng.integers(_HOLD[0], _HOLD[1] + 1, change.sum())
        left -= 1
        env.act(action)
    env.close()
    return frames, levels, starts


def _simulator() -> type["ProcgenGym3Env"]:
    try:
        from procgen import ProcgenGym3Env
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"the Procgen simulator is not installed ({error}); run: {INSTALL}") from error
    return ProcgenGym3Env
