"""From a data set to a scored clip set of its reconstructions; `nbp.reconstruct` is the command around it.

Legend: N clips, T frames, H W pixels, t h w latent grid.
"""

from pathlib import Path

import numpy as np
import torch

from nbp.data import clip_set
from nbp.data.clips import video_to_frames
from nbp.data.dataset import evaluation_batches
from nbp.evaluation.features import Clips
from nbp.evaluation.paired import paired_scores
from nbp.evaluation.protocols import quantize
from nbp.evaluation.quality import code_statistics, count_codes
from nbp.evaluation.scoring import evaluate_sets
from nbp.evaluation.statement import finite
from nbp.system.files import read_json
from nbp.system.progress import progress


@torch.inference_mode()
def reconstruct_clips(tokenizer, dataset, parts, num_clips, how, batch_size=8, num_workers=0, rank=0, world=1):
    """Encode and decode this rank's clips that `parts` does not hold yet.

    Args:
        tokenizer: `Tokenizer` in eval mode.
        dataset: `VideoDataset` with train=False.
        parts: `clip_set.Parts` to add to: video and real uint8 (N,T,H,W,3), indices int32 (N,t,h,w), label, path.
        num_clips: the first clips of the list.
        how: "floor" or "round", how reconstructions become 8 bit.
    """
    done = parts.done()
    todo = [item for item in range(rank, num_clips, world) if item not in done]
    if not todo:
        return
    device = next(tokenizer.parameters()).device
    batches = evaluation_batches(dataset, batch_size, num_workers, rank, world, todo[0], num_clips)
    total = -(-len(range(todo[0], num_clips, world)) // batch_size)
    for batch in progress(batches, total, "reconstruct", "batches"):
        codes, indices = tokenizer.encode(batch["video"].to(device))
        video = quantize(tokenizer.decode(codes).float().clamp(0, 1).cpu(), how)
        parts.add(batch["item"].tolist(), video=video_to_frames(video), real=video_to_frames(batch["video"]),
                  indices=indices.cpu().numpy().astype(np.int32), label=batch["label"].numpy(),
                  path=np.array(batch["path"], dtype=np.str_))


def split_real(folder):
    """Move the originals of a merged clip set from clips.npz to real.npz (video, label, path)."""
    arrays = clip_set.load(folder)
    if "real" in arrays:
        real = {"video": arrays.pop("real"), "label": arrays["label"], "path": arrays["path"]}
        clip_set.write_arrays(Path(folder) / "real.npz", real)
        clip_set.write_arrays(Path(folder) / "clips.npz", arrays)


def score_folder(folder, num_codes, protocol, network, lpips_model, cache, batch_size=8, device="cpu", **options):
    """Report on a clip set and its real.npz: scores of reconstruction, of code use, and the distances as rfvd, rkvd.

    Args:
        folder: what `split_real` left.
        num_codes: size of the codebook.
        protocol: `Protocol` of the distances.
        network: `FeatureNetwork` of that protocol.
        lpips_model: `LPIPS` with weights.
        cache: folder where features are kept.
        batch_size, device: of all scores.
        options: of `evaluate_sets`: allow_fewer, intervals, rank, world and barrier; each rank extracts its share of
            the features.

    Returns:
        dict that JSON can hold, with the folder's meta.json as `reconstruction`; a score that is not finite is None,
        and a note says so.
    """
    arrays, real = clip_set.load(folder), clip_set.read_arrays(Path(folder) / "real.npz")
    originals = Clips.from_array(f"{folder}/real.npz", real["video"])
    reconstructions = Clips.from_array(f"{folder}/clips.npz", arrays["video"])
    [report] = evaluate_sets(originals, [reconstructions], protocol, network, cache, batch_size=batch_size,
                             **options)
    scores = paired_scores(arrays["video"], real["video"], lpips_model, batch_size, device)
    scores |= code_statistics(count_codes(torch.from_numpy(arrays["indices"]), num_codes))
    scores |= {f"r{name}": value for name, value in report["scores"].items() if name.startswith(("fvd", "kvd"))}
    scores, notes = finite(scores)
    return report | {"scores": scores, "notes": sorted({*report["notes"], *notes}), "lpips_net": lpips_model.net,
                     "reconstruction": read_json(Path(folder) / "meta.json")}
