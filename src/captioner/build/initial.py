"""Starting from a trained model: `init_from`."""

import json
import logging
from pathlib import Path
from typing import Any

import torch
from torch import nn

from captioner.build.checkpoint import stored_config, stored_identity, stored_vocabulary
from captioner.build.components import encoder_weights, trained_encoder
from captioner.build.models import chosen_norm
from captioner.data.vocabulary import Vocabulary
from captioner.errors import CheckpointError
from captioner.models.base_captioner import BaseCaptioner
from captioner.training.checkpoint import Checkpoint
from captioner.training.model_folder import ENCODER, open_checkpoint

log = logging.getLogger(__name__)


def start_from(path: str, model: nn.Module, vocabulary: Vocabulary, texts: dict[str, str]) -> None:
    """Take the weights at `path` (a checkpoint, a run's folder or a model folder) into a new model,
    and say which; `texts` are what the new run's checkpoints hold.

    Tensors that only one of the two has are left as they are, and named; a trained encoder begins
    as the frozen one that the checkpoint's features are of. Raises CheckpointError where the
    vocabularies differ, where the images' features are another encoder's or normalised otherwise,
    where a tensor has another shape, where the two share none, or where frozen stages are not those
    whose output is cached.
    """
    checkpoint = open_checkpoint(path)
    _check_vocabulary(path, checkpoint, vocabulary)
    _check_features(path, checkpoint, texts, model)
    _check_norm(path, checkpoint, model)
    own, given = model.state_dict(), checkpoint.model
    shared = [name for name in own if name in given]
    wrong = [name for name in shared if own[name].shape != given[name].shape]
    if wrong or not shared:
        reason = "they share no tensor"
        if wrong:
            found, expected = list(given[wrong[0]].shape), list(own[wrong[0]].shape)
            reason = (
                f"{wrong[0]} is {found} there and {expected} here ({len(wrong)} tensors differ)"
            )
        raise CheckpointError(f"init_from={path} does not fit this model: {reason}")
    with torch.no_grad():
        for name in shared:
            own[name].copy_(given[name])
    _check_frozen_stages(path, model, texts)
    score = ", ".join(f"{name} {x:.1f}" for name, x in _scores(checkpoint).items())
    log.info(
        "weights: %d of %d tensors from %s%s; the optimiser starts fresh",
        len(shared),
        len(own),
        path,
        f" ({score} on dev)" if score else "",
    )
    missing = [name for name in own if name not in given]
    of_encoder = [name for name in missing if name.startswith(ENCODER)]
    for names, what in (
        (of_encoder, "those of the encoder whose features it was trained on"),
        ([name for name in missing if name not in of_encoder], "not there, initialised"),
        ([x for x in given if x not in own], "there only, left"),
    ):
        if names:
            more = ", ..." if len(names) > 3 else ""
            log.info("weights: %d tensors %s: %s%s", len(names), what, ", ".join(names[:3]), more)


def resumes(run_dir: str, resume: bool) -> bool:
    """Whether a run continues from its own last.pt."""
    return resume and (Path(run_dir) / "last.pt").exists()


def _scores(checkpoint: Checkpoint) -> dict[str, float]:
    return {k: checkpoint.scores[k] for k in ("BLEU-4", "CIDEr-D") if k in checkpoint.scores}


def _check_vocabulary(path: str, checkpoint: Checkpoint, vocabulary: Vocabulary) -> None:
    there = stored_vocabulary(checkpoint, path).tokens
    here = vocabulary.tokens
    if there == here:
        return
    only_there, only_here = sorted({*there} - {*here}), sorted({*here} - {*there})
    counts = f"{len(only_there)} of its {len(there)} tokens are not among the {len(here)} here"
    raise CheckpointError(
        f"init_from={path} has another vocabulary: {counts}, {len(only_here)} of these are not "
        f"there{_example(only_there or only_here)}; no word's weights are taken from it: train "
        "from it with the same captions and vocabulary settings"
    )


def _example(words: list[str]) -> str:
    return f" (for example {words[0]!r})" if words else ", and the order is another"


def _check_features(
    path: str, checkpoint: Checkpoint, texts: dict[str, str], model: nn.Module
) -> None:
    """The weights only mean something to the features that they were trained on."""
    if "encoder" not in texts or "encoder" not in checkpoint.texts:
        return
    there: Any = stored_identity(checkpoint, path)
    here = json.loads(texts["encoder"])
    encoder = getattr(model, "encoder", None)
    if there["kind"] == "frozen" and encoder is not None:  # what the trained one begins as
        here |= {"kind": "frozen", "name": encoder.name, "fingerprint": encoder.fingerprint()}
    if there["kind"] == here["kind"] != "frozen":
        return
    if there["kind"] == "trained":
        source = json.loads(texts["config"])["encoder"].get("init_from")
        if source is not None and _equal(trained_encoder(source), encoder_weights(checkpoint)):
            return  # the frozen encoder is the one that was trained there
        stage = stored_config(checkpoint, path)["encoder"].get("train_from")
        raise CheckpointError(
            f"init_from={path} has an encoder that was trained with it, and here the encoder is "
            f"frozen with other weights: give encoder.init_from={path}, or to go on training it "
            f"encoder.train_from={stage}"
        )
    differing = [key for key in here if there.get(key, here[key]) != here[key]]
    if differing:
        key = differing[0]
        raise CheckpointError(
            f"init_from={path} was trained on other features of images: {key} was "
            f"{there[key]!r}, here it is {here[key]!r}"
        )


def _equal(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def _check_norm(path: str, checkpoint: Checkpoint, model: nn.Module) -> None:
    """Nor to features that are normalised otherwise."""
    if not isinstance(model, BaseCaptioner):
        return
    norm = stored_config(checkpoint, path)["model"].get("feature_norm", "auto")
    trained = stored_identity(checkpoint, path)["kind"] == "trained"
    norm = chosen_norm(norm, trained=trained)
    if norm != model.feature_norm:
        raise CheckpointError(
            f"init_from={path} was trained with model.feature_norm={norm}, here it is "
            f"{model.feature_norm}: give model.feature_norm={norm}"
        )


def _check_frozen_stages(path: str, model: nn.Module, texts: dict[str, str]) -> None:
    """What is cached is of the stages that the model has now."""
    cached = json.loads(texts.get("encoder", "{}")).get("frozen_stages")
    encoder = getattr(model, "encoder", None)
    if cached is not None and encoder is not None and encoder.frozen_fingerprint() != cached:
        raise CheckpointError(
            f"init_from={path} has other weights before encoder.train_from than those whose output "
            "is cached: it was trained from an earlier stage on; train from that stage, or take "
            "encoder.frozen_stages=computed"
        )
