"""From a data set to a scored clip set of its reconstructions; `nbp.reconstruct` is the command around it.

Legend: N clips, B batch, T H W pixels, t h w latent grid.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from nbp.config import DataConfig, load_config, to_dict
from nbp.data import clip_set
from nbp.data.clips import video_to_frames
from nbp.data.dataset import VideoDataset, evaluation_batches
from nbp.evaluation.features import Clips, Extraction
from nbp.evaluation.fvd import MIN_CLIPS
from nbp.evaluation.lpips import LPIPS
from nbp.evaluation.networks import FeatureNetwork, load_network
from nbp.evaluation.paired import paired_scores
from nbp.evaluation.protocols import Protocol, get_protocol, quantize
from nbp.evaluation.quality import code_statistics, count_codes
from nbp.evaluation.scoring import evaluate_sets, scored_counts, state_pair
from nbp.evaluation.statement import Report, Score, finite, write_scores
from nbp.hub.fetch import fetch_i3d, fetch_lpips
from nbp.hub.models import model_hash
from nbp.reporting.clips import write_sheet
from nbp.system.distributed import barrier, held_by_ranks, rank_and_world
from nbp.system.files import read_json, sha256
from nbp.system.progress import progress
from nbp.tokenizer.model import Tokenizer

NUM_PICTURED = 8  # clips in the contact sheet


def reconstruct(*, tokenizer: str, data: str, overrides: Sequence[str], split: str, out: str | Path, protocol: str,
                max_clips: int | None, allow_fewer: bool, fvd: bool, intervals: bool, lpips: str, weights: str | None,
                ckpt: str, cache: str | Path | None, batch_size: int, num_workers: int, device: str) -> None:
    """Write a clip set of reconstructions, their originals, pictures and scores; the arguments are those of the
    command. ValueError: settings under which a score would say something else than it seems to."""
    rules = get_protocol(protocol)
    if rules.quantize == "none" or rules.network == "i3d-styleganv":
        raise ValueError(f"--protocol {protocol}: reconstructions are kept as 8 bit and scored by the public "
                         "I3D; accepted are protocols with quantize floor or round, as quickstart and nbp-rfvd")
    config = load_config(DataConfig, data, overrides)
    if config.max_bad_files:
        raise ValueError("data.max_bad_files must be 0: a score is stated for the whole list")
    config = dataclasses.replace(config, fps=rules.fps or config.fps)
    dataset = VideoDataset(config, split, train=False, strict=True)
    num_clips = min(max_clips or len(dataset), len(dataset))
    named = rules if config.fps is None else rules.replace(fps=config.fps)     # a config's own rate is part of the name
    rules = as_scored(named, split, config.num_frames, num_clips, len(dataset), allow_fewer)
    model = Tokenizer.from_pretrained(tokenizer, config.resolution, device)
    model.config.latent_grid(config.num_frames, *config.size)  # refuses what it cannot encode
    settings = {"tokenizer_hash": model_hash(model), "data": to_dict(config), "split": split, "num_clips": num_clips,
                "quantize": rules.quantize}
    i3d_path, lpips_path = weights or fetch_i3d(ckpt), fetch_lpips(lpips, ckpt)      # before hours of work
    meta = Path(out) / "meta.json"
    if not meta.is_file() or "annotations_sha256" in read_json(meta):       # sets of before it was recorded go on
        settings |= dataset.digests()
    with held_by_ranks(out):
        parts = clip_set.Parts(out, settings)
        reconstruct_clips(model, dataset, parts, num_clips, rules.quantize, batch_size, num_workers)
        barrier()
        if rank_and_world()[0] == 0:
            parts.merge(num_clips)
            split_real(Path(out))

    network = load_network(rules.network, i3d_path, device)
    how = Extraction(cache or Path(out).parent / "features", batch_size, 0, *rank_and_world(), barrier)
    report = score_folder(out, model.num_codes, rules, network, LPIPS.from_file(lpips_path, lpips), how, allow_fewer,
                          intervals, fvd)
    report["lpips_weights_sha256"] = sha256(lpips_path)
    if how.rank == 0:
        write_scores(out, [report], report)


def as_scored(protocol: Protocol, split: str, num_frames: int, num_clips: int, list_length: int,
              allow_fewer: bool) -> Protocol:
    """The protocol as the reconstructions meet it; its name says what differs: split, places, and with --max-clips the
    counts. ValueError: clips are too short or too few for it."""
    if protocol.num_frames and num_frames < protocol.num_frames:
        raise ValueError(f"data.num_frames is {num_frames}; protocol {protocol.name} needs {protocol.num_frames}")
    if split != ("train" if protocol.real_split == "train" else "val"):
        protocol = protocol.replace(real_split=split)
    protocol = protocol.replace(real_clips="centre", clips_per_video=1)
    if num_clips < list_length:
        protocol = protocol.replace(num_real=num_clips, num_fake=num_clips, repeats=1)
    # So few that they have no distance still have the scores of pairs.
    scored_counts(protocol, num_clips, num_clips, allow_fewer, fewest=min(num_clips, MIN_CLIPS))
    return protocol


@torch.inference_mode()
def reconstruct_clips(tokenizer: Tokenizer, dataset: VideoDataset, parts: clip_set.Parts, num_clips: int, how: str,
                      batch_size: int = 8, num_workers: int = 0) -> None:
    """Encode and decode those of this rank's `num_clips` first clips that `parts` does not hold yet.

    Added are video and real uint8 (N,T,H,W,3), indices int32 (N,t,h,w), label, path. `how`, "floor" or "round", is how
    reconstructions become 8 bit.
    """
    rank, world = rank_and_world()
    done = parts.done()
    todo = [item for item in range(rank, num_clips, world) if item not in done]
    if not todo:
        return
    device = next(tokenizer.parameters()).device
    batches = evaluation_batches(dataset, batch_size, num_workers, rank, world, todo[0], num_clips)
    total = -(-len(range(todo[0], num_clips, world)) // batch_size)
    for batch in progress(batches, total, "reconstruct", "batches"):
        codes, indices = tokenizer.encode(batch["video"].to(device))  # (B, d, t, h, w), (B, t, h, w)
        video = quantize(tokenizer.decode(codes).float().clamp(0, 1).cpu(), how)  # (B, 3, T, H, W)
        parts.add(batch["item"].tolist(), video=video_to_frames(video), real=video_to_frames(batch["video"]),
                  indices=indices.cpu().numpy().astype(np.int32), label=batch["label"].numpy(),
                  path=np.array(batch["path"], dtype=np.str_))


def split_real(folder: Path) -> None:
    """Move the originals of a merged clip set from clips.npz to real.npz (video, label, path), and write sheet.png, the
    first of them each above its reconstruction."""
    arrays = clip_set.load(folder)
    if "real" in arrays:
        originals = {"video": arrays.pop("real"), "label": arrays["label"], "path": arrays["path"]}
        clip_set.write_arrays(folder / "real.npz", originals)
        clip_set.write_arrays(folder / "clips.npz", arrays)
    made, real = clip_set.load(folder)["video"], clip_set.read_arrays(folder / "real.npz")["video"]
    rows = []
    for number in range(min(NUM_PICTURED, len(real))):
        rows += [(f"original {number}", real[number]), (f"reconstruction {number}", made[number])]
    write_sheet(folder / "sheet.png", rows)


def score_folder(folder: str | Path, num_codes: int, protocol: Protocol, network: FeatureNetwork, lpips_model: LPIPS,
                 how: Extraction, allow_fewer: bool = False, intervals: bool = False, fvd: bool = True) -> Report:
    """Report on what `split_real` left: scores of reconstruction, of code use, and the distances as rfvd, rkvd; with
    the folder's meta.json as `reconstruction`. Each rank takes its share, on the network's device.

    Distances are left out with a note without `fvd` or where the clips are too few for them; a score that is not
    finite is None.
    """
    arrays, real = clip_set.load(folder), clip_set.read_arrays(Path(folder) / "real.npz")
    originals = Clips.from_array(f"{folder}/real.npz", real["video"], paths=real.get("path"))
    reconstructions = Clips.from_array(f"{folder}/clips.npz", arrays["video"], paths=arrays.get("path"))
    if (num_clips := len(originals)) < MIN_CLIPS or not fvd:
        report = state_pair(originals, num_clips, reconstructions, num_clips, protocol, network)
        report["notes"] = ["rfvd is left out: " + ("--no-fvd" if not fvd else "a Frechet distance needs at least "
                                                   f"{MIN_CLIPS} clips, these are {num_clips}")]
    else:
        [report] = evaluate_sets(originals, [reconstructions], protocol, network, how, allow_fewer, intervals)
    measured: dict[str, Score] = {**paired_scores(arrays["video"], real["video"], lpips_model, how.batch_size,
                                                  network.device)}
    measured |= code_statistics(count_codes(torch.from_numpy(arrays["indices"]), num_codes))
    measured |= {f"r{name}": value for name, value in report["scores"].items() if name.startswith(("fvd", "kvd"))}
    scores, notes = finite(measured)
    report |= {"scores": scores, "notes": sorted({*report["notes"], *notes}), "lpips_net": lpips_model.net,
               "reconstruction": read_json(Path(folder) / "meta.json")}
    return report
