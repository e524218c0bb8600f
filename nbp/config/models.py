"""What a model is: architectures of tokenizer and generator, kept in `config.json` beside their weights."""

import math
import warnings
from dataclasses import dataclass, field

from nbp.config.checking import MISSING, Section


@dataclass
class TokenizerConfig(Section):
    """Causal 3D-conv autoencoder with FSQ; stage i has `widths[i]` channels and `num_res_blocks[i]` residual units."""

    widths: list[int] = MISSING
    num_res_blocks: list[int] = MISSING
    strides: list[list[int]] = MISSING     # between stages, (t, h, w) each
    fsq_levels: list[int] = MISSING
    patch: list[int] = field(default_factory=lambda: [1, 1, 1])   # pixels (t, h, w) that the first layer takes as one
    # published: group norm per frame, Swish, 3x3x3 twice | full: layer norm, SiLU, 3x3x3 twice | split: 1x3x3, 3x1x1.
    # Where not published, the strided layers change the width.
    units: str = "published"

    @property
    def num_codes(self) -> int:
        return math.prod(self.fsq_levels)

    @property
    def patched(self) -> bool:
        """Whether patches take the place of full-resolution convolutions (nbp/tokenizer/patches.py)."""
        return math.prod(self.patch) > 1

    @property
    def downsample(self) -> tuple[int, int, int]:
        """Total stride (t, h, w), patches included."""
        t, h, w = (math.prod(axis) for axis in zip(self.patch, *self.strides))
        return t, h, w

    def latent_grid(self, num_frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Latent grid (t, h, w) of a video of this size. ValueError: a size that is no whole number of grid cells."""
        t, h, w = self.downsample
        if num_frames < 1 or (num_frames - 1) % t:
            raise ValueError(f"num_frames must be 1 + {t}k for this tokenizer, got {num_frames}")
        if height % h or width % w:
            raise ValueError(f"height and width must be divisible by {h} and {w} for this tokenizer, got "
                             f"{height}x{width}")
        return (num_frames - 1) // t + 1, height // h, width // w

    def check(self) -> None:
        if not len(self.widths) == len(self.num_res_blocks) == len(self.strides) + 1 > 1:
            raise ValueError(
                "tokenizer config: widths, num_res_blocks and strides must have n > 1, n and n-1 entries, got "
                f"{len(self.widths)}, {len(self.num_res_blocks)} and {len(self.strides)}")
        for stride in self.strides:
            if len(stride) != 3 or any(s not in (1, 2) for s in stride):
                raise ValueError(f"tokenizer config: strides entries are (t, h, w) of 1 or 2, got {list(stride)}")
        # A stage changes the width by its first residual unit: in the encoder from the stage before, in the decoder
        # from the one behind, so the very first stage needs one too.
        changes = [a != b for a, b in zip(self.widths, self.widths[1:])]
        without_unit = any(count == 0 and change for count, change in zip(self.num_res_blocks[1:], changes))
        if self.units == "published" and (without_unit or (changes[0] and not self.num_res_blocks[0])):
            raise ValueError("tokenizer config: a stage that changes the width needs at least one residual unit, got "
                             f"num_res_blocks {list(self.num_res_blocks)} for widths {list(self.widths)}")
        grouped = self.units == "published"
        if any(width < 4 or width % (32 if grouped and width >= 128 else 4) for width in self.widths):
            raise ValueError("tokenizer config: widths must be divisible by 4, from 128 on by 32 (groups of the "
                             f"published units' norms), got {list(self.widths)}")
        if min(self.num_res_blocks) < 0:
            raise ValueError(f"tokenizer config: num_res_blocks must be at least 0, got {list(self.num_res_blocks)}")
        if not self.fsq_levels or any(level < 2 for level in self.fsq_levels):
            raise ValueError("tokenizer config: fsq_levels must be one or more numbers of at least 2, got "
                             f"{list(self.fsq_levels)}")
        if any(level == 2 for level in self.fsq_levels):
            warnings.warn(f"tokenizer config: fsq_levels {list(self.fsq_levels)} has a level of 2, which tends to "
                          "collapse in training; use at least 3", stacklevel=2)
        if len(self.patch) != 3 or any(size not in (1, 2, 4, 8) for size in self.patch):
            raise ValueError(f"tokenizer config: patch is (t, h, w), each 1, 2, 4 or 8, got {list(self.patch)}")
        if self.units not in ("published", "full", "split"):
            raise ValueError(f"tokenizer config: units must be published, full or split, got {self.units!r}")


@dataclass(kw_only=True)
class OfficialQuirks(Section):
    """Layouts and habits of the released generators; all off for new models. See docs/official-checkpoints.md."""

    full_head: bool = False                # predict condition and special ids too, not only video codes
    spare_id: bool = False                 # one id that nothing uses, after the video ids
    clamp_samples: bool = False            # needs full_head: sample any id, clamp to video codes in the output only
    multinomial: bool = False              # draw by torch.multinomial over all ids: the official samples for a seed
    pad_visibility: str = "never"          # who sees pads: never | causal (later tokens) | decoding (cached steps)


@dataclass
class GeneratorConfig(OfficialQuirks):
    """Decoder-only transformer with block-causal attention over [condition | begin | video]."""

    num_layers: int = MISSING
    num_heads: int = MISSING
    width: int = MISSING
    num_codes: int = MISSING               # the tokenizer's codebook size
    grid: list[int] = MISSING              # latent grid (t, h, w) of a clip
    block_shape: list[int] = MISSING       # tokens predicted in one step, as (t, h, w); (1, 1, n): n in raster order
    condition: str = MISSING               # none | label | text
    start: str = MISSING                   # plain: every block at once | hybrid: first block token by token
    begin_token: bool = True               # False: the first block is always given, never predicted (plain start)
    num_condition_ids: int = 0             # classes, or entries of the text vocabulary
    condition_len: int = 0                 # condition tokens in front of the video
    pad_token: int | None = None           # text id that only fills up the condition; see pad_visibility
    max_seq_len: int = 5120
    dropout: float = 0.1
    condition_dropout: float = 0.1         # share of training clips that see the unconditional embedding
    activation_checkpointing: bool = False
    rotary: bool = False                   # rotary positions in (t, h, w) besides the learned ones
    code_levels: list[int] | None = None   # FSQ levels of the tokenizer: codes share what belongs to a level

    @property
    def block_size(self) -> int:
        return math.prod(self.block_shape)

    @property
    def seq_len(self) -> int:
        """Positions that a clip of `grid` takes, condition included."""
        return self.condition_len + math.prod(self.grid) - (0 if self.begin_token else self.block_size)

    def check(self) -> None:
        for name in ("num_layers", "num_heads", "width", "num_codes", "max_seq_len"):
            self._require(getattr(self, name) >= 1, name, "at least 1")
        self._require(self.width % self.num_heads == 0, "width", f"divisible by num_heads={self.num_heads}")
        for name in ("grid", "block_shape"):
            sizes = getattr(self, name)
            self._require(len(sizes) == 3 and min(sizes) >= 1, name, "(t, h, w), each at least 1")
        self._require(self.start in ("plain", "hybrid"), "start", "plain or hybrid")
        self._require(self.pad_visibility in ("never", "causal", "decoding"), "pad_visibility",
                      "never, causal or decoding")
        self._require(not self.rotary or self.width // self.num_heads % 2 == 0, "rotary",
                      f"false for heads of an odd width, {self.width} / {self.num_heads}")
        self._require(self.code_levels is None or math.prod(self.code_levels) == self.num_codes, "code_levels",
                      f"null or the tokenizer's fsq_levels, whose product is num_codes={self.num_codes}")
        for name in ("dropout", "condition_dropout"):
            self._require(0 <= getattr(self, name) < 1, name, "in [0, 1)")
        self._require(self.begin_token or self.start == "plain", "begin_token", "true for a hybrid start")
        self._require(self.full_head or not self.clamp_samples, "clamp_samples", "false without full_head")
        self._check_condition()
        if self.block_shape[0] == self.block_shape[1] == 1:      # raster order: a block may run over a row's end
            fits = math.prod(self.grid) % self.block_size == 0
        else:
            fits = all(size % step == 0 for size, step in zip(self.grid, self.block_shape))
        self._require(fits, "block_shape", f"a divisor of grid {list(self.grid)}")

    def _check_condition(self) -> None:
        self._require(self.condition in ("none", "label", "text"), "condition", "none, label or text")
        if self.condition == "none":
            self._require(self.condition_len == 0, "condition_len", "0 without a condition")
            self._require(self.num_condition_ids == 0, "num_condition_ids", "0 without a condition")
        elif self.condition == "label":
            self._require(self.condition_len == 1, "condition_len", "1 for labels")
        else:
            self._require(self.condition_len >= 1, "condition_len", "at least 1 for text")
        if self.condition != "none":
            self._require(self.num_condition_ids >= 1, "num_condition_ids", "at least 1 with a condition")
        if self.pad_token is not None:
            self._require(self.condition == "text" and 0 <= self.pad_token < self.num_condition_ids, "pad_token",
                          "a text id, or null")
        elif self.condition == "text" and self.pad_visibility == "never":
            raise ValueError("generator config: pad_token is missing: name the text id that fills up short texts and "
                             "is hidden (pad_visibility is never)")

    def _require(self, valid: bool, name: str, accepted: str) -> None:
        if not valid:
            raise ValueError(f"generator config: {name} must be {accepted}, got {getattr(self, name)!r}")
