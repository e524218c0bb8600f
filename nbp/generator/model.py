"""The video generator: next-block prediction over tokenizer indices.

`forward`, `loss` and `generate` take and give video codes; ids, offsets and orders are the model's business.
Legend: B batch, (t, h, w) latent grid, L = t*h*w, N block size, C condition tokens, D width, V video codes.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import cast

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from nbp.config import GeneratorConfig
from nbp.generator.arguments import Prefix, condition_ids, given_codes, guidance, to_step_order
from nbp.generator.decoding import CachedDecoder, Draft
from nbp.generator.head import Head
from nbp.generator.int8 import Int8Linear, round_linears
from nbp.generator.levels import share_levels
from nbp.generator.masks import attention_mask, span_masks
from nbp.generator.packed import PackedHead, can_pack, pack_layers
from nbp.generator.sampling import Sampling, row_generators
from nbp.generator.sequence import Layout, check_grid
from nbp.generator.speculation import SpeculativeDraft
from nbp.generator.transformer import Transformer
from nbp.hub import models


class Generator(nn.Module):
    """Decoder-only transformer over [condition | begin | video].

    Args:
        config: `GeneratorConfig`.
    """

    uncond_embedding: Tensor

    def __init__(self, config: GeneratorConfig) -> None:
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
        self.head = Head(config.width, self.layout.vocab_size if config.full_head else config.num_codes)
        self._packed_head: PackedHead | Int8Linear | None = None
        self.reset_parameters()
        if config.code_levels is not None:
            share_levels(self.token_embedding, config.code_levels, self.layout.video_offset)
            share_levels(self.head, config.code_levels, self.layout.video_offset if config.full_head else 0)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Normal weights of std 0.02, zero biases, unit norms."""
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                module.weight.normal_(std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                module.bias.zero_()
        self.transformer.position_embedding.normal_(std=0.02)
        self.uncond_embedding.normal_(std=0.02)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `model.safetensors` and `config.json` into `folder`, ready to be uploaded as it is."""
        plain = self.without_code_levels()
        models.save_model(folder, "generator", plain.config, plain.state_dict())

    def without_code_levels(self) -> "Generator":
        """This model, or an equal one whose weights are no longer sums (`nbp.generator.levels`)."""
        if self.config.code_levels is None:
            return self
        state = {name: tensor for name, tensor in self.state_dict().items() if ".parametrizations." not in name}
        plain = Generator(replace(self.config, code_levels=None))
        plain.load_state_dict(state | {"token_embedding.weight": self.token_embedding.weight,
                                       "head.weight": self.head.weight})
        return plain.eval()

    def with_code_levels(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Tensors of an equal model without `code_levels` -> those of this one: each row is its own part only."""
        if self.config.code_levels is None:
            return state
        tables = ("token_embedding", "head")
        own = {f"{table}.parametrizations.weight.original": state[f"{table}.weight"] for table in tables}
        parts = {name: torch.zeros_like(part) for name, part in self.state_dict().items() if name.endswith(".parts")}
        return {name: tensor for name, tensor in state.items()
                if name not in [f"{table}.weight" for table in tables]} | own | parts

    @classmethod
    def from_pretrained(cls, path: str | Path, device: str | torch.device = "cpu",
                        config: GeneratorConfig | None = None) -> "Generator":
        """Build the generator of a native folder, an official file or a model hub id, in eval mode on `device`.

        Args:
            path: folder, file or id.
            device: where its tensors go.
            config: for an official file without hyper-parameters whose shapes are not released ones.

        Raises:
            ValueError: no generator there, or its tensors do not fit its config.
        """
        _, found, state = models.open_model(path, "generator", config)
        return models.build(lambda: cls(cast(GeneratorConfig, found)), state, path, device)

    def forward(self, indices: Tensor, condition: Tensor | None = None) -> Tensor:
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
        return self.head(self._hidden(indices, condition))

    def targets(self, indices: Tensor) -> Tensor:
        """Codes that `forward` predicts, int64 (B, P), in step order."""
        return to_step_order(indices, self.config, self.layout)[:, self.layout.first_predicted:]

    def nll(self, indices: Tensor, condition: Tensor | None = None) -> Tensor:
        """Negative log-likelihood in nats of each predicted token, float32 (B, P) in step order."""
        return self.score(indices, condition)[0]

    def score(self, indices: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Likelihood and rank of the true tokens.

        Returns:
            (nll float32 (B, P), rank int64 (B, P) = number of ids that were thought more likely).
        """
        hidden, target = self._hidden(indices, condition), self._target_ids(indices)
        parts, rows = [], max(1, self.head.positions_at_a_time(target.numel()) // len(target))
        for states, ids in zip(hidden.split(rows, 1), target.split(rows, 1)):
            logits = self.head(states).float()                          # (B, rows, V)
            nll = F.cross_entropy(logits.flatten(0, 1), ids.flatten(), reduction="none").view_as(ids)
            with torch.no_grad():
                parts.append((nll, (logits > logits.gather(-1, ids[..., None])).sum(-1)))
        return torch.cat([nll for nll, _ in parts], 1), torch.cat([rank for _, rank in parts], 1)

    def loss(self, indices: Tensor, condition: Tensor | None = None) -> Tensor:
        """Mean negative log-likelihood of the predicted video tokens, in nats; arguments as for `forward`."""
        return self.head(self._hidden(indices, condition, spans=True), self._target_ids(indices))

    def _target_ids(self, indices: Tensor) -> Tensor:
        """Where on the last axis of the logits the codes to predict are, int64 (B, P)."""
        return self.targets(indices) + (self.layout.video_offset if self.config.full_head else 0)

    def _hidden(self, indices: Tensor, condition: Tensor | None, spans: bool = False) -> Tensor:
        """Hidden states (B, P, D) of the stream positions that predict a token of the clip."""
        layout, steps = self.layout, to_step_order(indices, self.config, self.layout)
        self._check_seq_len(length := layout.num_inputs(steps.shape[1]))
        ids = layout.stream(steps)[:, :length]
        x, pads = self._condition(condition, len(steps), ids)                     # (B, C + P, D)
        about = (x.shape[1], pads, self.config.pad_visibility, x.device)
        mask = span_masks(layout, *about) if spans else attention_mask(layout, 0, *about)
        return self.transformer(x, mask)[:, layout.condition_len:]

    @torch.no_grad()
    def generate(self, condition: Tensor | None = None, prefix: Tensor | None = None,
                 grid: Sequence[int] | None = None, greedy: bool = False, temperature: float = 1.0,
                 top_k: int | None = 16000, top_p: float | None = 0.9, cfg_scale: float | None = None,
                 generator: torch.Generator | list[torch.Generator] | None = None,
                 lookahead: int | None = None) -> Tensor:
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
            lookahead: steps that are drawn in one pass, which gives the same clips; None: see `Sampling`.

        Returns:
            Video codes int64 (B, t, h, w), the prefix included.

        Raises:
            ValueError: nothing to start from; a prefix or grid that is not whole blocks; guidance without a
                condition; wrong shape, dtype or range of an argument; a lookahead that `Sampling` refuses.
        """
        training = self.training
        self.eval()
        try:
            draft = self.begin(condition, prefix, grid, greedy, temperature, top_k, top_p, cfg_scale, generator,
                               lookahead)
            while draft.step():
                pass
        finally:
            self.train(training)
        return draft.checked_codes()

    @torch.inference_mode(False)
    @torch.no_grad()
    def begin(self, condition: Tensor | None = None, prefix: Tensor | None = None, grid: Sequence[int] | None = None,
              greedy: bool = False, temperature: float = 1.0, top_k: int | None = 16000, top_p: float | None = 0.9,
              cfg_scale: float | None = None,
              generator: torch.Generator | list[torch.Generator] | None = None,
              lookahead: int | None = None) -> Draft:
        """Clips before their first step; arguments and errors as for `generate`. The model must be in eval mode."""
        config, layout = self.config, self.layout
        sampling = Sampling(greedy, temperature, top_k, top_p, config.multinomial, lookahead,
                            isinstance(self._packed_head, Int8Linear))
        cfg_scale = guidance(cfg_scale, config, condition is not None)
        grid = tuple(config.grid if grid is None else grid)
        total = math.prod(grid)
        check_grid(grid, config.block_shape, layout)
        if config.rotary and grid[1:] != tuple(config.grid[1:]):
            raise ValueError(f"grid {grid}: a model with rotary positions keeps the height and width of its "
                             f"{tuple(config.grid)}")
        batch = len(condition) if condition is not None else len(generator) if isinstance(generator, list) else 1
        given = self._given(prefix, grid, batch)                                  # (B, n)
        generators = [] if greedy else row_generators(generator, len(given), config.multinomial, given.device)
        self._check_seq_len(length := layout.num_inputs(total))
        stream = layout.stream(F.pad(given, (0, total - given.shape[1])))         # (B, positions)
        decoder = self._decoder(condition, len(given), length, cfg_scale)
        packed = lookahead is None and isinstance(self._packed_head, PackedHead)   # whose rows do not depend on others
        make = SpeculativeDraft if sampling.guesses or packed else Draft
        return make(decoder, config, layout, grid, stream, given.shape[1], sampling, generators)

    def pack(self, int8: bool = False) -> None:
        """Compute steps as `nbp.generator.packed` does, small ones up to five times as fast; then it only samples.
        Nothing changes where `can_pack` is False or it is packed already. Sums in another order: official samples stay
        the same but where two ids tie to a millionth. `int8`: weights in 8 bits (ValueError: not here)."""
        if self._packed_head is not None:
            return
        if int8:
            self._packed_head = Int8Linear(self._drawn_head(), None)
            round_linears(self.transformer)
        elif can_pack(self.head.weight, self.config.width):
            self._packed_head = PackedHead(self._drawn_head())
            pack_layers(self.transformer)

    def _decoder(self, condition: Tensor | None, batch: int, length: int, cfg_scale: float | None) -> CachedDecoder:
        config, layout = self.config, self.layout
        prefix = self._condition(condition, batch)
        if cfg_scale is not None:
            pads = prefix.pads if prefix.pads is None else torch.cat([prefix.pads, torch.zeros_like(prefix.pads)])
            prefix = Prefix(torch.cat([prefix.embeddings, self._condition(None, batch).embeddings]), pads)
        head = self._packed_head or partial(F.linear, weight=self._drawn_head())
        embedding: Callable[[Tensor], Tensor] = self.token_embedding     # called as a module: ZeRO-3 gathers its weight
        if config.code_levels is not None:
            embedding = partial(F.embedding, weight=self.token_embedding.weight)      # the sum once, not at each step
        return CachedDecoder(self.transformer, embedding, head, layout, prefix, length,
                             config.pad_visibility, cfg_scale)

    def _drawn_head(self) -> Tensor:
        """Weights of the ids that may be drawn, (V, D)."""
        config, start = self.config, self.layout.video_offset
        if config.full_head and not config.clamp_samples:
            return self.head.weight[start:start + config.num_codes]
        return self.head.weight

    def _given(self, prefix: Tensor | None, grid: tuple[int, ...], batch: int) -> Tensor:
        """The codes that generation starts from, int64 (B, n) in step order; n is 0 without a prefix."""
        if prefix is not None:
            return given_codes(prefix, self.config, self.layout, grid)
        if not self.layout.begin:
            raise ValueError("this model has no begin token: generate needs a prefix of at least "
                             f"{self.layout.block} codes")
        return torch.empty(batch, 0, dtype=torch.int64, device=self.head.weight.device)

    def _condition(self, condition: Tensor | None, batch: int, ids: Tensor | None = None) -> Prefix:
        """Embed condition ids, or the unconditional embedding; in training some clips see the latter anyway. Stream ids
        (B, n) behind are looked up in the same call, since each call's gradient is as large as the table."""
        config = self.config
        # DeepSpeed in bfloat16 leaves buffers in float32, and this one may be a buffer.
        unconditional = self.uncond_embedding.to(self.token_embedding.weight.dtype).expand(batch, -1, -1)
        stream = [] if ids is None else [ids]
        if condition is None:
            return Prefix(torch.cat([unconditional, *map(self.token_embedding, stream)], 1), None)
        condition = condition_ids(condition, config, batch)                       # (B, C)
        looked_up = self.token_embedding(torch.cat([condition + self.layout.condition_offset, *stream], 1))
        embedded, behind = looked_up.tensor_split([condition.shape[1]], 1)        # (B, C, D), (B, n, D)
        pads = condition == config.pad_token if config.pad_token is not None else None
        if self.training and config.condition_dropout:
            dropped = torch.rand(batch, 1, device=condition.device) < config.condition_dropout
            embedded = torch.where(dropped[..., None], unconditional, embedded)
            pads = pads & ~dropped if pads is not None else None
        return Prefix(torch.cat([embedded, behind], 1), pads)

    def _check_seq_len(self, length: int) -> None:
        if self.config.condition_len + length > self.config.max_seq_len:
            raise ValueError(f"a sequence of {self.config.condition_len + length} positions is longer than "
                             f"max_seq_len={self.config.max_seq_len}")
