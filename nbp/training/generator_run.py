"""Everything a generator run needs, built from its config."""

from nbp.checkpoint import model_hash
from nbp.data.dataset import VideoDataset
from nbp.data.tokens import TokenDataset
from nbp.download import load_magvit2
from nbp.generator.conditions import condition_encoder
from nbp.training.datamodule import ClipDataModule
from nbp.training.generator_module import GeneratorModule
from nbp.training.sampler import Phase


def build(run):
    """Module, data and callbacks of a `GeneratorRun`.

    Raises:
        ValueError: tokens of another tokenizer, or a grid, codebook or number of classes unlike the model's.
    """
    tokenizer = load_magvit2(run.tokenizer, device="cpu")
    if run.tokens is not None:
        train, val = (TokenDataset(f"{run.tokens}/{split}", model_hash(tokenizer)) for split in ("train", "val"))
        grid, num_codes, tokenizer = train.grid, train.num_codes, None
    else:
        train, val = VideoDataset(run.data, "train", train=True), VideoDataset(run.data, "val", train=False)
        grid = tokenizer.config.latent_grid(run.data.num_frames, run.data.resolution, run.data.resolution)
        num_codes = tokenizer.num_codes
    _check_model(run.model, grid, num_codes, train.classes)
    num_frames = run.data.num_frames if run.data is not None else 0
    phases = [Phase(run.max_steps, run.batch_size, num_frames)]
    data = ClipDataModule(train, val, phases, run.batch_size, run.trainer)
    return GeneratorModule(run, tokenizer, condition_encoder(run.model, run.text_tokenizer)), data, []


def _check_model(model, grid, num_codes, classes):
    found = {"grid": list(grid), "num_codes": num_codes}
    if model.condition == "label":
        found["num_condition_ids"] = len(classes)
    for name, value in found.items():
        configured = getattr(model, name)
        configured = list(configured) if name == "grid" else configured
        if configured != value:
            raise ValueError(f"model.{name} is {configured}, but the training data has {value}")
