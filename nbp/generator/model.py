"""The video generator: next-block prediction over tokenizer indices.

`forward`, `loss` and `generate` take and give video codes; ids, offsets and orders are the model's business.
Legend: B batch, (t, h, w) latent grid, L = t*h*w, N block size, C condition tokens, D width, V video codes.
"""

import math
import warnings
from collections import defaultdict

import torch
import torch.nn as nn
import torch.nn.functional as F

from nbp import checkpoint
from nbp.generator.cuda_graph import Recorded, can_record
from nbp.generator.masks import attention_mask
from nbp.generator.sampling import Sampling, decode, row_generators
from nbp.generator.sequence import Layout, check_grid, raster_order, to_grid, to_steps
from nbp.generator.transformer import KVCache, Transformer


class Generator(nn.Module):
    """Decoder-only transformer over [condition | begin | video].

    Args:
        config: `GeneratorConfig`.
    """

    def __init__(self, config):
        super().__init__()
        config.check()
        self.config = config
        self.layout = Layout(config)
        self.token_embedding = nn.Embedding(self.layout.vocab_size, config.width)
        unconditional = torch.empty(config.condition_len, config.width)
        if config.condition_len and config.condition_dropout:
            self.uncond_embedding = nn.Parameter(unconditional)
        else:                     # never trained, so no parameter that waits for a gradient
            self.register_buffer("uncond_embedding", unconditional)
        self.transformer = Transformer(config)
        self.head = nn.Linear(config.width, self.layout.vocab_size if config.full_head else config.num_codes,
                              bias=False)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self):
        """Normal weights of std 0.02, zero biases, unit norms."""
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                module.weight.normal_(std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                module.bias.zero_()
        self.transformer.position_embedding.normal_(std=0.02)
        self.uncond_embedding.normal_(std=0.02)

    def save_pretrained(self, folder):
        """Write `model.safetensors` and `config.json` into `folder`, ready to be uploaded as it is."""
        checkpoint.save_pretrained(self, "generator", folder)

    @classmethod
    def from_pretrained(cls, path, device="cpu"):
        """Build the generator of a folder (or a model hub id) in eval mode on `device`."""
        return checkpoint.load_pretrained(path, "generator", device)

    # ---- training

    def forward(self, indices, condition=None):
        """Predict every token from the blocks before it.

        Args:
            indices: video codes, integer (B, t, h, w), or flat (B, L) in raster order.
            condition: ids, integer (B, C); labels also as (B,). None: the unconditional embedding.

        Returns:
            Logits (B, P, V) in step order (`targets` gives the codes they predict); P = L, or L - N where the
            first block is given. With `full_head` the last axis runs over all ids.

        Raises:
            ValueError: wrong shape, dtype or range of an argument; a clip longer than max_seq_len.
        """
        return self.head(self._hidden(self._steps(indices), condition))

    def targets(self, indices):
        """Codes that `forward` predicts, int64 (B, P), in step order."""
        return self._steps(indices)[:, self.layout.first_predicted:]

    def nll(self, indices, condition=None):
        """Negative log-likelihood in nats of each predicted token, float32 (B, P) in step order."""
        return self.score(indices, condition)[0]

    def score(self, indices, condition=None):
        """Likelihood and rank of the true tokens.

        Returns:
            (nll float32 (B, P), rank int64 (B, P) = number of ids that were thought more likely).
        """
        logits = self(indices, condition).float()
        target = self.targets(indices) + (self.layout.video_offset if self.config.full_head else 0)
        nll = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none").view_as(target)
        with torch.no_grad():
            rank = (logits > logits.gather(-1, target[..., None])).sum(-1)
        return nll, rank

    def loss(self, indices, condition=None):
        """Mean negative log-likelihood of the predicted video tokens, in nats; arguments as for `forward`."""
        logits = self(indices, condition).float()
        target = self.targets(indices) + (self.layout.video_offset if self.config.full_head else 0)
        return F.cross_entropy(logits.flatten(0, 1), target.flatten())

    def _hidden(self, steps, condition):
        """Hidden states (B, P, D) of the stream positions that predict a token of the clip."""
        layout = self.layout
        ids = layout.stream(steps)[:, :layout.num_inputs(steps.shape[1])]
        self._check_seq_len(ids.shape[1])
        prefix, hidden_tokens = self._condition(condition, len(steps))
        x = torch.cat([prefix, self.token_embedding(ids)], dim=1)
        mask = attention_mask(layout, 0, x.shape[1], hidden_tokens, self.config.pad_visibility, x.device)
        return self.transformer(x, mask)[:, layout.condition_len:]

    # ---- sampling

    @torch.no_grad()
    def generate(self, condition=None, prefix=None, grid=None, greedy=False, temperature=1.0, top_k=16000, top_p=0.9,
                 cfg_scale=None, generator=None):
        """Generate clips, block by block, with cached keys and values.

        Args:
            condition: ids, integer (B, C); labels also as (B,). None: the unconditional embedding.
            prefix: video codes that are given, integer (B, t', h, w), or flat (B, n) with n a multiple of N.
            grid: latent grid (t, h, w) of the clip, `config.grid` by default.
            greedy: take the most likely code at every position.
            temperature, top_k, top_p: see `Sampling`.
            cfg_scale: classifier-free guidance, uncond + scale * (cond - uncond); None or 1: none.
            generator: torch.Generator, or a list of one per clip (with neither condition nor prefix, the length of
                the list is the batch size, else 1); see `row_generators`.

        Returns:
            Video codes int64 (B, t, h, w), the prefix included.

        Raises:
            ValueError: nothing to start from; a prefix or grid that is not whole blocks; guidance without a
                condition; wrong shape, dtype or range of an argument.
        """
        grid = tuple(self.config.grid if grid is None else grid)
        total = math.prod(grid)
        check_grid(grid, self.config.block_shape, self.layout)
        if self.config.rotary and grid[1:] != tuple(self.config.grid[1:]):
            raise ValueError(f"grid {grid}: a model with rotary positions keeps the height and width of its "
                             f"{tuple(self.config.grid)}")
        batch = len(condition) if condition is not None else len(generator) if isinstance(generator, list) else 1
        given = self._given(prefix, grid, batch)
        known = given.shape[1]
        sampling = Sampling(greedy, temperature, top_k, top_p, self.config.multinomial)
        generators = None if greedy else row_generators(generator, len(given), keep_single=self.config.multinomial)
        if cfg_scale is not None and not math.isfinite(cfg_scale):
            raise ValueError(f"cfg_scale must be a number, or None for no guidance, got {cfg_scale}")
        guided = cfg_scale is not None and cfg_scale != 1
        if guided and condition is None:
            raise ValueError(f"cfg_scale={cfg_scale} needs a condition to be guided towards")
        if self.config.condition_len and not self.config.condition_dropout and (guided or condition is None):
            what = f"cfg_scale={cfg_scale}" if guided else "generating without a condition"
            warnings.warn(f"{what} uses the unconditional embedding, which this model never trained (its "
                          "condition_dropout is 0): expect worse clips; train with model.condition_dropout=0.1")

        stream = self.layout.stream(F.pad(given, (0, total - known)))
        length = self.layout.num_inputs(total)
        self._check_seq_len(length)
        training = self.training
        self.eval()
        try:
            logits_of = self._decoder(condition, len(given), length, cfg_scale if guided else None)
            offset = 0 if self.config.clamp_samples else self.layout.video_offset
            decode(logits_of, stream, self.layout, known, total, sampling, generators, offset)
        finally:
            self.train(training)
        codes = stream[:, self.layout.video_positions(total, stream.device)] - self.layout.video_offset
        return to_grid(codes.clamp(0, self.config.num_codes - 1), grid, self.config.block_shape)

    def _decoder(self, condition, batch, length, cfg_scale):
        """Cached step function for `decode`: new stream ids -> logits over the ids that may be drawn.

        Steps that are replayed read the whole cache, so that they have fixed shapes; see `can_record`.
        """
        config, layout = self.config, self.layout
        prefix, hidden_tokens = self._condition(condition, batch)
        if cfg_scale is not None:
            prefix = torch.cat([prefix, self._condition(None, batch)[0]])
            if hidden_tokens is not None:
                hidden_tokens = torch.cat([hidden_tokens, torch.zeros_like(hidden_tokens)])
        size = layout.condition_len + length
        cache = KVCache(config.num_layers, size)
        head = self.head.weight
        if config.full_head and not config.clamp_samples:
            head = head[layout.video_offset:layout.video_offset + config.num_codes]

        def embed(ids):
            x = self.token_embedding(ids)
            return x if cfg_scale is None else torch.cat([x, x])

        def logits(hidden):
            result = F.linear(hidden, head).float()
            if cfg_scale is not None:
                guided, free = result.chunk(2)
                result = free + cfg_scale * (guided - free)
            return result

        def step(ids, first, count):
            x, start = embed(ids), first + layout.condition_len
            if first == 0:
                start, x = 0, torch.cat([prefix, x], dim=1)
            mask = attention_mask(layout, start, start + x.shape[1], hidden_tokens, config.pad_visibility, x.device)
            return logits(self.transformer(x, mask, cache, start)[:, -count:])

        if not can_record(prefix):
            return step
        seen = hidden_tokens if config.pad_visibility != "decoding" else None       # as behind the first step
        rows = attention_mask(layout, 0, size, seen, config.pad_visibility, prefix.device)
        recorded = defaultdict(lambda: Recorded(lambda ids, positions: logits(
            self.transformer(embed(ids), rows.index_select(-2, positions), cache, positions))))

        def replayed(ids, first, count):
            if first == 0:
                return step(ids, first, count)
            start = first + layout.condition_len
            positions = torch.arange(start, start + ids.shape[1], device=ids.device)
            return recorded[ids.shape[1]](ids, positions)[:, -count:]

        return replayed

    # ---- arguments

    def _steps(self, indices, name="indices", grid=None):
        """Video codes in any accepted form -> int64 (B, n) in step order."""
        shape, block_shape = tuple(indices.shape), self.config.block_shape
        if indices.is_floating_point() or indices.dtype == torch.bool or indices.ndim not in (2, 4):
            raise ValueError(f"{name} must be integer video codes (B, t, h, w) or (B, L), got {indices.dtype} {shape}")
        _check_range(indices, self.config.num_codes, name)
        if indices.ndim == 2 and not raster_order(block_shape):
            height, width = (grid or self.config.grid)[1:]
            if shape[1] % (height * width):
                raise ValueError(f"{name}: {shape[1]} flat codes are not whole latent frames of {height}x{width}; "
                                 f"blocks of {tuple(block_shape)} need (B, t, h, w)")
            indices = indices.unflatten(1, (-1, height, width))
        if indices.ndim == 4:
            check_grid(indices.shape[1:], block_shape, self.layout, name)
        else:
            self.layout.check_length(shape[1], name)
        return to_steps(indices.long(), block_shape) if indices.ndim == 4 else indices.long()

    def _given(self, prefix, grid, batch):
        """The codes that generation starts from, int64 (B, n) in step order; n is 0 without a prefix."""
        if prefix is None:
            if not self.layout.begin:
                raise ValueError("this model has no begin token: generate needs a prefix of at least "
                                 f"{self.layout.block} codes")
            return torch.empty(batch, 0, dtype=torch.int64, device=self.head.weight.device)
        given = self._steps(prefix, "prefix", grid)
        if prefix.ndim == 4 and tuple(prefix.shape[2:]) != grid[1:]:
            raise ValueError(f"prefix of {tuple(prefix.shape[1:])} does not fit a clip of {grid}")
        if not self.layout.first_predicted <= given.shape[1] <= math.prod(grid):
            raise ValueError(f"prefix: between {self.layout.first_predicted} and {math.prod(grid)} codes are needed "
                             f"for a clip of {grid}, got {given.shape[1]}")
        return given

    def _condition(self, condition, batch):
        """Condition ids or None -> (embeddings (B, C, D), bool (B, C) of hidden pads or None)."""
        config = self.config
        # DeepSpeed in bfloat16 leaves buffers in float32, and this one may be a buffer.
        unconditional = self.uncond_embedding.to(self.token_embedding.weight.dtype).expand(batch, -1, -1)
        if condition is None:
            return unconditional, None
        if config.condition == "none":
            raise ValueError("condition given to a model without one (config.condition is none)")
        if condition.ndim == 1:
            condition = condition[:, None]
        if condition.is_floating_point() or tuple(condition.shape) != (batch, config.condition_len):
            raise ValueError(f"condition must be integer ids ({batch}, {config.condition_len}), got "
                             f"{condition.dtype} {tuple(condition.shape)}")
        _check_range(condition, config.num_condition_ids, "condition")
        embedded = self.token_embedding(condition.long() + self.layout.condition_offset)
        pads = condition == config.pad_token if config.pad_token is not None else None
        if self.training and config.condition_dropout:
            dropped = torch.rand(batch, 1, device=condition.device) < config.condition_dropout
            embedded = torch.where(dropped[..., None], unconditional, embedded)
            pads = pads & ~dropped if pads is not None else None
        return embedded, pads

    def _check_seq_len(self, length):
        if self.config.condition_len + length > self.config.max_seq_len:
            raise ValueError(f"a sequence of {self.config.condition_len + length} positions is longer than "
                             f"max_seq_len={self.config.max_seq_len}")


def _check_range(ids, size, name):
    """Refuse ids outside 0 .. size-1, where that does not wait for the device."""
    if ids.device.type == "cpu" and ids.numel():
        low, high = ids.aminmax()
        if low < 0 or high >= size:
            raise ValueError(f"{name} must lie in 0..{size - 1}, got {int(low)}..{int(high)}")
