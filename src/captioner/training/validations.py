"""Validation after an epoch, and what follows from its scores: history, best.pt, early stopping.

The scores may come later than the model's part of a validation: the next epoch then trains beside
them. Nothing that is decided by them depends on when they come.
"""

import math
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import nullcontext
from pathlib import Path

from captioner.errors import ConfigError, NumericsError
from captioner.files import write_json
from captioner.training.averaging import MovingAverage
from captioner.training.background import CheckpointWriter
from captioner.training.checkpoint import Checkpoint, snapshot
from captioner.training.distributed import World
from captioner.training.reporting import Reporting
from captioner.training.setup import TrainerSettings, TrainingSetup
from captioner.training.state import Progress, Validation


class Validations:
    """Validates what `setup` holds, and acts on the scores, one validation after another.

    `writer` writes best.pt into `folder`; `advice` ends the sentence about a score that is NaN. All
    methods but `arrived` are collective.
    """

    def __init__(
        self,
        setup: TrainingSetup,
        *,
        settings: TrainerSettings,
        average: MovingAverage | None,
        folder: Path,
        world: World,
        reporting: Reporting,
        writer: CheckpointWriter,
        advice: Callable[[], str],
    ) -> None:
        self.model, self.texts = setup.model, setup.texts
        self.validate, self.score, self.rungs = setup.validate, setup.score, setup.rungs
        self.settings, self.average, self.folder = settings, average, folder
        self.world, self.reporting, self.writer, self.advice = world, reporting, writer, advice
        self._scores: Future[dict[str, float]] | None = None  # on rank 0

    def measure(self, progress: Progress) -> None:
        """The model's part, at the end of an epoch: from then on its validation is pending."""
        with self.average.in_place() if self.average is not None else nullcontext():
            self.model.eval()
            measured = self.validate(progress.step)
            weights = snapshot(self.model.state_dict()) if self.world.main else {}
        figures = {
            "epoch": progress.epoch + 1,
            "step": progress.step,
            "train_loss": progress.loss_sum / max(1, progress.tokens),
            **progress.means(),
            "seconds": progress.seconds,
        }
        progress.pending = Validation(figures, measured, weights)

    def submit(self, progress: Progress) -> None:
        """Have the scores computed of the pending validation; its epoch is over."""
        if progress.pending is None or not self.world.main:
            return
        measured = progress.pending.measured
        if self.score is None:
            self._scores = Future()
            self._scores.set_result(measured)
        else:
            self._scores = self.score(measured, at_once=self._needed(progress))

    def arrived(self) -> bool:
        """Whether scores are there that have not been acted on; rank 0 knows."""
        return self._scores is not None and self._scores.done()

    def settle_if_due(self, progress: Progress) -> None:
        """`settle` where the scores are there, or decide whether there is another epoch."""
        if self.world.any(self.arrived() or self._needed(progress))[0]:
            self.settle(progress)

    def _needed(self, progress: Progress) -> bool:
        patience, without = self.settings.patience, progress.validations_since_best
        may_stop = patience is not None and without + 1 >= patience
        compared = self.rungs is not None and self.rungs.is_rung(progress.epoch)
        return may_stop or compared or progress.epoch >= self.settings.epochs

    def settle(self, progress: Progress) -> None:
        """Wait for the scores of a pending validation, if there is one, and act on them.

        Raises ConfigError where the metric that decides is not among them, NumericsError where it
        is NaN, and what computing them raised.
        """
        validation, settings = progress.pending, self.settings
        if validation is None:
            return
        metrics = self.world.from_main(self._result)
        score = self._deciding(metrics, validation)
        sign = -1 if settings.lower_is_better else 1
        better = progress.best is None or sign * score > sign * progress.best
        self._keep(validation, metrics, better)
        progress.pending = None
        if better:
            progress.best = score
        progress.validations_since_best = 0 if better else progress.validations_since_best + 1
        figures = {**validation.figures, **metrics}
        progress.history = [*progress.history, figures]
        if self.world.main:
            write_json(self.folder / "history.json", progress.history)
            metric, epochs = settings.best_metric, settings.epochs
            self.reporting.epoch(figures, better, metric=metric, epochs=epochs)
        stop = (
            settings.patience is not None and progress.validations_since_best >= settings.patience
        )
        if stop:
            self.reporting.say(
                "stopping early: no better %s in %d epochs", settings.best_metric, settings.patience
            )
        progress.finished = stop or progress.epoch >= settings.epochs

    def _result(self) -> dict[str, float]:
        assert self._scores is not None
        scores, self._scores = self._scores, None
        return scores.result()

    def _deciding(self, metrics: dict[str, float], validation: Validation) -> float:
        """The metric that decides which epoch is the best."""
        name = self.settings.best_metric
        if name not in metrics:
            raise ConfigError(f"best_metric {name!r} is not among {', '.join(metrics)}")
        if math.isnan(metrics[name]):  # it would compare as neither better nor worse for ever
            step = int(validation.figures["step"])
            raise NumericsError(f"{name} is NaN after step {step}; {self.advice()}")
        return metrics[name]

    def _keep(self, validation: Validation, metrics: dict[str, float], better: bool) -> None:
        """Write best.pt, and the weights of the last epochs where they are asked for."""
        if not self.world.main:
            return
        kept = Checkpoint(validation.weights, self.texts, scores=metrics)
        if better:
            self.writer.write(self.folder / "best.pt", kept)
        if self.settings.keep_epochs:
            epoch = int(validation.figures["epoch"])
            self.writer.write(self.folder / f"epoch_{epoch}.pt", kept)
            self.writer.remove(self.folder / f"epoch_{epoch - self.settings.keep_epochs}.pt")
