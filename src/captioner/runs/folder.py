"""The folder of a training run: which run owns it, and whether a run may continue in it."""

from pathlib import Path
from typing import Any

from captioner.data.vocabulary import Vocabulary
from captioner.errors import ConfigError
from captioner.files import atomic_write, read_json, write_json
from captioner.restore import Json, restore, shown
from captioner.runs.upgrade import upgrade

CONFIG = "config.json"
CHECKPOINTS = ("last.pt", "best.pt")
# What may differ when a run is resumed: nothing that decides its result.
FREE = (
    "name",
    "resume",
    "run_dir",
    "sweep_dir",
    "trainer.progress",
    "trainer.profile",
    "trainer.checkpoint_minutes",
    "trainer.log_steps",
    "trainer.scoring",
)
# Later settings, with the values that a run which began without them is taken to have.
LATER = {
    "trainer.graph": "auto",
    "encoder.reader": "auto",
    "encoder.cache_dtype": "float32",
    "encoder.views": ["original"],
    "encoder.weight_decay": None,
    "encoder.schedule": None,
    "encoder.warmup_steps": None,
    "encoder.unfreeze_epochs": None,
    "encoder.crop": 0,
    "encoder.init_from": None,
    "model.kind": "show_and_tell",
    "model.embedding_dropout": 0.0,
    "model.recurrent_dropout": 0.0,
    "model.activation_regularisation": 0.0,
    "model.temporal_activation_regularisation": 0.0,
    "generation.rerank": "none",
    "generation.document_frequencies": None,
    "init_from": None,
    "trainer.random_windows": False,
    "trainer.scale_lr_by_window": False,
    "trainer.objective": "cross_entropy",
    "trainer.halving_epoch": None,
    "trainer.halving_factor": 3,
    "trainer.scheduled_sampling": 0.0,
    "trainer.scheduled_sampling_increase": 0.05,
    "trainer.scheduled_sampling_start": 0,
    "reward.samples": 5,
    "reward.search": "sample",
    "reward.meteor": 0.0,
    "reward.cider": 1.0,
    "reward.bleu": 0.0,
    "reward.eos": True,
    "reward.baseline": "others",
    "reward.normalise": False,
    "reward.cross_entropy": 0.0,
    "reward.max_length": 30,
}
# The same of runs that train an encoder; the others have None.
LATER_OF_TRAINED = {"encoder.frozen_stages": "computed", "encoder.batch_norm": "averaged"}


class FolderTaken(ConfigError):
    """The folder is another run's, or another process trains in it; nothing in it was touched."""


def claim_run_folder(folder: Path, resolved: dict[str, Any], *, resume: bool) -> None:
    """Write the resolved configuration into a new run's folder; refuse a folder with another run.

    Raises FolderTaken when it holds a run and `resume` is false, when the configuration differs
    from that of the run to resume (naming the keys), or when it holds checkpoints and nothing says
    of which run; ConfigError for a name that is no UTF-8; DataError when it cannot be written.
    """
    name = str(folder)
    if name != name.encode("utf-8", "ignore").decode():
        raise ConfigError(f"run_dir must be a name in UTF-8, as TensorBoard needs it, got {name!r}")
    path = folder / CONFIG
    if not path.exists():
        if left := [name for name in CHECKPOINTS if (folder / name).exists()]:
            raise FolderTaken(
                f"{folder} holds {' and '.join(left)} of a run whose {CONFIG} is not there; take "
                "another run_dir"
            )
        write_json(path, resolved)
        return
    if not resume:
        raise FolderTaken(
            f"{folder} already holds a run; add resume=true to continue it, or take another run_dir"
        )
    check_same_run(folder, resolved)


def check_same_run(folder: Path, resolved: dict[str, Any]) -> None:
    """Raise FolderTaken, naming the keys, where the folder holds a run of another configuration."""
    path = folder / CONFIG
    if not path.exists():
        return
    now = flat(resolved)
    stored = flat(upgrade(read_config(path)))
    trained = stored.get("encoder.train_from") is not None
    of_trained = {key: value if trained else None for key, value in LATER_OF_TRAINED.items()}
    later = {key: value for key, value in {**LATER, **of_trained}.items() if key in now}
    before = {**later, **stored}
    differing = [
        f"{shown(key)} was {before.get(key)!r}, now {now.get(key)!r}"
        for key in sorted({*before, *now})
        if before.get(key) != now.get(key) and key not in FREE
    ]
    if differing:
        raise FolderTaken(f"{folder} cannot be resumed with other settings: {'; '.join(differing)}")


def read_config(path: Path) -> dict[str, Any]:
    """A stored configuration; DataError where the file is none."""
    tree: dict[str, Any] = restore(dict[str, Json], read_json(path, file_names=True), str(path))
    return tree


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys joined by dots."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            leaves |= flat(value, f"{prefix}{key}.")
        else:
            leaves[prefix + key] = value
    return leaves


def write_vocabulary(folder: Path, vocabulary: Vocabulary) -> None:
    """The run's vocabulary in vocabulary.json, to be read by people."""
    with atomic_write(folder / "vocabulary.json", "w") as handle:
        handle.write(vocabulary.to_json())


def summary_writer(folder: Path) -> Any:
    """The run's TensorBoard writer."""
    # Imported late: it takes seconds, and only a training run needs it.
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder / "tensorboard"))
