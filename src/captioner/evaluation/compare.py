"""The paired difference of two runs, and several runs (seeds) in one table."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, stdev
from typing import Any

from captioner.errors import DataError
from captioner.evaluation.metric import SAMPLES, Difference, compare
from captioner.evaluation.records import ImageRecord, RunRecord

# What must agree for scores to be comparable; other entries of the card may differ.
COMPARED = ("protocol", "tokeniser", "brevity_penalty", "references_per_image", "split", "data")


@dataclass(frozen=True)
class Comparison:
    """Run b less run a: a difference of each metric, and the images where they differ most."""

    names: tuple[str, str]
    differences: dict[str, Difference]
    values: dict[str, tuple[float, float]]
    apart: list[tuple[ImageRecord, ImageRecord]]
    warnings: list[str]
    metric: str

    def as_json(self) -> dict[str, Any]:
        """What compare.py writes."""
        return {
            "runs": self.names,
            "values": self.values,
            "differences": {name: asdict(one) for name, one in self.differences.items()},
            "warnings": self.warnings,
            "differ_most": [
                {
                    "image_id": a.image_id,
                    "captions": [a.captions[0].text, b.captions[0].text],
                    self.metric: [a.scores[self.metric], b.scores[self.metric]],
                }
                for a, b in self.apart
            ],
        }


def compare_runs(
    a: RunRecord,
    b: RunRecord,
    *,
    metric: str = "CIDEr-D",
    shown: int = 10,
    samples: int = SAMPLES,
    seed: int = 0,
) -> Comparison:
    """Test b - a on every metric both have, and find the images farthest apart in `metric`.

    DataError when the runs are of other images or references, or share no metric.
    """
    _check_same_images(a, b)
    shared = [name for name in a.metrics if name in b.metrics]
    if metric not in shared:
        raise DataError(
            f"{a.name} and {b.name} have no {metric} in common; both have "
            f"{', '.join(shared) or 'no metric'}"
        )
    pairs = sorted(
        zip(a.images, b.images, strict=True),
        key=lambda pair: -abs(pair[0].scores[metric] - pair[1].scores[metric]),
    )
    both = {name: (a.metrics[name], b.metrics[name]) for name in shared}
    cards = a.scores["protocol"], b.scores["protocol"]
    return Comparison(
        names=(a.name, b.name),
        differences={n: compare(*two, samples=samples, seed=seed) for n, two in both.items()},
        values={name: (one.value, other.value) for name, (one, other) in both.items()},
        apart=pairs[:shown],
        warnings=[
            f"{key} differs: {cards[0].get(key)!r} and {cards[1].get(key)!r}"
            for key in COMPARED
            if cards[0].get(key) != cards[1].get(key)
        ],
        metric=metric,
    )


def seed_table(runs: Sequence[RunRecord]) -> dict[str, dict[str, float]]:
    """Mean, standard deviation (of the sample), lowest and highest of each metric all runs have."""
    for run in runs[1:]:
        _check_same_images(runs[0], run)
    table = {}
    for name in runs[0].metrics:
        if all(name in run.metrics for run in runs):
            values = [run.metrics[name].value for run in runs]
            spread = stdev(values) if len(values) > 1 else 0.0
            low, high = min(values), max(values)
            table[name] = {"mean": fmean(values), "deviation": spread, "low": low, "high": high}
    return table


def _check_same_images(a: RunRecord, b: RunRecord) -> None:
    ours, theirs = ({i.image_id: list(i.references) for i in run.images} for run in (a, b))
    odd = sorted(map(repr, ours.keys() ^ theirs.keys()))
    other = [image for image, references in ours.items() if references != theirs.get(image)]
    if odd:
        reason = f"{len(odd)} images are in one only, such as {odd[0]}"
    elif list(ours) != list(theirs):
        reason = "in other order"
    elif other:
        reason = f"image {other[0]!r} has other references"
    else:
        return
    raise DataError(f"{a.name} and {b.name} cannot be paired: {reason}")


def format_comparison(found: Comparison) -> str:
    """A table for the terminal."""
    lines = [f"a: {found.names[0]}", f"b: {found.names[1]}"]
    lines += [f"warning: {warning}" for warning in found.warnings]
    lines.append(
        f"{'':16}{'a':>8}{'b':>8}{'b - a':>8}   {'95 %':^18}{'bootstrap':>10}{'random.':>9}"
    )
    for name, one in found.differences.items():
        a, b = found.values[name]
        bounds = f"[{one.low:+.2f}, {one.high:+.2f}]"
        lines.append(
            f"{name:16}{a:8.2f}{b:8.2f}{one.difference:+8.2f}   {bounds:^18}"
            f"{one.p_bootstrap:10.3f}{one.p_randomisation:9.3f}"
        )
    lines.append(f"most different in {found.metric}:")
    for a_image, b_image in found.apart:
        scores = f"{a_image.scores[found.metric]:.1f} | {b_image.scores[found.metric]:.1f}"
        lines.append(f"  {a_image.image_id}  {scores}")
        lines += [f"    a: {a_image.captions[0].text}", f"    b: {b_image.captions[0].text}"]
    return "\n".join(lines)


def format_seeds(table: dict[str, dict[str, float]], runs: Sequence[RunRecord]) -> str:
    """A table for the terminal."""
    lines = [f"{len(runs)} runs: {', '.join(run.name for run in runs)}"]
    lines.append(f"{'':16}{'mean':>8}{'+-':>7}{'low':>8}{'high':>8}")
    for name, one in table.items():
        lines.append(
            f"{name:16}{one['mean']:8.2f}{one['deviation']:7.2f}{one['low']:8.2f}{one['high']:8.2f}"
        )
    return "\n".join(lines)
