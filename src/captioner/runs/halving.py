"""Successive halving: of the runs of a sweep only the best go on (Jamieson and Talwalkar 2016; by
files alone, without waiting for one another, as in ASHA, Li et al. 2020)."""

import logging
from dataclasses import dataclass
from pathlib import Path

from captioner.files import read_json
from captioner.restore import restore

log = logging.getLogger(__name__)
HISTORY = "history.json"


@dataclass(frozen=True)
class SuccessiveHalving:
    """The rungs are `first` epochs, `factor` times as many, and so on. At each a run in `folder`
    goes on if its best `metric` so far is among the best 1 / `factor` of the runs beside it that
    have come as far, ended ones too; one of them always does."""

    folder: Path
    metric: str
    lower_is_better: bool
    first: int
    factor: int

    def is_rung(self, epoch: int) -> bool:
        """Whether runs are compared after so many epochs."""
        rung = self.first
        while rung < epoch:
            rung *= self.factor
        return rung == epoch

    def goes_on(self, epoch: int) -> bool:
        """Whether the run trains on after so many epochs; the log says its place. DataError where a
        run's history cannot be read."""
        scores = {path.parent: self._best(path, epoch) for path in self._histories()}
        own = scores.pop(self.folder)
        assert own is not None, f"{self.folder} has no scores of {epoch} epochs"
        others = [score for score in scores.values() if score is not None]
        sign = -1 if self.lower_is_better else 1
        place, count = 1 + sum(sign * score > sign * own for score in others), 1 + len(others)
        kept = max(1, count // self.factor)
        end = "goes on" if place <= kept else "ends"
        log.info(
            "%s %s after %d epochs: place %d of %d by %s, of which the best %d go on",
            *(self.folder.name, end, epoch, place, count, self.metric, kept),
        )
        return place <= kept

    def _histories(self) -> list[Path]:
        return sorted(self.folder.parent.glob(f"*/{HISTORY}"))

    def _best(self, path: Path, epoch: int) -> float | None:
        """A run's best score of its first epochs; None while it has fewer."""
        figures: list[dict[str, float]] = restore(
            list[dict[str, float]], read_json(path), str(path)
        )
        if len(figures) < epoch:
            return None
        pick = min if self.lower_is_better else max
        return pick(one[self.metric] for one in figures[:epoch] if self.metric in one)
