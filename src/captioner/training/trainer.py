"""The training loop: steps, epochs, validation, checkpoints, and an exact way back in.

Whatever predicts tokens trains here: a model with a `loss`, batches with `model_inputs` and
`targets`, and a function that validates. Nothing in this file knows of images, captions or
configuration.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from captioner.errors import CheckpointError, ConfigError, NumericsError
from captioner.files import write_json
from captioner.training.averaging import MovingAverage
from captioner.training.checkpoint import (
    Checkpoint,
    load_checkpoint,
    load_weights,
    save_checkpoint,
)
from captioner.training.distributed import World
from captioner.training.graph_step import GraphStep, ResidentData
from captioner.training.interrupt import Interruption
from captioner.training.optimisation import optimizer_state
from captioner.training.progress import SilentBar, progress_bar
from captioner.training.randomness import Randomness
from captioner.training.step import Batch, PlainStep, StepSettings
from captioner.training.timing import Timing

log = logging.getLogger(__name__)


class Order(Protocol):
    """The visiting order of the batches: set epoch and position, then iterate the loader."""

    epoch: int
    position: int

    def __len__(self) -> int:
        """Batches in an epoch."""


@runtime_checkable
class CarriesState(Protocol):
    """A model that keeps a state from one batch to the next, which is no weight."""

    def carried_state(self) -> list[Tensor]:
        """What the next batch begins with."""

    def load_carried_state(self, state: list[Tensor]) -> None:
        """Go on from what `carried_state` gave."""


@dataclass(frozen=True, kw_only=True)
class TrainerSettings:
    """Plain settings of the loop; `None` switches a thing off.

    epochs: passes over the data; accumulation: batches an optimiser step; clip_norm, clip_value:
    of the gradients; best_metric is maximised unless `lower_is_better`; patience: validations
    without a better score before stopping; checkpoint_minutes, checkpoint_steps: how often
    last.pt is written inside an epoch (it always is at an epoch's end); log_steps: how often the
    loss is read and a step taken apart for timing.json; profile: write trace.json too; ema: decay
    of the moving average of the weights, which is then what is validated and kept as best.pt;
    keep_epochs: of how many epochs, counted from the last, the weights are kept as epoch_N.pt.
    """

    epochs: int
    accumulation: int = 1
    label_smoothing: float = 0.0
    clip_norm: float | None = None
    clip_value: float | None = None
    schedule: str = "constant"
    warmup_steps: int = 0
    bf16: bool = False
    best_metric: str = "BLEU-4"
    lower_is_better: bool = False
    patience: int | None = None
    checkpoint_minutes: float = 5.0
    checkpoint_steps: int | None = None
    log_steps: int = 20
    profile: bool = False
    ema: float | None = None
    keep_epochs: int = 0

    def of_a_step(self, total_steps: int) -> StepSettings:
        """Those that concern a single step of a run of so many."""
        return StepSettings(
            total_steps=total_steps,
            label_smoothing=self.label_smoothing,
            clip_norm=self.clip_norm,
            clip_value=self.clip_value,
            schedule=self.schedule,
            warmup_steps=self.warmup_steps,
            bf16=self.bf16,
        )


@dataclass
class Progress:
    """Where a run stands; all of it is in last.pt."""

    step: int = 0
    epoch: int = 0
    position: int = 0
    loss_sum: float = 0.0
    tokens: int = 0
    seconds: float = 0.0
    best: float | None = None
    validations_since_best: int = 0
    finished: bool = False
    history: list[dict[str, float]] = field(default_factory=list)


class Trainer:
    """Trains `model` on `loader` in the given `order`, keeping last.pt and best.pt in `folder`.

    `validate(step)` returns a dict of metrics that contains `settings.best_metric`; `writer` is a
    TensorBoard SummaryWriter or None; `texts` goes into every checkpoint as it is; `random` is
    where the model's numbers come from, torch's own generators unless given; `name` stands before
    what is logged. In a `world` of several processes each has such a trainer, whose loader gives
    its share of every batch, None for an empty one; they take the same steps, and rank 0 writes.
    With `data` on the device, which then is the loader's, steps are such as a CUDA graph can hold.

    `run` does it all. Whoever trains several models side by side calls the steps that it consists
    of: `begin_epoch`, `take` for each group of batches, `save`, `finish_epoch`.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        loader: Iterable[Batch | None],
        order: Order,
        validate: Callable[[int], dict[str, float]],
        folder: Path,
        settings: TrainerSettings,
        texts: dict[str, str],
        device: torch.device,
        writer: Any = None,
        show_progress: bool = True,
        random: Randomness | None = None,
        name: str = "",
        world: World | None = None,
        data: ResidentData | None = None,
    ) -> None:
        self.world = world or World()
        self.model, self.optimizer = model, optimizer
        self.loader, self.order, self.validate = loader, order, validate
        self.folder, self.settings, self.texts = folder, settings, texts
        self.device, self.writer = device, writer
        self.show_progress = show_progress and self.world.main
        self.random, self.name = random or Randomness(device), name
        self.progress = Progress()
        self.average = MovingAverage(model, settings.ema) if settings.ema is not None else None
        self._bar: Any = SilentBar()
        self._running = torch.zeros((), dtype=torch.float64, device=device)
        self.steps_per_epoch = math.ceil(len(order) / settings.accumulation)
        self.total_steps = settings.epochs * self.steps_per_epoch
        self.step = self._make_step(data)
        self.timing = Timing(
            folder,
            device=device,
            every=settings.log_steps,
            profile=settings.profile and self.world.main,
            writer=writer,
        )
        if not self.world.main:  # which must not draw rank 0's dropout
            self.world.draw_apart(step=0)

    def _make_step(self, data: ResidentData | None) -> PlainStep:
        common: dict[str, Any] = {
            "model": self.model, "optimizer": self.optimizer, "device": self.device,
            "average": self.average, "settings": self.settings.of_a_step(self.total_steps),
        }  # fmt: skip
        if data is None:
            return PlainStep(**common, world=self.world)
        return GraphStep(data, **common)

    # -- resuming ---------------------------------------------------------------------------

    def resume(self) -> bool:
        """Continue from last.pt where there is one: weights, optimiser, order and random state.

        The number of processes may be another than before: only dropout then draws other numbers.
        Raises CheckpointError when the file is damaged, or of another model, optimiser or kind.
        """
        path = self.folder / "last.pt"
        if not path.exists():
            return False
        checkpoint = load_checkpoint(path, device=str(self.device))
        training = checkpoint.training
        if training is None:
            raise CheckpointError(f"{path} holds weights only, no training state to resume from")
        load_weights(self.model, checkpoint.model, source=str(path))
        try:
            self.optimizer.load_state_dict(training["optimizer"])
            self.progress = Progress(**training["progress"])
            if isinstance(self.model, CarriesState):
                state = self.world.own_streams(training["carried_state"])
                self.model.load_carried_state(state)
            self._load_random([training, *training.get("other_ranks", [])])
            if self.average is not None:
                self.average.load(training["ema"])
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{path} is of another optimiser or trainer: {error}") from error
        self.step.prepare()
        self.timing.resume(self.progress.epoch)
        self._say("resuming at step %d of %d", self.progress.step, self.total_steps)
        return True

    def _load_random(self, states: Sequence[dict[str, Tensor]]) -> None:
        """Go on with this rank's random numbers; a rank that had none gets some of its own."""
        if self.world.rank < len(states):
            self.random.load(states[self.world.rank])
        else:
            self.world.draw_apart(step=self.progress.step)

    def save(self) -> None:
        """Write last.pt, from which `resume` goes on bit for bit.

        Raises NumericsError, the old file left as it is, when a weight is no longer finite.
        """
        with self.timing.during("saving"):
            self._check_weights()
            self._write_last()

    def _write_last(self) -> None:
        training: dict[str, Any] = {
            "optimizer": optimizer_state(self.optimizer),
            "progress": asdict(self.progress),
        }
        own, *others = self.world.gather(self.random.state())
        training |= own
        if others:
            training["other_ranks"] = others
        if self.average is not None:
            training["ema"] = self.average.state()
        if isinstance(self.model, CarriesState):
            training["carried_state"] = self.world.gather_streams(self.model.carried_state())
        self._write("last.pt", Checkpoint(self.model.state_dict(), self.texts, training=training))

    def _write(self, name: str, checkpoint: Checkpoint) -> None:
        if self.world.main:
            save_checkpoint(self.folder / name, checkpoint)

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
        """Train to the end and return a dict of figures for each epoch.

        Raises KeyboardInterrupt after saving when a signal asked to stop, NumericsError when the
        loss or a weight is no longer finite (last.pt then holds the last good state).
        """
        state = self.progress
        bar = progress_bar(total=self.total_steps, done=state.step, show=self.show_progress)
        with bar, Interruption() as interruption:
            self._bar = bar
            while not state.finished:
                self._train_epoch(interruption)
                self.save()
                interruption.saved = True
                if any(self.world.any(interruption.requested)):
                    raise KeyboardInterrupt
                self.finish_epoch()
                interruption.saved = False
        return state.history

    def _train_epoch(self, interruption: Interruption) -> None:
        """Take the epoch's remaining steps, saving now and then."""
        self.order.epoch, self.order.position = self.progress.epoch, self.progress.position
        self.begin_epoch()
        batches = self.timing.waits(iter(self.loader))
        while group := list(islice(batches, self.settings.accumulation)):
            if self.take(group, asked_to_stop=interruption.requested):
                raise KeyboardInterrupt

    def begin_epoch(self) -> None:
        """Make ready for `take`: at an epoch's first batch, or after a resume within it."""
        self.model.train()
        self._running.zero_()
        self._saved = self._counted = time.monotonic()

    def take(self, group: Sequence[Batch | None], *, asked_to_stop: bool = False) -> bool:
        """One step over a group of batches, its figures, and last.pt where it is due; whether a
        process was asked to stop, for which all have then saved."""
        state, settings = self.progress, self.settings
        with self.timing.step(), self.random.used():
            tokens = self.step(group, state.step, self._running)
        state.step += 1
        state.position += len(group)
        state.tokens += tokens
        self._bar.update()
        last = state.position == len(self.order)
        late = time.monotonic() - self._saved > 60 * settings.checkpoint_minutes
        # Clocks and signals are each process's own: what one of them asks for, all do.
        late, stop = self.world.any(late, asked_to_stop)
        due = late or (settings.checkpoint_steps and state.step % settings.checkpoint_steps == 0)
        if last or due or stop or state.step % settings.log_steps == 0:
            self._account()
        if stop or (due and not last):
            self.save()
            self._saved = time.monotonic()
        return stop

    def stop(self) -> None:
        """Save within an epoch, for a resume to go on from."""
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
        self._bar.set_postfix_str(f"epoch {state.epoch + 1} loss {loss:.3f} {rate:,.0f} tokens/s")
        if self.writer is not None:
            self.writer.add_scalar("train/loss", loss, state.step)
            factor = self.step.settings.rate_factor(state.step - 1)
            base = self.optimizer.param_groups[0]["base_lr"]
            self.writer.add_scalar("train/lr", base * factor, state.step)
            self.writer.add_scalar("train/tokens_per_second", rate, state.step)

    def finish_epoch(self) -> None:
        """Validate, keep the best, write the history, turn to the next epoch and save."""
        state, settings = self.progress, self.settings
        with self.average.in_place() if self.average is not None else nullcontext():
            metrics, better = self._validate()
        state.validations_since_best = 0 if better else state.validations_since_best + 1
        figures = {
            "epoch": state.epoch + 1,
            "step": state.step,
            "train_loss": state.loss_sum / max(1, state.tokens),
            "seconds": state.seconds,
            **metrics,
        }
        state.history = [*state.history, figures]
        if self.world.main:
            write_json(self.folder / "history.json", state.history)
            self._report(figures, better)
            self.timing.finish_epoch(state.epoch + 1, state.step, state.tokens)
        else:
            self.timing.start_epoch()
        stop = settings.patience is not None and state.validations_since_best >= settings.patience
        if stop:
            self._say(
                "stopping early: no better %s in %d epochs", settings.best_metric, settings.patience
            )
        state.epoch += 1
        state.position, state.loss_sum, state.tokens, state.seconds = 0, 0.0, 0, 0.0
        state.finished = stop or state.epoch >= settings.epochs
        self.save()

    def _validate(self) -> tuple[dict[str, float], bool]:
        """The figures of the model as it stands, kept as best.pt if they are the best so far."""
        state, settings = self.progress, self.settings
        self.model.eval()
        with self.timing.during("validation"):
            metrics = self.world.gather(self.validate(state.step))[0]  # the same to the last bit
        score = self._score(metrics)
        sign = -1 if settings.lower_is_better else 1
        better = state.best is None or sign * score > sign * state.best
        kept = Checkpoint(self.model.state_dict(), self.texts, scores=metrics)
        if better:
            state.best = score
            self._write("best.pt", kept)
        if settings.keep_epochs:
            self._write(f"epoch_{state.epoch + 1}.pt", kept)
            old = self.folder / f"epoch_{state.epoch + 1 - settings.keep_epochs}.pt"
            old.unlink(missing_ok=True)
        return metrics, better

    def _score(self, metrics: dict[str, float]) -> float:
        """The metric that decides which epoch is the best."""
        name = self.settings.best_metric
        if name not in metrics:
            raise ConfigError(f"best_metric {name!r} is not among {', '.join(metrics)}")
        if math.isnan(metrics[name]):  # it would compare as neither better nor worse for ever
            raise NumericsError(f"{name} is NaN after step {self.progress.step}; {self._advice()}")
        return metrics[name]

    def _report(self, figures: dict[str, float], better: bool) -> None:
        shown = ", ".join(f"{k} {v:.4g}" for k, v in figures.items() if k not in ("epoch", "step"))
        self._say("epoch %d: %s%s", figures["epoch"], shown, " (best so far)" if better else "")
        if self.writer is not None:
            for name, value in figures.items():
                if name not in ("epoch", "step"):
                    self.writer.add_scalar(f"epoch/{name}", value, figures["step"])
            self.writer.flush()

    def _say(self, message: str, *values: Any) -> None:
        log.info(f"{self.name}: {message}" if self.name else message, *values)
