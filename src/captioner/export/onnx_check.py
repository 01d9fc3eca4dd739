"""The proof that an ONNX file says what PyTorch says: both caption the same pictures.

Shapes: B pictures of a batch, S picture side, P hypotheses, T longest length.
"""

from __future__ import annotations

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
        options.log_severity_level = 3  # errors; not what it has optimised away
        providers = ["CPUExecutionProvider"]
        self.session = runtime.InferenceSession(str(path), options, providers=providers)
        self.vocabulary = vocabulary

    def captions(self, pixels: Tensor) -> list[list[tuple[str, float]]]:
        """Of each of pictures [B, 3, S, S] the texts with their log-probabilities, best first."""
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
    """How many pictures have the same captions, all hypotheses counted; and those that differ.

    `largest_difference`: of the log-probabilities (nats) of captions that are equal.
    """

    pictures: int = 0
    equal: int = 0
    largest_difference: float = 0.0
    different: list[dict[str, Any]] = field(default_factory=list)

    def add(self, name: str, ours: Sequence[Caption], theirs: Sequence[tuple[str, float]]) -> None:
        """Enter one picture's captions."""
        self.pictures += 1
        pairs = list(zip(ours, theirs, strict=False))
        same = len(ours) == len(theirs) and all(a.text == text for a, (text, _) in pairs)
        if same:
            self.equal += 1
            gaps = [abs(one.log_prob - value) for one, (_, value) in pairs]
            self.largest_difference = max(self.largest_difference, *gaps)
        else:
            self.different.append(
                {
                    "picture": name,
                    "torch": [[one.text, one.log_prob] for one in ours],
                    "onnx": [list(one) for one in theirs],
                }
            )

    def lines(self) -> Iterator[str]:
        """The result in words; of what differs, both best captions with their log-probabilities."""
        yield (
            f"{self.equal} of {self.pictures} pictures have the same captions in onnxruntime as in "
            f"PyTorch; log-probabilities differ by at most {self.largest_difference:.1e} nats"
        )
        for one in self.different:
            both = (
                f"{side} {one[side][0][1]:.6f} {one[side][0][0]!r}" for side in ("torch", "onnx")
            )
            yield f"different: {one['picture']}: {', '.join(both)}"


def compare_captions(
    pictures: Sequence[tuple[str, Tensor]], ours: Any, theirs: OnnxCaptioner, *, batch_size: int
) -> Comparison:
    """Caption named pictures [3, S, S] by `ours` (pixels [B, 3, S, S] -> captions) and `theirs`."""
    comparison = Comparison()
    for start in range(0, len(pictures), batch_size):
        part = pictures[start : start + batch_size]
        pixels = torch.stack([one for _, one in part]).contiguous()
        for (name, _), a, b in zip(part, ours(pixels), theirs.captions(pixels), strict=True):
            comparison.add(name, a, b)
    return comparison
