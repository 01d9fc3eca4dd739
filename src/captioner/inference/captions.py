"""From images to sentences: a captioner, its vocabulary and a generation method put together.

Shapes: B images, R regions, F image feature.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from captioner.data.vocabulary import Vocabulary
from captioner.generation import Hypothesis
from captioner.generation.hypothesis import State, Step
from captioner.inference.attention import CaptionMaps, RegionGrid, caption_maps
from captioner.models.base_captioner import BaseCaptioner
from captioner.models.ensemble import Ensemble

Images = Tensor | tuple[Tensor, ...]
ImageBatches = Callable[[Tensor], Images]  # rows of a split's images [I] -> images


class GenerationMethod(Protocol):
    """A method of captioner.generation with all but the model already filled in."""

    def __call__(self, step: Step, state: State, *, batch_size: int) -> list[list[Hypothesis]]:
        """Hypotheses of each of the batch's images, best first."""


@dataclass(frozen=True)
class Caption:
    """A generated caption: its text, its words with their probabilities, its log-probability, and
    the tokens that it was generated as, without `<bos>` and `<eos>`."""

    text: str
    words: tuple[tuple[str, float], ...]
    log_prob: float
    finished: bool
    token_ids: tuple[int, ...] = ()


class CaptionGenerator:
    """Captions images by free-running generation; the model is put into evaluation mode for it.

    An ensemble takes a tuple of images, of each member its own form of the same.
    """

    def __init__(
        self, model: BaseCaptioner | Ensemble, vocabulary: Vocabulary, method: GenerationMethod
    ) -> None:
        self.model, self.vocabulary, self.method = model, vocabulary, method

    @torch.inference_mode()
    def captions(self, images: Images) -> list[list[Caption]]:
        """Of each of images [B, R, F] (or pixels [B, 3, S, S]) the captions found, best first."""
        self.model.eval()
        state = self.model.start(images)  # type: ignore[arg-type]
        batch = len(images[0]) if isinstance(images, tuple) else len(images)
        with self.model.tabulated():
            found = self.method(self.model.step, state, batch_size=batch)
        return [[self._caption(hypothesis) for hypothesis in one] for one in found]

    def all_captions(self, batches: Iterable[Images]) -> Iterator[list[Caption]]:
        """The captions of each image of all batches, one image after another."""
        for images in batches:
            yield from self.captions(images)

    def attention_maps(
        self, images: Images, captions: Sequence[Sequence[Caption]], grid: RegionGrid
    ) -> list[list[CaptionMaps]]:
        """Where the model looked for each word of captions that it wrote of `images`, as `captions`
        takes them; ConfigError for a model that does not attend to regions, and for an ensemble."""
        return caption_maps(self.model, self.vocabulary, grid, images, captions)

    def _caption(self, hypothesis: Hypothesis) -> Caption:
        # Word by word: a special token has a probability but no word. The eos is the one too many.
        words = tuple(
            (word, math.exp(value))
            for token, value in zip(hypothesis.token_ids, hypothesis.log_probs, strict=False)
            for word in self.vocabulary.decode([token])
        )
        return Caption(
            text=" ".join(word for word, _ in words),
            words=words,
            log_prob=sum(hypothesis.log_probs),
            finished=hypothesis.finished,
            token_ids=hypothesis.token_ids,
        )
