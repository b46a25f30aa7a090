"""Random choices of tokens that belong to (seed, row, position), whatever the batch or the device.

The Gumbel-max trick, in two stages: the vocabulary is cut into about sqrt(V) blocks of sqrt(V)
tokens, a block is drawn by the sum of its probabilities, and then a token of the block. The
distribution is exactly the model's, for 2 sqrt(V) random numbers instead of V.

The choice is robust: where padding or another device changes probabilities by rounding, it changes
with about the probability by which the two distributions differ. One uniform number and the inverse
of the distribution function would need less, but there a change in one token's probability moves
the boundaries of all later tokens, and a vocabulary has tens of thousands of boundaries.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch.nn.functional import pad


class TokenDraws:
    """A logits processor that draws the next token itself: it leaves that one alone possible.

    `generate` then takes the most probable token, which is the one drawn.

    Attributes:
        diverged: a boolean on the device, true once any logits were not finite; None at first.
            Such rows are flattened: sampling must not fail on the device, where NaN in an index
            ends the CUDA context.
    """

    def __init__(self, seed: int, rows: Sequence[int]) -> None:
        # A counter-based generator (Salmon et al. 2011) has a stream for every key, and needs no
        # mixing of similar keys. Uniform numbers alone: NumPy promises that their stream stays.
        self.streams = [
            np.random.Generator(np.random.Philox(key=np.array([seed, row], dtype=np.uint64)))
            for row in rows
        ]
        self.diverged: torch.Tensor | None = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return `scores`, (rows, vocabulary), with all but one token of each row impossible."""
        rows, vocabulary = scores.shape
        width = math.isqrt(vocabulary - 1) + 1
        blocks = pad(scores, (0, width * width - vocabulary), value=-math.inf)
        blocks = blocks.view(rows, width, width)
        mass = blocks.logsumexp(dim=2)
        bad = ~mass.logsumexp(dim=1).isfinite()
        self.diverged = bad.any() if self.diverged is None else self.diverged | bad.any()
        noise = self._gumbel(2 * width).to(scores.device)
        block = (mass.masked_fill(bad[:, None], 0.0) + noise[:, :width]).argmax(dim=1)
        within = blocks[torch.arange(rows, device=scores.device), block]
        within = within.masked_fill(bad[:, None], 0.0) + noise[:, width:]
        token = block * width + within.argmax(dim=1)
        token = token.clamp(max=vocabulary - 1)  # a flattened row may draw from the padding
        return torch.full_like(scores, -math.inf).scatter_(1, token[:, None], 0.0)

    def _gumbel(self, count: int) -> torch.Tensor:
        """Return the next `count` standard Gumbel numbers of each row, float32, (rows, count)."""
        uniform = np.empty((len(self.streams), count))
        for stream, numbers in zip(self.streams, uniform, strict=True):
            stream.random(out=numbers)
        with np.errstate(divide="ignore"):  # -inf where the uniform number is 0: it never wins
            return torch.from_numpy((-np.log(-np.log(uniform))).astype(np.float32))
