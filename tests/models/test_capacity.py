"""The captioner in the capacity form: the same loss and gradients, and nothing read by the host."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from host_reads import HostRead, no_host_reads
from torch import Tensor
from torch._subclasses import FakeTensorMode

from captioner.data.packed import TokenStore
from captioner.models.captioner import Captioner
from captioner.models.language_model import DropoutRates, LanguageModel
from captioner.ops.linear_cross_entropy import IGNORED

CAPTIONS = [[5, 6, 7], [8], [4, 5, 6, 7, 8], [9, 4]]
CAPACITY, STEPS, BATCH = 24, 9, 6  # 14 tokens in 6 steps, 4 captions


def captioner(backend: str = "auto", **settings: Any) -> Captioner:
    torch.manual_seed(0)
    model = LanguageModel(
        vocab_size=11, embedding_dim=6, hidden_size=8, num_layers=2, backend=backend, **settings
    )
    return Captioner(language_model=model, feature_dim=5)


def batch(by_image: bool) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Arguments of `loss` in the ordinary and in the capacity form."""
    store = TokenStore(CAPTIONS, bos=1, eos=2)
    tokens, rows = store.pack(torch.arange(len(CAPTIONS)))
    images = torch.randn(2 if by_image else 4, 1, 5, generator=torch.Generator().manual_seed(1))
    image_rows = rows // 2 if by_image else rows
    ordinary = (images, image_rows, tokens.inputs, tokens.batch_sizes, tokens.targets)
    count, sizes = len(tokens.inputs), tokens.batch_sizes
    inputs = torch.cat([tokens.inputs, torch.zeros(CAPACITY - count, dtype=torch.int64)])
    targets = torch.cat([tokens.targets, torch.full((CAPACITY - count,), IGNORED)])
    padded_rows = torch.cat([image_rows, torch.zeros(BATCH - len(rows), dtype=torch.int64)])
    sizes = torch.cat([sizes, torch.zeros(STEPS - len(sizes), dtype=torch.int64)])
    return ordinary, (images, padded_rows, inputs, sizes, targets)


def loss_and_gradients(
    model: Captioner, arguments: tuple[Tensor, ...], **settings: Any
) -> list[Tensor]:
    loss = model.loss(*arguments, **settings)
    return [loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))]


@pytest.mark.parametrize("by_image", [False, True])
@pytest.mark.parametrize("backend", ["auto", "reference", "torch"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_and_gradients_are_those_of_the_ordinary_form(
    by_image: bool, backend: str, smoothing: float
) -> None:
    model = captioner(backend).double()
    ordinary, padded = batch(by_image)
    wanted = loss_and_gradients(model, _double(ordinary), label_smoothing=smoothing)
    found = loss_and_gradients(model, _double(padded), label_smoothing=smoothing, capacity=True)
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)


def _double(arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(x.double() if x.is_floating_point() else x for x in arguments)


@pytest.mark.parametrize("by_image", [False, True])
@pytest.mark.parametrize("variational", [False, True])
@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_nothing_is_read_by_the_host(by_image: bool, variational: bool, backend: str) -> None:
    model = captioner(backend, dropout=DropoutRates(0.2, 0.2, 0.2, variational, 0.2, 0.2))
    ordinary, padded = batch(by_image)
    with no_host_reads():
        loss_and_gradients(model, padded, capacity=True)
    with pytest.raises(HostRead), no_host_reads():
        loss_and_gradients(model, ordinary)


def test_the_mode_sees_what_reads_the_host() -> None:
    x = torch.arange(4)
    reads = {
        "item": lambda: x[0].item(),
        "int": lambda: int(x[1]),
        "bool": lambda: bool(x[0]),
        "tolist": x.tolist,
        "nonzero": x.nonzero,
        "mask": lambda: x[x > 1],
        "numpy": x.numpy,
        "unique": lambda: torch.unique(x),
        "equal": lambda: torch.equal(x, x),
        "cpu": x.cpu,
        "where": lambda: torch.where(x > 1),
        "if": lambda: 1 if x[0] else 0,
    }
    for name, read in reads.items():
        with pytest.raises(HostRead), no_host_reads():
            read()
            pytest.fail(f"{name} was not noticed")
    with no_host_reads():
        x.cumsum(0).sort()
        x[1:3] + x[None, :2]


@pytest.mark.parametrize("by_image", [False, True])
@pytest.mark.parametrize("variational", [False, True])
@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_every_tensor_is_made_on_the_device(
    backend: str, by_image: bool, variational: bool
) -> None:
    """Of a GPU that is not there: a tensor left on the CPU cannot meet those on the device."""
    _, padded = batch(by_image)
    with FakeTensorMode() as mode, torch.device("cuda"):
        model = captioner(backend, dropout=DropoutRates(0.2, 0, 0, variational, 0.2, 0.2))
        on_device = [mode.from_tensor(x).to("cuda") for x in padded]
    with mode, torch.backends.cudnn.flags(enabled=False):  # cuDNN would ask the GPU
        assert model.loss(*on_device, label_smoothing=0.1, capacity=True).device.type == "cuda"


@pytest.mark.parametrize("kind", ["gru", "rnn_tanh"])
def test_other_networks_refuse(kind: str) -> None:
    model = captioner(kind=kind)
    with pytest.raises(ValueError, match="capacity needs an LSTM, this is"):
        model.loss(*batch(False)[1], capacity=True)
