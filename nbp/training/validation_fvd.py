"""Frechet video distance on a small fixed validation set, as a metric of training that can choose the best checkpoint.

Between the same clips at every validation: real against reconstructed (rFVD), or against generated (gFVD). Few clips
bias it upwards, so it compares checkpoints of one run only.
"""

import warnings

import torch
from pytorch_lightning.callbacks import Callback

from nbp.evaluation.metrics import FrechetDistance
from nbp.evaluation.networks import load_network, network_features
from nbp.evaluation.protocols import Protocol

PROTOCOL = Protocol("validation", network="i3d-tf", quantize="round", fit="squash", num_frames=None)


class ValidationFVD(Callback):
    """Logs the distance after every validation.

    Args:
        name: of the metric, "val/rfvd" or "val/gfvd".
        num_clips: validation clips, evenly spaced over the list; at most all of them.
        real: function(module, batch) -> frames uint8 (B, T, H, W, 3).
        fake: function(module, batch, seed) -> frames like those; clip i of a rank has its own seed.
        network: function() -> `FeatureNetwork`, called at the first validation.
        num_features: width of its features.
    """

    def __init__(self, name, num_clips, real, fake, network, num_features=400):
        self.name, self.num_clips, self.real, self.fake = name, num_clips, real, fake
        self.load, self.num_features = network, num_features
        self._network = self._real_state = None

    def on_validation_epoch_end(self, trainer, module):
        if self._network is None:
            self._network = self.load()
            self._network.module.to(module.device)
        metric = FrechetDistance(self.num_features).to(module.device)
        with_real = self._real_state is None
        if not with_real:
            metric.real = self._real_state.clone()
        seed = trainer.global_rank * self.num_clips
        for batch in trainer.datamodule.chosen_clips(self.num_clips):
            trainer.checkpoint_callback.stop_if_asked(trainer, module)
            batch = module.transfer_batch_to_device(batch, module.device, 0)
            if with_real:
                metric.update(self._features(self.real(module, batch)), real=True)
            metric.update(self._features(self.fake(module, batch, seed)), real=False)
            seed += len(batch["label"])
        if with_real:
            self._real_state = metric.real.clone()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that few clips bias it, at every validation
            module.log(self.name, metric.compute().float(), prog_bar=True, rank_zero_only=False)

    def _features(self, frames):
        return network_features(self._network, torch.from_numpy(frames), PROTOCOL)


def kinetics_network():
    """Fetch the Kinetics-400 I3D now, before hours of training; returns the function that loads it on CPU."""
    from nbp.hub.fetch import fetch_i3d

    path = fetch_i3d()
    return lambda: load_network("i3d-tf", path)
