"""From images to token ids, as one module that can be traced, for ONNX.

The search is that of generation/beam.py with one group. Every tensor keeps its shape from step to
step, so that the loop becomes one ONNX Loop: sentences are aligned at their last word, and an image
whose result is certain is searched on until all are. Equal scores are ordered as there, because
ONNX's TopK takes the lower index first.

Shapes: B images, R regions, S image size, E embedding, H hidden, L layers, V vocabulary, K beams,
P hypotheses kept, T max_length. N = B * K rows, image by image.
"""

import math
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch._higher_order_ops import while_loop

from captioner.export.plain_captioners import plain_step
from captioner.export.plain_step import Memory
from captioner.generation.constraints import Constraints, forbid_repeats
from captioner.generation.sequences import Sequences, length_norms
from captioner.models.base_captioner import BaseCaptioner
from captioner.models.encoder import Encoder

PAD = 0


class CaptioningLoop(nn.Module):
    """A captioner, its encoder and its search.

    `encoder` is the frozen one; None where the captioner has its own. Its features are rounded to
    `feature_dtype`, as the cache that the captioner was trained on rounds them. Other arguments are
    those of `generation.beam_search`; a `beam_size` of 1 is greedy search. Raises ConfigError as
    that does, and for a captioner that cannot be exported.
    """

    norms: Tensor
    banned: Tensor
    ends: Tensor

    def __init__(
        self,
        captioner: BaseCaptioner,
        encoder: Encoder | None,
        *,
        constraints: Constraints,
        beam_size: int,
        n_best: int | None = None,
        feature_dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        banned = (PAD, constraints.bos, *constraints.banned)
        self.rules = replace(constraints, banned=banned)
        self.encoder, self.feature_dtype = encoder, feature_dtype
        self.step = plain_step(captioner, beam_size=beam_size)
        self.beam_size = beam_size
        self.kept = min(n_best or beam_size, beam_size)
        words = torch.arange(captioner.vocab_size)
        longest, penalty = constraints.max_length, constraints.length_penalty
        self.register_buffer("norms", length_norms(longest, penalty, torch.device("cpu")))
        self.register_buffer("banned", torch.isin(words, torch.tensor(banned)))
        self.register_buffer("ends", words == constraints.end)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Images [B, 3, S, S] -> token_ids [B, P, T], log_probs [B, P, T], scores [B, P].

        Best first. A sentence is followed by eos, where it has ended, and by zeros; where there are
        fewer than P, scores are -inf.
        """
        images = pixels
        if self.encoder is not None:
            images = self.encoder(pixels).to(self.feature_dtype).float()
        state, memory = self.step.start(images)
        repeated = [one.repeat_interleave(self.beam_size, dim=1) for one in state]
        position = torch.zeros((), dtype=torch.int64)
        carried = (position, *self._start(pixels.shape[0]), *repeated)

        def advance(*carried: Tensor) -> tuple[Tensor, ...]:
            return self._advance(memory, *carried)

        _, scores, tokens, log_probs, *rest = while_loop(self._continues, advance, carried)
        beams = Sequences(scores, tokens, log_probs, torch.full_like(scores, self.longest).long())
        done = Sequences(*rest[:4])
        # Beams still running have max_length words, or cannot change the result any more.
        done = done.best_with(beams.scored(beams.scores / self.norms[-1]))
        return self._aligned(done)

    @property
    def longest(self) -> int:
        """T: the words that a sentence may have."""
        return self.rules.max_length

    def _start(self, images: int) -> tuple[Tensor, ...]:
        """Beams (scores, tokens, log_probs); hypotheses (the same and lengths), none yet."""
        first = torch.full((1, self.beam_size), -math.inf, dtype=torch.float64)
        first[:, 0] = 0.0  # before the first word all beams are the same
        beams = Sequences.none((images, self.beam_size), self.longest, first.device)
        bos = torch.full_like(beams.tokens[..., :1], self.rules.bos)
        tokens = torch.cat([beams.tokens[..., 1:], bos], dim=-1)
        done = Sequences.none((images, self.kept), self.longest, first.device)
        return first.repeat(images, 1), tokens, beams.log_probs, *done

    def _continues(self, position: Tensor, sums: Tensor, *others: Tensor) -> Tensor:
        """Whether any beam can still reach the worst hypothesis kept of its image."""
        worst = others[2][:, -1]
        attainable = sums.amax(dim=1) / self.norms[-1]
        return (position < self.longest) & (worst < attainable).any()

    def _advance(
        self,
        memory: Memory,  # of the images, which no step changes
        position: Tensor,  # words so far
        sums: Tensor,  # [B, K]
        tokens: Tensor,  # [B, K, T], aligned at the end
        log_probs: Tensor,  # [B, K, T]
        *others: Tensor,  # the hypotheses' four tensors, the state's
    ) -> tuple[Tensor, ...]:
        """Extend every beam by a token; set aside those that end."""
        beams = Sequences(sums, tokens, log_probs, position.expand(sums.shape))
        done = Sequences(*others[:4])
        found, state = self.step(tokens[..., -1].flatten(), others[4:], memory)
        allowed = self._allowed(found, tokens.flatten(0, 1), position)
        parents, words, taken, chosen = self._best(allowed, sums)

        stuck = (chosen == -math.inf).all(1) & (done.scores[:, 0] == -math.inf)
        done = _set_aside(done, beams, stuck.unsqueeze(1), self._norm(position))
        _, before, log_probs, lengths = beams.take(parents)
        tokens = torch.cat([before[..., 1:], words.unsqueeze(2)], dim=2)
        log_probs = torch.cat([log_probs[..., 1:], taken.unsqueeze(2)], dim=2)
        beams = Sequences(chosen, tokens, log_probs, lengths + 1)
        ended = words == self.rules.end
        done = _set_aside(done, beams, ended, self._norm(position + 1))
        first = torch.arange(sums.shape[0]).unsqueeze(1) * self.beam_size
        rows = (first + parents).flatten()
        return (
            position + 1,
            chosen.masked_fill(ended, -math.inf),
            tokens,
            log_probs,
            *done,
            *(one.index_select(1, rows) for one in state),
        )

    def _allowed(self, log_probs: Tensor, words: Tensor, position: Tensor) -> Tensor:
        """log_probs [N, V] with -inf at all that may not follow words [N, T]."""
        forbidden = self.banned | (self.ends & (position < self.rules.min_length))
        log_probs = log_probs.masked_fill(forbidden, -math.inf)
        if 0 < self.rules.no_repeat_ngram <= self.longest:
            # PAD and bos, which fill the positions before the first word, are banned anyway.
            log_probs = forbid_repeats(log_probs, words, self.rules.no_repeat_ngram)
        return log_probs

    def _norm(self, length: Tensor) -> Tensor:
        """The length's norm, [1]; indexing would read `length` on the host and end the tracing."""
        return self.norms.index_select(0, length.reshape(1))

    def _best(self, log_probs: Tensor, sums: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The K best continuations: beams they continue, words, log_probs, sums; each [B, K]."""
        each = min(self.beam_size, log_probs.shape[1])
        values, ids = log_probs.topk(each)
        values, ids = (one.unflatten(0, (-1, self.beam_size)) for one in (values, ids))
        ranks = (sums.unsqueeze(2) + values).flatten(1)
        order = ranks.sort(dim=1, descending=True, stable=True).indices[:, : self.beam_size]
        parents = order // each
        taken = values.flatten(1).gather(1, order).double().clamp(max=0)
        return parents, ids.flatten(1).gather(1, order), taken, sums.gather(1, parents) + taken

    def _aligned(self, done: Sequences) -> tuple[Tensor, Tensor, Tensor]:
        """Sentences from their first word on, zeros behind the last."""
        place = torch.arange(self.longest)
        lengths = done.lengths.unsqueeze(2)
        source = (place + self.longest - lengths).clamp(max=self.longest - 1)
        behind = place >= lengths
        tokens = done.tokens.gather(2, source).masked_fill(behind, PAD)
        log_probs = done.log_probs.gather(2, source).masked_fill(behind, 0.0)
        return tokens, log_probs.float(), done.scores.float()


def _set_aside(done: Sequences, beams: Sequences, which: Tensor, norm: Tensor) -> Sequences:
    """The best of the hypotheses and of the beams [B, K] that the mask names."""
    scores = (beams.scores / norm).masked_fill(~which, -math.inf)
    return done.best_with(beams.scored(scores))
