"""trainer.graph: whether a CUDA graph can hold a run's steps, and its data on the device."""

import logging
from typing import Any

import torch

from captioner import config as schema
from captioner.build.memory import require_memory
from captioner.data.dataset import BatchOrder, CaptionDataset
from captioner.data.resident import ResidentCaptions, token_capacities
from captioner.errors import ConfigError
from captioner.features.source import CachedFeatures
from captioner.ops import choose_backend
from captioner.training.distributed import World

log = logging.getLogger(__name__)
SHARE = 0.5  # of a GPU's free memory that the data may take


def resident_captions(
    config: schema.TrainConfig,
    dataset: CaptionDataset,
    order: BatchOrder,
    device: torch.device,
    world: World,
) -> ResidentCaptions | None:
    """The data on the device where steps are to be captured as a graph, else None.

    Says which and why. ConfigError where trainer.graph=on asks for what cannot be.
    """
    if not wants_graph(config, device, why_not(config, dataset.source, device, world)):
        return None
    # A learning rate, and with trainer.ema a decay, of every step lie on the device.
    steps = {"trainer.epochs": config.trainer.epochs}
    need = 16 * len(order)
    require_memory("the schedule", steps, lambda x: need * x["trainer.epochs"], device)
    source = dataset.source
    assert isinstance(source, CachedFeatures)
    capacities = token_capacities(dataset.tokens_per_row, order.batch_size, seed=config.seed)
    log.info("token capacity of a batch: %d, or %d where that is too small", *capacities)
    return ResidentCaptions(
        dataset,
        batch_size=order.batch_size,
        features=source.whole(device),
        device=device,
        capacities=capacities,
    )


def wants_graph(config: schema.TrainConfig, device: torch.device, obstacle: str | None) -> bool:
    """Whether to capture steps, logged with the reason; ConfigError where graph=on cannot be."""
    if config.trainer.graph == "off":
        return False
    if config.trainer.graph == "on":
        if obstacle is not None:
            raise ConfigError(f"trainer.graph=on cannot be: {obstacle}")
        how = "captured" if device.type == "cuda" else "run as it is, for there is no GPU"
        log.info("training step: whole, as one CUDA graph, %s", how)
        return True
    if device.type != "cuda":
        obstacle = "there is no GPU"
    # The graph takes over once benchmarks/results/gpu has a record of it.
    reason = obstacle or "the graph has not been measured on a GPU yet; trainer.graph=on takes it"
    log.info("training step: part by part (%s)", reason)
    return False


def why_not(
    config: schema.TrainConfig, source: Any, device: torch.device, world: World
) -> str | None:
    """Why the step cannot be held by a graph, in a sentence, or None."""
    if not isinstance(source, CachedFeatures) or config.encoder.train_from is not None:
        return "the encoder is trained"
    if config.rnn.kind != "lstm":
        return f"rnn.kind={config.rnn.kind} takes the lengths of captions from the host"
    if config.model.feedback:
        return f"model={config.model.kind} feeds back: each step reads its length on the host"
    if config.trainer.objective == "reward":
        return "trainer.objective=reward draws sentences, whose lengths are read on the host"
    if config.trainer.scheduled_sampling:
        return "trainer.scheduled_sampling draws the words of each batch before its step"
    if config.trainer.replicas > 1 and device.type != "cuda":
        return f"trainer.replicas={config.trainer.replicas} have a step as one graph on a GPU alone"
    if world.size > 1:
        return f"{world.size} processes add up their gradients between the parts of a step"
    if device.type != "cuda":
        return None
    backend = choose_backend(config.model.backend, "cuda")
    if backend in ("reference", "plain"):
        return f"model.backend={backend} reads the captions' lengths on the host"
    needed = source.nbytes
    free = torch.cuda.mem_get_info(device)[0]
    if needed > SHARE * free:
        return (
            f"the features take {needed / 1e9:.1f} GB, more than {SHARE:.0%} of the "
            f"{free / 1e9:.1f} GB that are free on the GPU"
        )
    return None
