"""The check that an ONNX file gives the captions that PyTorch gives, on the same images.

Shapes: B images of a batch, S image size.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from captioner.data.vocabulary import Vocabulary
from captioner.export.onnx_graph import require_onnx
from captioner.inference.captions import Caption


class OnnxCaptioner:
    """An exported file in onnxruntime, on the CPU."""

    def __init__(self, path: Path | str, vocabulary: Vocabulary, *, threads: int = 0) -> None:
        runtime = require_onnx()
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3  # errors only
        self.session = runtime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
        self.vocabulary = vocabulary

    def captions(self, pixels: Tensor) -> list[list[tuple[str, float]]]:
        """Of each of images [B, 3, S, S] the texts with their log-probabilities, best first."""
        token_ids, log_probs, scores = self.session.run(None, {"pixels": pixels.numpy()})
        return [
            [
                (" ".join(self.vocabulary.decode(ids)), float(values.sum(dtype="float64")))
                for ids, values, score in zip(*one, strict=True)
                if score > -float("inf")
            ]
            for one in zip(token_ids.tolist(), log_probs, scores.tolist(), strict=True)
        ]


@dataclass
class Comparison:
    """How many images have the same captions, all hypotheses counted; and those that differ.

    `largest_difference`: of the log-probabilities (nats) of captions that are equal.
    """

    images: int = 0
    equal: int = 0
    largest_difference: float = 0.0
    different: list[dict[str, Any]] = field(default_factory=list)

    def add(self, name: str, ours: Sequence[Caption], theirs: Sequence[tuple[str, float]]) -> None:
        """Enter one image's captions."""
        self.images += 1
        mine = [(one.text, one.log_prob) for one in ours]
        if [text for text, _ in mine] == [text for text, _ in theirs]:
            self.equal += 1
            gaps = [abs(a - b) for (_, a), (_, b) in zip(mine, theirs, strict=True)]
            self.largest_difference = max([self.largest_difference, *gaps])
        else:
            self.different.append({"image": name, "torch": mine, "onnx": list(theirs)})

    def lines(self) -> Iterator[str]:
        """The result in words; of what differs, both best captions with their log-probabilities."""
        yield (
            f"{self.equal} of {self.images} images have the same captions in onnxruntime as in "
            f"PyTorch; log-probabilities differ by at most {self.largest_difference:.1e} nats"
        )
        for one in self.different:
            best = ((runtime, *one[runtime][0]) for runtime in ("torch", "onnx"))
            both = (f"{runtime} {log_prob:.6f} {text!r}" for runtime, text, log_prob in best)
            yield f"different: {one['image']}: {', '.join(both)}"


def compare_captions(
    images: Sequence[tuple[str, Tensor]], ours: Any, theirs: OnnxCaptioner, *, batch_size: int
) -> Comparison:
    """Caption named images [3, S, S] by `ours` (pixels [B, 3, S, S] -> captions) and `theirs`."""
    comparison = Comparison()
    for start in range(0, len(images), batch_size):
        names, pixels = zip(*images[start : start + batch_size], strict=True)
        batch = torch.stack(pixels).contiguous()
        for name, a, b in zip(names, ours(batch), theirs.captions(batch), strict=True):
            comparison.add(name, a, b)
    return comparison
