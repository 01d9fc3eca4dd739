"""Equal parameters to a percent, and figures of every kind, which a second start only reads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks import kinds
from captioner.data.text import files as text_files
from captioner.files import file_digest


def test_the_kinds_have_equal_parameters() -> None:
    widths = kinds.equal_widths(256, 2)
    assert widths["lstm"] == 256 < widths["gru"] < widths["rnn_tanh"]
    counts = [kinds.parameters(kind, width, 2) for kind, width in widths.items()]
    assert max(counts) / min(counts) < 1.03


@pytest.mark.slow
def test_every_kind_is_trained_with_every_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.txt"
    path.write_text("to be or not to be\n" * 200)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(text_files, "SHAKESPEARE_SHA256", file_digest(path))
    settings = kinds.KindsBenchmark(
        path=str(path),
        folder=str(tmp_path / "runs"),
        hidden_size=8,
        num_layers=1,
        minutes=0.002,
        seeds=[0, 1],
        lrs=[1e-2, 1e-3],
        batch_size=4,
        window=8,
        dropout=0.0,
    )
    result = kinds.kinds_suite(settings)
    losses = [one for one in result.figures if one.what == "validation loss"]
    assert [one.implementation for one in losses] == list(kinds.KINDS)
    assert all(len(set(one.spread.values)) == 2 and max(one.spread.values) < 5 for one in losses)
    monkeypatch.setattr(torch.optim.Adam, "step", None)  # nothing is trained again
    monkeypatch.setattr(kinds, "KINDS", ("lstm",))
    again = kinds.kinds_suite(settings).figures
    assert again == [one for one in result.figures if one.implementation == "lstm"]
