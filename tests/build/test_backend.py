"""A backend that computes in tensor cores only, in place of a GPU's: it refuses float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from composed import compose_config

from captioner.build import backend
from captioner.build.checkpoint import load_captioner
from captioner.build.trainer import build_trainer
from captioner.commands.trained import stored_generation
from captioner.errors import ConfigError
from captioner.models import lstm
from captioner.models.rnn import RNN_KINDS
from captioner.ops import choose_backend, linear_cross_entropy, lstm_packed
from captioner.training.trainer import Trainer

CONFIGS = Path(__file__).parents[2] / "configs"
CPU = torch.device("cpu")


@pytest.fixture
def tensor_cores(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The backend "persistent" on the CPU, for bfloat16 only; its calls."""
    seen: list[str] = []

    def packed(*tensors: Any, backend: str, **settings: Any) -> Any:
        if backend != "persistent":
            return lstm_packed(*tensors, backend=backend, **settings)
        if not torch.is_autocast_enabled("cpu"):
            raise ConfigError("the persistent LSTM multiplies float32 as TF32")
        seen.append(backend)
        return lstm_packed(*tensors, backend="reference", **settings)

    def chosen(requested: str, device: str) -> str:
        return choose_backend("reference" if requested == "persistent" else requested, device)

    monkeypatch.setattr(lstm, "lstm_packed", packed)
    monkeypatch.setattr(backend, "choose_backend", chosen)
    monkeypatch.setitem(linear_cross_entropy.__globals__, "choose_backend", chosen)
    return seen


def trainer(folder: Path, *overrides: str) -> Trainer:
    settings = [
        f"data.root={folder}/scenes",
        "data.train=20",
        "data.dev=4",
        "data.test=4",
        "data.size=32",
        "encoder=plain",
        "encoder.size=32",
        "encoder.train_from=null",
        f"run_dir={folder}/run",
        f"encoder.cache_dir={folder}/features",
        "model.hidden_size=8",
        "model.embedding_dim=8",
        "trainer.epochs=1",
        "trainer.batch_size=20",
        "trainer.progress=false",
        "device=cpu",
        "trainer.shown_pictures=0",
        "generation.max_length=5",
        "vocabulary.min_count=1",
        "trainer.precision=bf16",
        "model.backend=persistent",
    ]
    return build_trainer(compose_config("train", [*settings, *overrides], configs=CONFIGS))


@pytest.mark.parametrize("generation", ["greedy", "beam"])
def test_a_bfloat16_run_validates_and_its_model_captions(
    generation: str, tensor_cores: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger="captioner"):
        one = trainer(tmp_path, f"generation={generation}")
        history = one.run()
    assert tensor_cores and "persistent has no strict float32" in caplog.text
    assert history[0]["loss"] > 0 and "CIDEr-D" in history[0]
    assert one.model.language_model.lstm.backend == "persistent"  # type: ignore[union-attr]
    trained = load_captioner(tmp_path / "run" / "best.pt", device=CPU)
    images = torch.zeros(2, 1, trained.model.image_projection.in_features)
    own = stored_generation(trained.checkpoint)
    assert len(trained.generator(own).captions(images)) == 2


def test_other_backends_validate_with_what_they_trained_with(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("auto", "reference", "torch", "fused", "plain"):
        assert backend.float32_backend(name) == name
    assert backend.float32_backend("persistent") == "fused"
    monkeypatch.setenv("CAPTIONER_LSTM", "persistent")
    assert backend.float32_backend("auto") == "fused"
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        assert backend.float32_backend("persistent") == "persistent"
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("kind", RNN_KINDS)
def test_a_backend_that_cannot_run_is_refused_before_data_is_read(kind: str) -> None:
    with pytest.raises(ConfigError, match=r"'persistent' is for CUDA devices, this one is cpu"):
        backend.name_backend(kind, "persistent", CPU)
