"""The networks whose features are compared: the Kinetics-400 I3D with either constant, and StyleGAN-V's TorchScript.

Legend: B clips, T frames, H W pixels, D features.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nbp.evaluation.i3d import PORT_BN_EPS, TF_BN_EPS, load_i3d, read_state
from nbp.evaluation.protocols import Protocol, prepare
from nbp.hub.fetch import I3D, tensors_sha256
from nbp.system.distributed import check_device
from nbp.system.files import sha256

BFLOAT16_ERROR = 0.02  # largest change of a Kinetics-400 logit by bfloat16, as a share of the largest logit
# i3d_torchscript.pt as published by StyleGAN-V.
STYLEGANV_SHA256 = "bec6519f66ea534e953026b4ae2c65553c17bf105611c746d904657e5860a5e2"


@dataclass(frozen=True)
class FeatureNetwork:
    """A network and the hashes of its weight file and of the tensors in it.

    `module` maps float32 video (B,3,T,224,224) in [-1,1], T >= 9, to features (B,D); `protocols.prepare` makes
    that video from frames (B,T,H,W,3), uint8 or float in [0,1], as the protocol prescribes.
    """

    name: str
    module: torch.nn.Module
    weights_sha256: str
    device: str = "cpu"
    tensors_sha256: str = ""  # tells the same weights in another container
    note: str = ""  # for reports: what is unusual about the weights


def load_network(name: str, path: str | Path, device: str | torch.device = "cpu",
                 trust_torchscript: bool = False) -> FeatureNetwork:
    """Load the feature network `Protocol.network` from a weight file: what `nbp.hub.fetch.fetch_i3d` returns,
    `i3d_pretrained_400.pt`, or for i3d-styleganv the user's `i3d_torchscript.pt`. A TorchScript file is a program: one
    of unknown hash is loaded with `trust_torchscript` only. ValueError: that, unknown network, missing file, other
    weights."""
    check_device(device)
    if not Path(path).is_file():
        other = ("; StyleGAN-V's file is not fetched (ckpt/README.md), --protocol tats-2048 takes the public network"
                 if name == "i3d-styleganv" else "")
        raise ValueError(f"weights {path} of network {name} do not exist{other}")
    digest = sha256(path)
    module: torch.nn.Module
    if name in ("i3d-tf", "i3d-port"):
        state = read_state(path)
        module, tensors = load_i3d(path, TF_BN_EPS if name == "i3d-tf" else PORT_BN_EPS), _digest(state)
        note = "" if tensors == I3D.tensors_sha256 else "its tensors are not those of the public Kinetics-400 I3D"
    elif name == "i3d-styleganv":
        if digest != STYLEGANV_SHA256 and not trust_torchscript:
            raise ValueError(f"{path} has sha256 {digest}, not that of StyleGAN-V's file ({STYLEGANV_SHA256}). A "
                             "TorchScript file is a program: pass --trust-torchscript only if you know its origin")
        try:
            script = torch.jit.load(path, map_location="cpu").eval()
        except RuntimeError as error:
            raise ValueError(f"{path} cannot be read as a TorchScript file: {error}") from error
        module, tensors = _TorchScript(script), _digest(script.state_dict())
        note = "" if digest == STYLEGANV_SHA256 else f"its sha256 {digest} is not that of StyleGAN-V's file"
    else:
        raise ValueError(f"unknown network {name!r}; accepted: i3d-tf, i3d-port, i3d-styleganv")
    note = note and f"weights {path}: {note}"
    return FeatureNetwork(name, module.to(device), digest, str(device), tensors, note)


def _digest(state: Mapping[str, Tensor]) -> str:
    return tensors_sha256({name: np.asarray(tensor) for name, tensor in state.items()})


class _TorchScript(torch.nn.Module):
    """StyleGAN-V's detector, called so that it returns logits of what it is given."""

    def __init__(self, script: torch.jit.ScriptModule) -> None:
        super().__init__()
        self.script = script

    def forward(self, video: Tensor) -> Tensor:
        return self.script(video, rescale=False, resize=False, return_features=True)


@torch.inference_mode()
def network_features(network: FeatureNetwork, frames: Tensor | Sequence[Tensor], protocol: Protocol) -> Tensor:
    """Features of one batch: frames (B,T,H,W,3), or several tensors of other heights and widths, uint8 or float in
    [0,1] -> float32 (B,D) on the CPU. ValueError: from `prepare`, or if a feature is NaN or infinite."""
    parts = [frames] if isinstance(frames, Tensor) else frames
    video = torch.cat([prepare(part.to(network.device), protocol) for part in parts])  # (B, 3, T, 224, 224)
    features = run_network(network, video, protocol.precision).float().cpu()
    bad = ~torch.isfinite(features).all(1)
    if bad.any():
        raise ValueError(f"the network returned NaN or infinity for {int(bad.sum())} of {len(bad)} clips")
    return features


def run_network(network: FeatureNetwork, video: Tensor, precision: str) -> Tensor:
    """The bare forward pass: video as `FeatureNetwork` says, precision "float32" or "bfloat16" (autocast), which moves
    logits by up to BFLOAT16_ERROR of the largest one (a slow test measures it). On the CPU clips go through one at a
    time, which is as fast and makes features the same to the last bit in batches of any size; on a GPU that changes
    them by rounding."""
    low = precision == "bfloat16"
    # TF32 convolutions, the default on GPUs, change logits by 1e-3 relative.
    with (torch.autocast(video.device.type, torch.bfloat16, enabled=low),
          torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=False)):
        return torch.cat([network.module(clip) for clip in (video.split(1) if video.is_cpu else [video])])
