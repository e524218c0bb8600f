"""What a run is: data, losses, optimizer, trainer. Defaults are the paper's where it states them."""

from dataclasses import dataclass, field

from nbp.config.checking import MISSING, Section, check_least, check_one_of
from nbp.config.models import GeneratorConfig, TokenizerConfig

STRATEGIES = ("auto", "ddp", "deepspeed_1", "deepspeed_2", "deepspeed_3", "deepspeed_2_offload", "deepspeed_3_offload")


@dataclass
class DataConfig(Section):
    """A dataset of video files and how clips are cut from it."""

    name: str = MISSING
    root: str = MISSING                # annotation paths are relative to this folder
    train_list: str = MISSING          # `path<TAB>label` per line
    val_list: str = MISSING
    resolution: int | list[int] = MISSING   # pixels: side of a square, or [height, width]; multiples of the stride
    num_frames: int = 17               # 1 + 4k
    fps: float | None = None           # None: the file's own rate
    resize: str = "aspect"             # aspect: short side, then crop | squash: both sides, as the official reader
    flip: bool = False                 # random horizontal flip in training
    reader: str = "pyav"               # pyav | decord
    max_bad_files: int = 0             # unreadable files that are skipped, counted and logged before it is an error

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the clips."""
        height, width = self.resolution if isinstance(self.resolution, list) else 2 * [self.resolution]
        return height, width

    def check(self) -> None:
        sides = self.resolution if isinstance(self.resolution, list) else 2 * [self.resolution]
        if len(sides) != 2 or min(sides) < 1:
            raise ValueError(f"data.resolution must be a number of pixels or [height, width], got {self.resolution}")
        check_least(0, "data.", self, "max_bad_files")
        if self.fps is not None and not 0 < self.fps < 1e6:
            raise ValueError(f"data.fps must be a number above 0, got {self.fps}")


@dataclass
class DiscriminatorConfig(Section):
    """PatchGAN critics; each is a switch."""

    video: bool = True                     # 3D, over clips
    frame: bool = False                    # 2D, over single frames
    width: int = 64                        # channels of the first layer, doubled by each further one up to 8x
    num_layers: int = 3                    # strided layers

    def check(self) -> None:
        check_least(1, "discriminator.", self, "width", "num_layers")
        for channels in (self.width * min(2 ** layer, 8) for layer in range(1, self.num_layers)):
            if channels < 4 or channels % min(32, channels // 4):
                raise ValueError(f"discriminator.width={self.width} makes a layer of {channels} channels, which its "
                                 "norm cannot group; multiples of 16 fit")


@dataclass
class TokenizerLossConfig(Section):
    """Weights of the tokenizer's loss terms; 0 turns a term off."""

    l1: float = 1.0
    l2: float = 0.0
    perceptual: float = 0.1                # LPIPS (VGG) weight of the paper
    perceptual_start_step: int = 0         # short runs save its cost while pictures are still blurs
    perceptual_frames: int = 16            # random frames of a micro-batch that LPIPS sees
    even_use: float = 0.0                  # keeps latents where all levels are used: zero mean, unit variance
    adversarial: float = 0.1               # adversarial weight of the paper
    adversarial_kind: str = "hinge"        # hinge | non_saturating
    adversarial_start_step: int = 0
    adversarial_warmup_steps: int = 0
    feature_matching: float = 0.0
    lecam: float = 0.0                     # arXiv 2104.03310
    gradient_penalty: float = 0.0          # R1 on real clips, arXiv 1801.04406

    def check(self) -> None:
        check_one_of("loss.adversarial_kind", self.adversarial_kind, ("hinge", "non_saturating"))
        check_least(0, "loss.", self, *(name for name in vars(self) if name != "adversarial_kind"))
        check_least(1, "loss.", self, "perceptual_frames")


@dataclass
class CurriculumPhase(Section):
    """A stretch of tokenizer training at one clip length."""

    steps: int = MISSING
    num_frames: int = MISSING
    batch_size: int = MISSING              # clips per device and micro-batch

    def check(self) -> None:
        check_least(1, "curriculum.", self, "steps", "num_frames", "batch_size")


@dataclass
class ImageConfig(Section):
    """Pictures among the clips of a tokenizer run (MAGVIT-v2, arXiv 2310.05737): a causal model sees T = 1."""

    share: float = 0.0                     # of the micro-batches; 0: none
    batch_size: int = 8                    # pictures per device and micro-batch
    root: str | None = None                # folder of pictures; None: random frames of the training videos
    train_list: str | None = None          # annotation list relative to root; None: every picture below it

    def check(self) -> None:
        if not 0 <= self.share < 1:
            raise ValueError(f"images.share must be in [0, 1), got {self.share}; a curriculum phase of num_frames: 1 "
                             "trains on images alone")
        check_least(1, "images.", self, "batch_size")
        if self.train_list is not None and self.root is None:
            raise ValueError(f"images.train_list={self.train_list!r} needs images.root")


@dataclass
class OptimConfig(Section):
    """AdamW, or Muon with AdamW for what it does not take; warm-up and decay to `final_lr_ratio`."""

    lr: float = MISSING
    optimizer: str = "adamw"               # adamw | muon: for kernels and matrices (nbp/training/muon.py), not critics
    muon_lr: float | None = None           # peak rate of Muon's part, about 10 times lr
    muon_momentum: float = 0.95
    discriminator_lr: float | None = None      # None: as lr
    betas: list[float] = MISSING
    weight_decay: float = 0.0              # on a generator's Linear weights, and on what Muon takes
    warmup_steps: int = 0
    schedule: str = MISSING                # linear | cosine | constant
    decay_steps: int | None = None         # only the last steps decay; None: all after the warm-up
    final_lr_ratio: float = 0.0
    gradient_clip: float = 0.0             # global norm; 0: off

    def check(self) -> None:
        check_one_of("optim.schedule", self.schedule, ("linear", "cosine", "constant"))
        check_one_of("optim.optimizer", self.optimizer, ("adamw", "muon"))
        check_least(0, "optim.", self, "lr", "muon_lr", "discriminator_lr", "weight_decay", "warmup_steps",
                    "decay_steps", "final_lr_ratio", "gradient_clip")
        if not 0 <= self.muon_momentum < 1:
            raise ValueError(f"optim.muon_momentum must be in [0, 1), got {self.muon_momentum}")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"optim.betas must be two numbers in [0, 1), got {self.betas}")
        if (self.optimizer == "muon") != (self.muon_lr is not None):
            raise ValueError(f"optim.muon_lr belongs to optim.optimizer=muon, got optim.optimizer={self.optimizer} and "
                             f"optim.muon_lr={self.muon_lr}")


@dataclass
class TrainerConfig(Section):
    """How a run is executed and where it writes."""

    out: str = MISSING                     # run folder
    devices: int = 1                       # processes on this node
    num_nodes: int = 1
    strategy: str = "auto"                 # auto (one device, or DDP) | the others of STRATEGIES
    precision: str = "auto"                # 32-true | bf16-mixed | auto: bf16-mixed where the hardware has it
    compile: bool = False                  # torch.compile of layers and cheap units, in training steps only
    accumulate: int | None = None          # micro-batches per optimizer step; None: as global_batch asks for, or 1
    global_batch: int | None = None        # clips per optimizer step over all devices, in place of accumulate
    num_workers: int = 2
    seed: int = 0
    ema_decay: float = 0.0                 # 0: no moving average
    val_every_steps: int = MISSING
    val_batches: int = 8
    val_samples: int = 4                   # clips of the first batch shown at each validation; 0: none
    val_fvd_clips: int = 0                 # clips of a validation FVD, which then chooses the best checkpoint; 0: off
    checkpoint_every_steps: int = MISSING
    keep_last: int = 2                     # newest checkpoints that are kept, besides the best one
    log_every_steps: int = 10
    resume: str = "auto"                   # auto: newest complete checkpoint in `out` | never | a path
    accept_changes: bool = False           # resume although the configuration has changed; what has is printed
    guard_patience: int = 20               # steps in a row that may look diverged or collapsed; 0: no guard
    max_rollbacks: int = 3                 # times the guard goes back to the last good checkpoint before it gives up
    wandb_project: str | None = None       # wandb besides CSV: offline without a key; None: CSV only

    def check(self) -> None:
        check_one_of("trainer.strategy", self.strategy, STRATEGIES)
        check_one_of("trainer.precision", self.precision, ("auto", "32-true", "bf16-mixed"))
        check_least(1, "trainer.", self, "devices", "num_nodes", "accumulate", "val_every_steps",
                    "checkpoint_every_steps", "keep_last", "log_every_steps")
        check_least(0, "trainer.", self, "num_workers", "val_samples", "val_batches", "seed", "guard_patience",
                    "max_rollbacks")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"trainer.ema_decay must be in [0, 1), got {self.ema_decay}")
        if self.val_fvd_clips < 8 and self.val_fvd_clips != 0:
            raise ValueError(f"trainer.val_fvd_clips must be 0 (off) or at least 8, got {self.val_fvd_clips}")

    def micro_batches(self, batch_size: int) -> int:
        """Micro-batches per optimizer step: `accumulate`, or as many as `global_batch` clips take. ValueError: the
        devices do not divide `global_batch`, or `accumulate` asks for another number."""
        if self.global_batch is None:
            return self.accumulate or 1
        parallel = batch_size * self.devices * self.num_nodes
        if self.global_batch < parallel or self.global_batch % parallel:
            raise ValueError(f"trainer.global_batch={self.global_batch} is no multiple of {parallel} = batch_size "
                             f"{batch_size} x {self.devices} devices x {self.num_nodes} nodes: change batch_size or "
                             "the number of devices")
        count = self.global_batch // parallel
        if self.accumulate not in (None, count):
            raise ValueError(f"trainer.accumulate={self.accumulate}, but trainer.global_batch={self.global_batch} is "
                             f"{count} micro-batches of {parallel} clips: set one of the two, the other to null")
        return count

    def describe_batch(self, batch_size: int) -> str:
        """Batch arithmetic in words."""
        accumulate = self.micro_batches(batch_size)
        return (f"{batch_size * self.devices * self.num_nodes * accumulate} = {batch_size} clips x "
                f"{self.devices} devices x {self.num_nodes} nodes x {accumulate} accumulated")


@dataclass
class TokenizerRun(Section):
    """One tokenizer training run."""

    kind: str = "tokenizer"
    data: DataConfig = field(default_factory=DataConfig)
    model: TokenizerConfig = field(default_factory=TokenizerConfig)
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    loss: TokenizerLossConfig = field(default_factory=TokenizerLossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    curriculum: list[CurriculumPhase] = MISSING
    init_from: str | None = None           # native folder or official file whose weights the run starts from
    inflate_from: str | None = None        # native folder of an image tokenizer that becomes this video tokenizer
    freeze_encoder: bool = False           # train the decoder alone: every video keeps the tokens it has
    images: ImageConfig = field(default_factory=ImageConfig)

    @property
    def accumulate(self) -> int:
        """Micro-batches per optimizer step. Raises as `TrainerConfig.micro_batches`."""
        return self.trainer.micro_batches(self.curriculum[-1].batch_size)

    def check(self) -> None:
        if not self.curriculum:
            raise ValueError("curriculum must have at least one phase, as {steps: 1000, num_frames: 17, batch_size: 8}")
        if self.init_from and self.inflate_from:
            raise ValueError(f"init_from={self.init_from!r} and inflate_from={self.inflate_from!r}: set only one")
        if self.freeze_encoder and (not self.init_from or self.loss.even_use):
            raise ValueError("freeze_encoder=true needs init_from, weights whose tokens are worth keeping, and "
                             "loss.even_use=0, which acts on the encoder only; got "
                             f"init_from={self.init_from!r} and loss.even_use={self.loss.even_use}")
        if self.trainer.global_batch is not None:
            sizes = {phase.batch_size for phase in self.curriculum}
            if len(sizes) > 1:
                raise ValueError("trainer.global_batch needs one batch_size in all phases of the curriculum, got "
                                 f"{sorted(sizes)}")
        if self.trainer.compile and self.model.units == "published":     # PyTorch 2.13: their padding's gradient
            raise ValueError("trainer.compile=true needs model.units full or split, which torch.compile can take")
        self.trainer.micro_batches(self.curriculum[-1].batch_size)
        stride = self.model.downsample[0]
        if self.data.num_frames < 1 or (self.data.num_frames - 1) % stride:
            raise ValueError(f"data.num_frames must be 1 + {stride}k, as the tokenizer takes them, got "
                             f"{self.data.num_frames}")
        for phase in self.curriculum:
            if (phase.num_frames - 1) % stride or phase.num_frames > self.data.num_frames:
                raise ValueError(f"curriculum.num_frames must be 1 + {stride}k and at most "
                                 f"data.num_frames = {self.data.num_frames}, got {phase.num_frames}")
        for axis, side, stride in zip("hw", self.data.size, self.model.downsample[1:]):
            if side % stride:
                raise ValueError(f"data.resolution must be divisible by the tokenizer's stride {stride} in {axis}, got "
                                 f"{self.data.resolution}")


@dataclass
class GeneratorRun(Section):
    """One generator training run, from cached tokens or straight from video."""

    kind: str = "generator"
    model: GeneratorConfig = field(default_factory=GeneratorConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    max_steps: int = MISSING
    batch_size: int = MISSING              # clips per device and micro-batch
    tokenizer: str = MISSING               # native folder or official file
    text_tokenizer: str | None = None      # Hugging Face tokenizer folder, for text conditions
    tokens: str | None = None              # token cache folder; None: tokenize `data` online
    data: DataConfig | None = None
    init_from: str | None = None           # native folder or official file whose weights the run starts from

    @property
    def accumulate(self) -> int:
        """Micro-batches per optimizer step. Raises as `TrainerConfig.micro_batches`."""
        return self.trainer.micro_batches(self.batch_size)

    def check(self) -> None:
        check_least(1, "", self, "max_steps", "batch_size")
        self.trainer.micro_batches(self.batch_size)
        if (self.tokens is None) == (self.data is None):
            raise ValueError("a generator run needs exactly one of tokens (a token cache) and data (videos to "
                             f"tokenize online), got tokens={self.tokens!r} and data={'set' if self.data else None}")
        if self.model.max_seq_len < self.model.seq_len:
            raise ValueError(f"model.max_seq_len must be at least {self.model.seq_len} for a condition and "
                             f"model.grid={self.model.grid}, got {self.model.max_seq_len}")
        if self.data is not None:
            steps = self.model.grid[0] - 1
            accepted = {1 + stride * steps for stride in (4, 2, 8, 1)}     # 4: the published tokenizers' stride
            if self.data.num_frames not in accepted:
                raise ValueError(f"data.num_frames must be 1 + 4k = {1 + 4 * steps} for model.grid={self.model.grid} "
                                 f"(4: the tokenizer's stride in time), got {self.data.num_frames}")


Run = TokenizerRun | GeneratorRun
