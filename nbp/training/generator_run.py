"""Everything a generator run needs, built from its config."""

from pathlib import Path

from nbp.data.dataset import VideoDataset
from nbp.data.tokens import TokenDataset
from nbp.generator.conditions import condition_encoder
from nbp.hub.models import model_hash
from nbp.tokenizer.model import Tokenizer
from nbp.training.datamodule import ClipDataModule
from nbp.training.generator_module import GeneratorModule
from nbp.training.pictures import GeneratedSamples, SampleClips
from nbp.training.sampler import Phase
from nbp.training.validation_fvd import ValidationFVD, kinetics_network


def build(run):
    """Module, data and callbacks of a `GeneratorRun`.

    Raises:
        ValueError: tokens of another tokenizer, or a grid, codebook or number of classes unlike the model's.
    """
    tokenizer = Tokenizer.from_pretrained(run.tokenizer)
    if run.tokens is not None:
        train, val = (TokenDataset(f"{run.tokens}/{split}", model_hash(tokenizer)) for split in ("train", "val"))
        grid, num_codes = train.grid, train.num_codes
    else:
        train, val = VideoDataset(run.data, "train", train=True), VideoDataset(run.data, "val", train=False)
        grid = tokenizer.config.latent_grid(run.data.num_frames, run.data.resolution, run.data.resolution)
        num_codes = tokenizer.num_codes
    _check_model(run.model, grid, num_codes, train.classes)
    num_frames = run.data.num_frames if run.data is not None else 0
    phases = [Phase(run.max_steps, run.batch_size, num_frames)]
    data = ClipDataModule(train, val, phases, run.batch_size, run.trainer)
    module = GeneratorModule(run, None if run.tokens is not None else tokenizer,
                             condition_encoder(run.model, run.text_tokenizer))
    return module, data, _callbacks(run, tokenizer)


def _callbacks(run, tokenizer):
    """Pictures of samples, and their distance to the real clips, or to what the tokenizer makes of these."""
    # Models that cannot begin by themselves continue 5 frames, or as many as their first block needs.
    given = 0 if run.model.begin_token else max(2, run.model.block_shape[0])
    clips = SampleClips(tokenizer, given)
    fps = run.data.fps if run.data is not None else None
    callbacks = [GeneratedSamples(Path(run.trainer.out) / "samples", clips, run.trainer.val_samples, fps)]
    if run.trainer.val_fvd_clips:
        callbacks.append(ValidationFVD("val/gfvd", run.trainer.val_fvd_clips, clips.real, clips, kinetics_network()))
    return callbacks


def _check_model(model, grid, num_codes, classes):
    found = {"grid": list(grid), "num_codes": num_codes}
    if model.condition == "label":
        found["num_condition_ids"] = len(classes)
    for name, value in found.items():
        configured = getattr(model, name)
        configured = list(configured) if name == "grid" else configured
        if configured != value:
            raise ValueError(f"model.{name} is {configured}, but the training data has {value}")
