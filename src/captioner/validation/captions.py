"""What a captioner makes of a split: the loss of references, and its own captions."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from captioner.data.captions import CaptionedImage
from captioner.data.dataset import CaptionDataset
from captioner.data.images import load_image
from captioner.inference.captions import Caption, CaptionGenerator
from captioner.models.base_captioner import BaseCaptioner
from captioner.training.distributed import World
from captioner.validation.attention import AttentionViews

MOST_CAPTIONS = 500  # whose loss is computed at a time: more do not fit into a processor's caches


class CaptionValidator:
    """Measures a captioner on a split by teacher forcing and by free-running generation.

    Called by the trainer with the step number, it returns what `scores.CaptionScorer` takes: the
    loss (nats a token), the captions by image name, and of a model that attends to regions what
    `attention` measures. With a TensorBoard `writer` the captions of the first `shown` images are
    logged, the images once, and where the model looks. The processes of a `world` divide the
    batches, which are the same as one process's: all of them get what one process alone would
    measure.
    """

    def __init__(
        self,
        *,
        generator: CaptionGenerator,
        images: Sequence[CaptionedImage],
        dataset: CaptionDataset,
        batch_size: int,
        writer: Any = None,
        shown: int = 0,
        world: World | None = None,
        attention: AttentionViews | None = None,
    ) -> None:
        self.world = world or World()
        self.generator, self.images, self.dataset = generator, images, dataset
        self.batch_size, self.writer, self.shown = batch_size, writer, shown
        self.attention = attention
        self._images_shown = False

    def __call__(self, step: int) -> dict[str, Any]:
        """The whole split's; the model's mode and the random state are left as found."""
        training = self.generator.model.training
        try:
            loss = self.loss()
            rows = torch.arange(len(self.images)).split(self.batch_size)
            with self.generator.model.tabulated():
                parts = self.world.map(
                    lambda part: self.generator.captions(self.dataset.source(part)), rows
                )
            captions = [found for part in parts for found in part]
            best = {i.name: one[0].text for i, one in zip(self.images, captions, strict=True)}
            return {
                "loss": loss,
                "captions": best,
                "attention": self.world.from_main(lambda: self._looked(step, captions)),
            }
        finally:
            self.generator.model.train(training)

    def _looked(self, step: int, captions: Sequence[list[Caption]]) -> dict[str, float]:
        """The figures of attention; what is shown is shown."""
        if self.writer is not None:
            self._show(step, captions)
        return self.attention.figures(captions) if self.attention else {}

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

        rows = torch.arange(len(self.dataset)).split(min(5 * self.batch_size, MOST_CAPTIONS))
        losses, tokens = zip(*self.world.map(summed, rows), strict=True)
        return sum(losses) / sum(tokens)

    def _show(self, step: int, captions: Sequence[list[Caption]]) -> None:
        shown = zip(self.images[: self.shown], captions, strict=False)
        for number, (image, found) in enumerate(shown):
            if not self._images_shown:  # the images stay the same
                pixels = np.asarray(load_image(image.path))
                self.writer.add_image(f"dev/{number}", pixels, step, dataformats="HWC")
            text = f"**{found[0].text}**\n\n" + "\n".join(f"- {c}" for c in image.captions)
            self.writer.add_text(f"dev/{number}", text, step)
        self._images_shown = True
        if self.attention is not None:
            self.attention.show(self.writer, step, captions[: self.shown])
