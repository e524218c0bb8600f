"""Run configuration: dataclass schemas and `load_config`.

Dataclass defaults < YAML files (`base: [...]` merged in order) < dotted command line.
The only importer of omegaconf, and only when a YAML file is read, so that models can be
built without it. Architecture and data fields have no default: a missing one is an error.
"""

import dataclasses
import difflib
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import List, Optional

MISSING = "???"


@dataclass
class DataConfig:
    """A dataset of video files and how clips are cut from it."""

    name: str = MISSING
    root: str = MISSING                # annotation paths are relative to this folder
    train_list: str = MISSING          # `path<TAB>label` per line
    val_list: str = MISSING
    resolution: int = MISSING          # pixels, square, divisible by the tokenizer's spatial stride
    num_frames: int = 17               # 1 + 4k
    fps: Optional[float] = None        # None: the file's own rate
    resize: str = "aspect"             # aspect: short side, then crop | squash: both sides, as the official reader
    flip: bool = False                 # random horizontal flip in training
    reader: str = "pyav"               # pyav | decord
    max_bad_files: int = 0             # unreadable files that are skipped, counted and logged before it is an error


@dataclass
class TokenizerConfig:
    """Causal 3D-conv autoencoder with FSQ; stage i has `widths[i]` channels and `num_res_blocks[i]` residual units."""

    widths: List[int] = MISSING
    num_res_blocks: List[int] = MISSING
    strides: List[List[int]] = MISSING     # between stages, (t, h, w) each
    fsq_levels: List[int] = MISSING

    @property
    def num_codes(self):
        return math.prod(self.fsq_levels)

    @property
    def downsample(self):
        """Total stride (t, h, w)."""
        return tuple(math.prod(axis) for axis in zip(*self.strides))

    def latent_grid(self, num_frames, height, width):
        """Latent grid (t, h, w) of a video of this size."""
        t, h, w = self.downsample
        return (num_frames - 1) // t + 1, height // h, width // w

    def check(self):
        if not len(self.widths) == len(self.num_res_blocks) == len(self.strides) + 1:
            raise ValueError(
                "tokenizer config: widths, num_res_blocks and strides must have n, n and n-1 entries, got "
                f"{len(self.widths)}, {len(self.num_res_blocks)} and {len(self.strides)}")
        for stride in self.strides:
            if len(stride) != 3 or any(s not in (1, 2) for s in stride):
                raise ValueError(f"tokenizer config: strides entries are (t, h, w) of 1 or 2, got {list(stride)}")
        grows = [a != b for a, b in zip(self.widths, self.widths[1:])]
        if any(n == 0 and g for n, g in zip(self.num_res_blocks[1:], grows)) or (grows[0] and not self.num_res_blocks[0]):
            raise ValueError("tokenizer config: a stage that changes the width needs at least one residual unit, got "
                             f"num_res_blocks {list(self.num_res_blocks)} for widths {list(self.widths)}")
        if any(width % 4 for width in self.widths):
            raise ValueError(f"tokenizer config: widths must be divisible by 4, got {list(self.widths)}")
        if any(level < 2 for level in self.fsq_levels):
            raise ValueError(f"tokenizer config: fsq_levels must be at least 2, got {list(self.fsq_levels)}")


@dataclass
class GeneratorConfig:
    """Decoder-only transformer with block-causal attention over [condition | begin | video].

    The last group of fields is about the released checkpoints: their layouts and quirks, off for new models.
    """

    num_layers: int = MISSING
    num_heads: int = MISSING
    width: int = MISSING
    num_codes: int = MISSING               # the tokenizer's codebook size
    grid: List[int] = MISSING              # latent grid (t, h, w) of a clip
    block_shape: List[int] = MISSING       # tokens predicted in one step, as (t, h, w); (1, 1, n): n in raster order
    condition: str = MISSING               # none | label | text
    start: str = MISSING                   # plain: every block at once | hybrid: first block token by token
    begin_token: bool = True               # False: the first block is always given, never predicted (plain start)
    num_condition_ids: int = 0             # classes, or entries of the text vocabulary
    condition_len: int = 0                 # condition tokens in front of the video
    pad_token: Optional[int] = None        # text id that only fills up the condition and is hidden; None: hide nothing
    max_seq_len: int = 5120
    dropout: float = 0.1
    condition_dropout: float = 0.1         # share of training clips that see the unconditional embedding
    activation_checkpointing: bool = False

    full_head: bool = False                # predict condition and special ids too, not only video codes
    spare_id: bool = False                 # one id that nothing uses, after the video ids
    clamp_samples: bool = False            # needs full_head: sample any id, clamp to video codes in the output only
    multinomial: bool = False              # draw by torch.multinomial over all ids: the official samples for a seed
    pad_visibility: str = "never"          # who sees pads: never | causal (later tokens) | decoding (cached steps)

    @property
    def block_size(self):
        return math.prod(self.block_shape)

    def check(self):
        def require(valid, name, accepted):
            if not valid:
                raise ValueError(f"generator config: {name} must be {accepted}, got {getattr(self, name)!r}")

        for name in ("num_layers", "num_heads", "width", "num_codes", "max_seq_len"):
            require(getattr(self, name) >= 1, name, "at least 1")
        require(self.width % self.num_heads == 0, "width", f"divisible by num_heads={self.num_heads}")
        for name in ("grid", "block_shape"):
            require(len(getattr(self, name)) == 3 and min(getattr(self, name)) >= 1, name, "(t, h, w), each at least 1")
        require(self.condition in ("none", "label", "text"), "condition", "none, label or text")
        require(self.start in ("plain", "hybrid"), "start", "plain or hybrid")
        require(self.pad_visibility in ("never", "causal", "decoding"), "pad_visibility", "never, causal or decoding")
        for name in ("dropout", "condition_dropout"):
            require(0 <= getattr(self, name) < 1, name, "in [0, 1)")
        require(self.begin_token or self.start == "plain", "begin_token", "true for a hybrid start")
        require(self.full_head or not self.clamp_samples, "clamp_samples", "false without full_head")
        conditional = self.condition != "none"
        accepted = {"none": "0 without a condition", "label": "1 for labels", "text": "at least 1 for text"}
        require({"none": self.condition_len == 0, "label": self.condition_len == 1,
                 "text": self.condition_len >= 1}[self.condition], "condition_len", accepted[self.condition])
        require((self.num_condition_ids >= 1) == conditional, "num_condition_ids",
                "at least 1 with a condition, 0 without")
        if self.pad_token is not None:
            require(self.condition == "text" and 0 <= self.pad_token < self.num_condition_ids, "pad_token",
                    "a text id, or null")
        wraps = self.block_shape[0] == self.block_shape[1] == 1
        fits = (math.prod(self.grid) % self.block_size == 0 if wraps else
                all(g % b == 0 for g, b in zip(self.grid, self.block_shape)))
        require(fits, "block_shape", f"a divisor of grid {list(self.grid)}")


@dataclass
class DiscriminatorConfig:
    """PatchGAN critics; each is a switch."""

    video: bool = True                     # 3D, over clips
    frame: bool = False                    # 2D, over single frames
    width: int = 64                        # channels of the first layer, doubled by each further one up to 8x
    num_layers: int = 3                    # strided layers


@dataclass
class TokenizerLossConfig:
    """Weights of the tokenizer's loss terms; 0 turns a term off."""

    l1: float = 1.0
    l2: float = 0.0
    perceptual: float = 0.1                # LPIPS (VGG) weight of the paper
    perceptual_start_step: int = 0         # short runs save its cost while pictures are still blurs
    perceptual_frames: int = 16            # random frames of a micro-batch that LPIPS sees
    adversarial: float = 0.1               # adversarial weight of the paper
    adversarial_kind: str = "hinge"        # hinge | non_saturating
    adversarial_start_step: int = 0
    adversarial_warmup_steps: int = 0
    feature_matching: float = 0.0
    lecam: float = 0.0                     # arXiv 2104.03310
    gradient_penalty: float = 0.0          # R1 on real clips, arXiv 1801.04406

    def check(self):
        _one_of("loss.adversarial_kind", self.adversarial_kind, ("hinge", "non_saturating"))


@dataclass
class CurriculumPhase:
    """A stretch of tokenizer training at one clip length."""

    steps: int = MISSING
    num_frames: int = MISSING
    batch_size: int = MISSING              # clips per device and micro-batch


@dataclass
class OptimConfig:
    """AdamW with warm-up and decay to `final_lr_ratio`."""

    lr: float = MISSING
    discriminator_lr: Optional[float] = None   # None: as lr
    betas: List[float] = MISSING
    weight_decay: float = 0.0              # on Linear weights only
    warmup_steps: int = 0
    schedule: str = MISSING                # linear | cosine | constant
    decay_steps: Optional[int] = None      # only the last steps decay; None: all after the warm-up
    final_lr_ratio: float = 0.0
    gradient_clip: float = 0.0             # global norm; 0: off

    def check(self):
        _one_of("optim.schedule", self.schedule, ("linear", "cosine", "constant"))


@dataclass
class TrainerConfig:
    """How a run is executed and where it writes."""

    out: str = MISSING                     # run folder
    devices: int = 1                       # processes on this node
    num_nodes: int = 1
    strategy: str = "auto"                 # auto | ddp | deepspeed_1 | deepspeed_2 | deepspeed_3
    precision: str = "auto"                # auto | 32-true | bf16-mixed; auto: bf16-mixed where the hardware multiplies it
    accumulate: int = 1                    # micro-batches per optimizer step
    num_workers: int = 2
    seed: int = 0
    ema_decay: float = 0.0                 # 0: no moving average
    val_every_steps: int = MISSING
    val_batches: int = 8
    checkpoint_every_steps: int = MISSING
    log_every_steps: int = 10
    resume: str = "auto"                   # auto: newest checkpoint in `out` | never | a path
    wandb_project: Optional[str] = None    # None: CSV only

    def check(self):
        _one_of("trainer.strategy", self.strategy, ("auto", "ddp", "deepspeed_1", "deepspeed_2", "deepspeed_3"))
        _one_of("trainer.precision", self.precision, ("auto", "32-true", "bf16-mixed"))


@dataclass
class TokenizerRun:
    """One tokenizer training run."""

    kind: str = "tokenizer"
    data: DataConfig = field(default_factory=DataConfig)
    model: TokenizerConfig = field(default_factory=TokenizerConfig)
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    loss: TokenizerLossConfig = field(default_factory=TokenizerLossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    curriculum: List[CurriculumPhase] = MISSING

    def check(self):
        for phase in self.curriculum:
            if (phase.num_frames - 1) % self.model.downsample[0] or phase.num_frames > self.data.num_frames:
                raise ValueError(f"curriculum.num_frames must be 1 + {self.model.downsample[0]}k and at most "
                                 f"data.num_frames = {self.data.num_frames}, got {phase.num_frames}")
        _check_resolution(self.data, self.model)


@dataclass
class GeneratorRun:
    """One generator training run, from cached tokens or straight from video."""

    kind: str = "generator"
    model: GeneratorConfig = field(default_factory=GeneratorConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    max_steps: int = MISSING
    batch_size: int = MISSING              # clips per device and micro-batch
    tokenizer: str = MISSING               # native folder or official file
    text_tokenizer: Optional[str] = None   # Hugging Face tokenizer folder, for text conditions
    tokens: Optional[str] = None           # token cache folder; None: tokenize `data` online
    data: Optional[DataConfig] = None

    def check(self):
        if (self.tokens is None) == (self.data is None):
            raise ValueError("a generator run needs exactly one of tokens (a token cache) and data (videos to "
                             f"tokenize online), got tokens={self.tokens!r} and data={'set' if self.data else None}")


def _one_of(name, value, accepted):
    if value not in accepted:
        raise ValueError(f"{name} must be one of {', '.join(accepted)}, got {value!r}")


def _check_resolution(data, model):
    for axis, stride in zip("hw", model.downsample[1:]):
        if data.resolution % stride:
            raise ValueError(f"data.resolution must be divisible by the tokenizer's stride {stride} in {axis}, got "
                             f"{data.resolution}")


# ---- loading


def load_run(path, overrides=()):
    """Load a run file: its `kind` field picks the schema. Raises as `load_config`."""
    kind = _read_yaml(path).get("kind")
    schemas = {"tokenizer": TokenizerRun, "generator": GeneratorRun}
    if kind not in schemas:
        raise ValueError(f"{path}: kind must be tokenizer or generator, got {kind!r}")
    return load_config(schemas[kind], path, overrides)


def load_config(schema, path=None, overrides=(), values=None):
    """Build a `schema` dataclass from a YAML file and dotted overrides.

    Args:
        schema: dataclass type.
        path: YAML file or None; its `base` entries (relative to the file) are merged first, in order.
        overrides: strings `section.field=value`.
        values: nested dict merged between file and overrides.

    Returns:
        An instance of `schema`, with every nested dataclass built.

    Raises:
        ValueError: unknown field (with the nearest known name), wrong type, missing value or unreadable file;
            the message names the field and where it came from.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    merged = OmegaConf.structured(schema)
    layers = [(path, _read_yaml(path))] if path is not None else []
    if values is not None:
        layers.append(("values", OmegaConf.create(values)))
    for item in overrides:
        if "=" not in item:
            raise ValueError(f"override {item!r} is not of the form section.field=value")
        layers.append((f"command line {item!r}", OmegaConf.from_dotlist([item])))
    for source, layer in layers:
        _check_names(schema, OmegaConf.to_container(layer), source)
        try:
            merged = OmegaConf.merge(merged, layer)
        except OmegaConfBaseException as error:
            raise ValueError(f"{source}: {error.full_key}: {_first_line(error)}") from error
    missing = sorted(OmegaConf.missing_keys(merged))
    if missing:
        raise ValueError(f"{path}: no value for {', '.join(missing)}: set it in the file or as NAME=VALUE")
    try:
        config = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise ValueError(f"{path}: {_first_line(error)}") from error
    _check_all(config)
    return config


def to_dict(config):
    """Nested plain dict of a config dataclass."""
    return dataclasses.asdict(config)


def save_config(config, path):
    """Write the resolved config as YAML, atomically."""
    from omegaconf import OmegaConf

    from nbp.files import write_text

    write_text(path, OmegaConf.to_yaml(OmegaConf.create(to_dict(config))))


def _read_yaml(path):
    from omegaconf import OmegaConf

    path = Path(path)
    if not path.is_file():
        raise ValueError(f"config file {path} does not exist")
    try:
        layer = OmegaConf.load(path)
    except Exception as error:
        raise ValueError(f"config file {path} is not valid YAML: {error}") from error
    if not OmegaConf.is_dict(layer):
        raise ValueError(f"config file {path} must hold a mapping of fields")
    bases = layer.pop("base", [])
    return OmegaConf.merge(*[_read_yaml(path.parent / base) for base in bases], layer)


def _check_names(schema, values, source, prefix=""):
    """Reject unknown names with a suggestion; OmegaConf's own message has none."""
    fields = {f.name: f.type for f in dataclasses.fields(schema)}
    for name, value in values.items():
        if name not in fields:
            near = difflib.get_close_matches(str(name), fields, n=1)
            hint = f", did you mean {prefix}{near[0]}?" if near else f"; known: {', '.join(sorted(fields))}"
            raise ValueError(f"{source}: unknown field {prefix}{name}{hint}")
        if dataclasses.is_dataclass(fields[name]) and isinstance(value, dict):
            _check_names(fields[name], value, source, f"{prefix}{name}.")


def _check_all(config):
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if dataclasses.is_dataclass(value):
            _check_all(value)
    if hasattr(config, "check"):
        config.check()


def _first_line(error):
    return str(error).splitlines()[0]
