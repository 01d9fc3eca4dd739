"""The training loop: steps, epochs, validation, checkpoints, and exact resume.

Whatever predicts tokens trains here: a model with a `loss`, batches with `model_inputs` and
`targets`, and a function that validates. Nothing in this file knows of images, captions or
configuration.
"""

import math
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from captioner.data.resident import ResidentCaptions
from captioner.errors import CheckpointError, NumericsError
from captioner.progress import Progress as ProgressBar
from captioner.training.averaging import MovingAverage
from captioner.training.background import CheckpointWriter
from captioner.training.checkpoint import Checkpoint
from captioner.training.distributed import World
from captioner.training.graph_step import GraphStep
from captioner.training.interrupt import Interruption
from captioner.training.randomness import Randomness
from captioner.training.reporting import Forecast, Reporting
from captioner.training.setup import TrainerSettings, TrainingSetup
from captioner.training.state import Progress, RunState
from captioner.training.step import Gradients, PlainStep
from captioner.training.timing import Timing
from captioner.training.validations import Validations


class Trainer:
    """Trains what `setup` holds, keeping last.pt and best.pt in `folder`.

    `random` is where the model's numbers come from, torch's own generators unless given. In a
    `world` of several processes each has such a trainer; they take the same steps, and rank 0
    writes and reports.

    `run` does it all. Whoever trains several models together calls the steps that it consists of:
    `begin_epoch`, `take` for each group of batches, `save`, `finish_epoch`, in a block of `writer`:
    checkpoints are written in the background.
    """

    def __init__(
        self,
        setup: TrainingSetup,
        *,
        folder: Path,
        settings: TrainerSettings,
        device: torch.device,
        world: World | None = None,
        random: Randomness | None = None,
        reporting: Reporting | None = None,
    ) -> None:
        self.model, self.optimizer = setup.model, setup.optimizer
        self.loader, self.order = setup.loader, setup.order
        self.texts, self.folder, self.settings, self.device = setup.texts, folder, settings, device
        self.world, self.random = world or World(), random or Randomness(device)
        self.reporting = reporting or Reporting()
        self.objective, self.rungs, self.at_epoch = setup.objective, setup.rungs, setup.at_epoch
        self.progress = Progress()
        decay = settings.ema
        self.average = MovingAverage(self.model, decay) if decay is not None else None
        self._bar = ProgressBar(0, show=False)
        self._running = torch.zeros((), dtype=torch.float64, device=device)
        self.steps_per_epoch = math.ceil(len(self.order) / settings.accumulation)
        self.total_steps = settings.epochs * self.steps_per_epoch
        self._forecast = Forecast(self.reporting, device=device, epoch=self.steps_per_epoch)
        self.step = self._make_step(setup.data)
        self.writer = CheckpointWriter()
        self.validations = Validations(
            setup,
            settings=settings,
            average=self.average,
            folder=folder,
            world=self.world,
            reporting=self.reporting,
            writer=self.writer,
            advice=self._advice,
        )
        self.timing = Timing(
            folder,
            device=device,
            every=settings.log_steps,
            profile=settings.profile and self.world.main,
            writer=self.reporting.writer,
        )
        if not self.world.main:  # which must not draw rank 0's dropout
            self.world.draw_apart(step=0)

    def _make_step(self, data: ResidentCaptions | None) -> PlainStep | GraphStep:
        common: dict[str, Any] = {
            "model": self.model,
            "optimizer": self.optimizer,
            "settings": self.settings,
            "total_steps": self.total_steps,
            "device": self.device,
            "average": self.average,
        }
        if data is not None:
            return GraphStep(data, **common)
        return PlainStep(**common, world=self.world, objective=self.objective)

    # -- resuming ---------------------------------------------------------------------------

    @property
    def state(self) -> RunState:
        """What an exact resume restores."""
        return RunState(
            self.model, self.optimizer, self.average, self.random, self.world, self.texts
        )

    def resume(self) -> bool:
        """Continue from last.pt where there is one: weights, optimiser, order and random state.

        The number of processes may be another than before: only dropout then draws other numbers.
        Errors as `RunState.load`, and for a place that this training does not come to.
        """
        path = self.folder / "last.pt"
        if not path.exists():
            return False
        self.progress = self.state.load(path, self.device)
        self._check_place(path)
        self.validations.submit(self.progress)
        self.step.prepare()
        self.timing.resume(self.progress.epoch)
        self.reporting.say("resuming at step %d of %d", self.progress.step, self.total_steps)
        return True

    def _check_place(self, path: Path) -> None:
        state, batches = self.progress, len(self.order)
        steps = state.epoch * self.steps_per_epoch
        steps += math.ceil(state.position / self.settings.accumulation)
        if state.step != steps or state.position > batches or state.epoch > self.settings.epochs:
            raise CheckpointError(
                f"{path} stands at step {state.step}, batch {state.position} of epoch "
                f"{state.epoch + 1}: no place in {self.settings.epochs} epochs of {batches} "
                f"batches and {self.steps_per_epoch} steps each"
            )
        told = [one for one in state.history if {"epoch", self.settings.best_metric} <= one.keys()]
        expected = state.epoch - (state.pending is not None)
        if len(state.history) != expected or len(told) < expected:
            raise CheckpointError(
                f"{path} has a history of {len(told)} epochs with {self.settings.best_metric}, "
                f"expected {expected}"
            )
        if state.finished and not state.epoch:
            raise CheckpointError(f"{path} is said to be finished before its first epoch")

    def save(self) -> None:
        """Write last.pt, from which `resume` continues bit for bit; `writer` writes it later.

        Raises NumericsError, the old file left as it is, when a weight is no longer finite.
        """
        with self.timing.during("saving"):
            self._check_weights()
            training = self.state.gathered(self.progress)
            if self.world.main:
                kept = Checkpoint(self.model.state_dict(), self.texts, training=training)
                self.writer.write(self.folder / "last.pt", kept)

    def _check_weights(self) -> None:
        """A gradient can overflow in the very step whose loss was still finite."""
        for name, parameter in self.model.named_parameters():
            if not torch.isfinite(parameter).all():
                raise NumericsError(
                    f"{name} is no longer finite at step {self.progress.step} "
                    f"(epoch {self.progress.epoch + 1}); {self._advice()}"
                )

    def _advice(self) -> str:
        return (
            "try a lower optimizer.lr or clipping. "
            f"{self.folder / 'last.pt'} holds the last good state, if one was saved"
        )

    # -- the loop ---------------------------------------------------------------------------

    def run(self) -> list[dict[str, float]]:
        """Train to the end and return a dict of figures for each epoch; all files are then written.

        Raises KeyboardInterrupt after saving when a signal asked to stop, NumericsError when the
        loss or a weight is no longer finite (last.pt then holds the last good state).
        """
        state = self.progress
        show = self.reporting.show_progress and self.world.main
        bar = ProgressBar(self.total_steps, done=state.step, show=show)
        with bar, Interruption() as interruption, self.writer:
            self._bar = bar
            while not state.finished and self.goes_on():
                self._train_epoch(interruption)
                self.save()
                interruption.saved = True
                if any(self.world.any(interruption.requested)):
                    raise KeyboardInterrupt
                self.finish_epoch()
                interruption.saved = False
        self.world.wait()  # until rank 0 has written its checkpoints
        return state.history

    def _train_epoch(self, interruption: Interruption) -> None:
        """Take the epoch's remaining steps, saving now and then."""
        self.order.epoch, self.order.position = self.progress.epoch, self.progress.position
        self.begin_epoch()
        batches = self.timing.waits(iter(self.loader))
        while group := list(islice(batches, self.settings.accumulation)):
            if self.take(group, asked_to_stop=interruption.requested):
                raise KeyboardInterrupt

    def goes_on(self) -> bool:
        """Whether training continues where it stands; it ends after an epoch of `rungs` in which
        others were better."""
        state, rungs = self.progress, self.rungs
        if rungs is None or state.position or not rungs.is_rung(state.epoch):
            return True
        state.finished = not self.world.from_main(lambda: rungs.goes_on(state.epoch))
        if state.finished:
            self.save()
        return not state.finished

    def begin_epoch(self) -> None:
        """Called before `take`: at an epoch's first batch, or after a resume within it."""
        if self.at_epoch is not None:
            self.at_epoch(self.progress.epoch)
        self.model.train()
        self._running.zero_()
        self._forecast.begin()
        self._saved = self._counted = time.monotonic()

    def take(
        self, group: Sequence[Any], *, asked_to_stop: bool = False, found: Gradients | None = None
    ) -> bool:
        """One step over a group of batches, its figures, and last.pt where it is due; whether a
        process was asked to stop, for which all have then saved. `found` as in `PlainStep`."""
        state, settings = self.progress, self.settings
        given = {} if found is None else {"found": found}
        with self.timing.step(), self.random.used():
            tokens = self.step(group, state.step, self._running, **given)
        state.step += 1
        state.position += len(group)
        state.tokens += tokens
        self._bar.update()
        if self.world.main and not self.reporting.name:
            self._forecast.step(self.total_steps - state.step)
        last = state.position == len(self.order)
        late = time.monotonic() - self._saved > 60 * settings.checkpoint_minutes
        self.writer.check()
        # Clocks, signals and scores are a process's own: what one of them asks for, all do.
        late, stop, scored = self.world.any(late, asked_to_stop, self.validations.arrived())
        if scored:
            with self.timing.during("validation"):
                self.validations.settle(state)
        due = late or (settings.checkpoint_steps and state.step % settings.checkpoint_steps == 0)
        if last or due or stop or state.step % settings.log_steps == 0:
            self._account()
        if stop or (due and not last):
            self.save()
            self._saved = time.monotonic()
        return stop

    def stop(self) -> None:
        """Save within an epoch, for a resume to continue from."""
        self._account()
        self.save()

    def _account(self) -> None:
        """Read the loss from the device, refuse what is not finite, show it."""
        state = self.progress
        now = time.monotonic()
        state.seconds += now - self._counted
        self._counted = now
        value = self.world.total(float(self._running))[0]
        self._running.zero_()
        if not math.isfinite(value):
            raise NumericsError(
                f"the loss became {value} within the {self.settings.log_steps} steps before step "
                f"{state.step} (epoch {state.epoch + 1}); {self._advice()}"
            )
        state.loss_sum += value
        loss = state.loss_sum / state.tokens
        rate = state.tokens / max(state.seconds, 1e-9)
        self._bar.tell(f"epoch {state.epoch + 1} loss {loss:.3f} {rate:,.0f} tokens/s")
        group = self.optimizer.param_groups[0]
        lr = group["base_lr"] * self.settings.rate_factor(state.step - 1, self.total_steps, group)
        curves = {"train/loss": loss, "train/lr": lr, "train/tokens_per_second": rate}
        if self.objective is not None:
            self._add_figures(self.objective.figures())
        curves |= {f"train/{name}": value for name, value in state.means().items()}
        self.reporting.scalars(curves, state.step)

    def _add_figures(self, figures: dict[str, tuple[float, float]]) -> None:
        """Add the objective's figures of all ranks to the epoch's."""
        totals = iter(self.world.total(*(value for pair in figures.values() for value in pair)))
        for name in figures:
            before = self.progress.sums.get(name, (0.0, 0.0))
            self.progress.sums[name] = (before[0] + next(totals), before[1] + next(totals))

    def finish_epoch(self) -> None:
        """Validate, turn to the next epoch and save.

        What follows from the scores may come later, in `take`: it does not where they decide
        whether there is another epoch. Errors as `Validations.settle`.
        """
        state, tokens = self.progress, self.progress.tokens
        with self.timing.during("validation"):
            self.validations.settle(state)  # the epoch before's
            self.validations.measure(state)
            state.turn()
            self.validations.submit(state)
            self.validations.settle_if_due(state)
        if self.world.main:
            self.timing.finish_epoch(state.epoch, state.step, tokens)
        else:
            self.timing.start_epoch()
        self.save()
