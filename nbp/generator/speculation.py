"""Several steps in one pass that give the clips of one step after the other.

With the random numbers of every position fixed beforehand a token is a function of those in front of it. Each pass
draws the tokens of the next steps from guesses of one another (a Jacobi iteration): what stands behind right guesses
only is final, at least one step a pass, and what was drawn behind that is guessed in the next pass.
A pass of a few rows takes about as long as one of a single row, as it reads the same weights.
Source: the idea of arXiv 2410.01699 and 2510.24211. Legend: B batch, n tokens of a pass, V ids that can be drawn.
"""

import torch
from torch import Tensor

from nbp.generator.decoding import Draft
from nbp.generator.sampling import race, random_numbers

ROWS = 16       # tokens of all clips that a pass draws by itself: more take longer on CPUs (docs/experiments.md)


class SpeculativeDraft(Draft):
    """A `Draft` whose steps draw up to `sampling.lookahead` blocks, or those that have `ROWS` rows together; the same
    clips, but for rounding where the model is not packed and products of more rows add in another order. Clips of a
    batch go on together: the slowest decides."""

    _numbers: Tensor | None = None      # (B, n, V): random numbers of the tokens from `known` on, as far as drawn
    _guessed = 0                        # video tokens in the stream, guesses included

    @torch.inference_mode(False)
    @torch.no_grad()
    def step(self) -> bool:
        """Draw the next block and those behind it that were guessed right; False where the clips are complete."""
        if self.known >= self.total:
            return False
        bounds = self._bounds()
        if len(bounds) == 2 and self._numbers is None:       # nothing is guessed, and no GPU has to be waited for
            return super().step()
        start, stop = bounds[0], bounds[-1]
        self._guess(stop)
        end = self.layout.known_positions(bounds[-2])
        logits = self._logits(end, stop - start)                                                   # (B, n, V)
        drawn = self._draw(logits, bounds) + self._offset                                          # (B, n)
        where = self._positions[start:stop].to(drawn.device)
        right = start + int((self._stream[:, where] == drawn).all(0).int().cumprod(0).sum())
        self._stream[:, where] = drawn
        last = max(bound for bound in bounds[:-1] if bound <= right)      # the last block with right guesses before it
        self.known = bounds[bounds.index(last) + 1]
        self._first = self.layout.known_positions(last)
        if self._numbers is not None:
            left = self._numbers[:, self.known - start:]
            self._numbers = left if left.shape[1] else None
        return True

    def _bounds(self) -> list[int]:
        """Video tokens in front of each step of a pass, and behind the last."""
        bounds, most = [self.known], self._sampling.lookahead
        while bounds[-1] < self.total and (most is None or len(bounds) <= most):
            bounds.append(bounds[-1] + self.layout.next_tokens(bounds[-1]))
            rows = (bounds[-1] - self.known) * len(self._stream)
            if most is None and len(bounds) > 2 and rows > ROWS:
                return bounds[:-1]
        return bounds

    def _guess(self, stop: int) -> None:
        """Guess the tokens up to `stop` that are not: as at the same place one block of frames before, or as the last
        known one."""
        begin = max(self._guessed, self.known)
        source = torch.arange(begin, stop) - self.grid[1] * self.grid[2] * self.config.block_shape[0]
        source = torch.where(source < 0, self.known - 1, source)
        at, place = (self._positions[index].to(self._stream.device) for index in (source, slice(begin, stop)))
        self._stream[:, place] = self._stream[:, at]
        self._guessed = stop

    def _draw(self, logits: Tensor, bounds: list[int]) -> Tensor:
        """As `sample` on a CPU, with random numbers that are drawn step by step, once each: (B, n)."""
        if self._sampling.greedy:
            return logits.argmax(-1)
        numbers = [] if self._numbers is None else [self._numbers]
        have = bounds[0] + sum(part.shape[1] for part in numbers)
        numbers += [random_numbers(logits[:, :after - before], self._generators, self._sampling)
                    for before, after in zip(bounds, bounds[1:]) if before >= have]
        self._numbers = torch.cat(numbers, 1) if len(numbers) > 1 else numbers[0]
        return race(logits, self._numbers, self._sampling)
