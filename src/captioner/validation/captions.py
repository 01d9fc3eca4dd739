"""What a captioner is worth on a split: perplexity of references, scores of its own captions."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from captioner.data.captions import CaptionedImage
from captioner.data.dataset import CaptionDataset
from captioner.data.images import load_image
from captioner.evaluation import score
from captioner.evaluation.coco_format import ImageId
from captioner.inference.captions import Caption, CaptionGenerator
from captioner.models.base_captioner import BaseCaptioner
from captioner.training.distributed import World
from captioner.validation.attention import AttentionViews

VALIDATED = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr-D")

# Captions by image name -> more figures (attribute accuracy of scenes, say).
ExtraMetrics = Callable[[dict[str, str]], dict[str, float]]


class CaptionValidator:
    """Scores a captioner on a split by teacher forcing and by free-running generation.

    Called by the trainer with the step number, it returns loss (nats a token), perplexity, BLEU-1
    to BLEU-4, ROUGE-L, CIDEr-D (in percent), the share of different captions, and what `extra`
    adds; with a TensorBoard `writer` the first `shown` images are logged with their captions. Of a
    model that attends to regions, `attention` adds what it measures and shows where it looks. The
    processes of a `world` divide the batches, which are the same as one process's, and rank 0 alone
    computes scores: every figure is that of one process, and all processes get it.
    """

    def __init__(
        self,
        *,
        generator: CaptionGenerator,
        images: Sequence[CaptionedImage],
        dataset: CaptionDataset,
        batch_size: int,
        extra: ExtraMetrics | None = None,
        writer: Any = None,
        shown: int = 0,
        world: World | None = None,
        attention: AttentionViews | None = None,
    ) -> None:
        self.world = world or World()
        self.generator, self.images, self.dataset = generator, images, dataset
        self.batch_size, self.extra, self.writer, self.shown = batch_size, extra, writer, shown
        self.attention = attention

    def __call__(self, step: int) -> dict[str, float]:
        """Every figure of the split; the model's mode and the random state are left as found."""
        training = self.generator.model.training
        try:
            loss = self.loss()
            rows = torch.arange(len(self.images)).split(self.batch_size)
            parts = self.world.map(
                lambda part: self.generator.captions(self.dataset.source(part)), rows
            )
            captions = [found for part in parts for found in part]
            return self.world.from_main(lambda: self._scores(step, loss, captions))
        finally:
            self.generator.model.train(training)

    def _scores(
        self, step: int, loss: float, captions: Sequence[list[Caption]]
    ) -> dict[str, float]:
        best = {image.name: one[0].text for image, one in zip(self.images, captions, strict=True)}
        references: dict[ImageId, Sequence[str]] = {i.name: i.captions for i in self.images}
        scores = score(references, dict(best.items()), samples=0)
        figures = {
            "loss": loss,
            "perplexity": math.exp(min(loss, 700.0)),
            **{name: scores[name] for name in VALIDATED},
            "different_captions": len(set(best.values())) / len(best),
            **(self.extra(best) if self.extra else {}),
            **(self.attention.figures(captions) if self.attention else {}),
        }
        if self.writer is not None:
            self._show(step, captions)
        return figures

    @torch.inference_mode()
    def loss(self) -> float:
        """Mean loss of the references' tokens, nats a token, without dropout."""
        model = self.generator.model.eval()
        assert isinstance(model, BaseCaptioner)
        device = model.feature_mean.device

        def summed(rows: Tensor) -> tuple[float, int]:
            batch = self.dataset[rows.tolist()].to(device)
            loss = model.loss(*batch.model_inputs, batch.targets)
            return float(loss), batch.targets.numel()

        rows = torch.arange(len(self.dataset)).split(5 * self.batch_size)
        losses, tokens = zip(*self.world.map(summed, rows), strict=True)
        return sum(losses) / sum(tokens)

    def _show(self, step: int, captions: Sequence[list[Caption]]) -> None:
        shown = zip(self.images[: self.shown], captions, strict=False)
        for number, (image, found) in enumerate(shown):
            pixels = np.asarray(load_image(image.path))
            self.writer.add_image(f"dev/{number}", pixels, step, dataformats="HWC")
            text = f"**{found[0].text}**\n\n" + "\n".join(f"- {c}" for c in image.captions)
            self.writer.add_text(f"dev/{number}", text, step)
        if self.attention is not None:
            self.attention.show(self.writer, step, captions[: self.shown])
