"""A stream cut into windows gives what one long window gives; documents do not see each other."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from captioner.data.text.windows import window_batch
from captioner.models.language_model import LanguageModel
from captioner.models.rnn import RNN_KINDS
from captioner.models.stream import StreamModel

V, BOS = 11, 1


def make(kind: str = "lstm", **settings: object) -> StreamModel:
    torch.manual_seed(0)
    arguments = {"vocab_size": V, "embedding_dim": 5, "hidden_size": 6, "num_layers": 2, **settings}
    model = LanguageModel(kind=kind, **arguments)  # type: ignore[arg-type]
    for parameter in model.parameters():
        parameter.data.uniform_(-1, 1)  # so that the state matters
    return StreamModel(model)


def losses(model: StreamModel, tokens: Tensor, window: int) -> float:
    """Mean loss of tokens [B, L + 1], window after window."""
    total, length = 0.0, tokens.shape[1] - 1
    for start in range(0, length, window):
        part = tokens[:, start : min(start + window, length) + 1]
        batch = window_batch(part, bos=BOS, fresh=start == 0)
        loss = F.cross_entropy(model(*batch.model_inputs), batch.targets, reduction="sum")
        total += float(loss.detach())
    return total / (length * len(tokens))


def some_tokens(documents: bool) -> Tensor:
    tokens = torch.randint(4, V, (4, 61), generator=torch.Generator().manual_seed(1))
    if documents:
        tokens[0, 17] = tokens[0, 18] = tokens[2, 40] = tokens[3, 10] = tokens[3, 33] = BOS
    return tokens


@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("kind", RNN_KINDS)
def test_windows_with_the_state_carried_over_are_one_long_window(
    kind: str, documents: bool
) -> None:
    model, tokens = make(kind), some_tokens(documents)
    whole = losses(model, tokens, 60)
    for window in (1, 7, 10, 59):
        assert losses(model, tokens, window) == pytest.approx(whole, abs=1e-6)
    forgetful = make(kind)
    forgetful.keep = lambda state, last_sequences: None  # type: ignore[method-assign]
    assert abs(losses(forgetful, tokens, 7) - whole) > 1e-3


@pytest.mark.parametrize("kind", RNN_KINDS)
def test_a_document_is_read_as_if_it_were_alone(kind: str) -> None:
    model, tokens = make(kind), some_tokens(True)[3]  # bos at 10 and 33
    pieces = [tokens[:11], tokens[10:34], tokens[33:]]
    sizes = [len(piece) - 1 for piece in pieces]
    alone = [losses(model, piece.unsqueeze(0), 99) for piece in pieces]
    expected = sum(n * one for n, one in zip(sizes, alone, strict=True)) / 60
    for window in (6, 60):
        assert losses(model, tokens.unsqueeze(0), window) == pytest.approx(expected, abs=1e-6)


def test_the_gradient_stops_at_the_window() -> None:
    model, tokens = make(), some_tokens(False)
    first = window_batch(tokens[:, :11], bos=BOS, fresh=True)
    second = window_batch(tokens[:, 10:21], bos=BOS, fresh=False)
    model(*first.model_inputs)
    carried = model.carried_state()
    assert all(not one.requires_grad and one.shape == (2, 4, 6) for one in carried)
    found = torch.autograd.grad(model(*second.model_inputs).sum(), [*model.parameters()])
    again = make()
    again.load_carried_state(carried)
    expected = torch.autograd.grad(again(*second.model_inputs).sum(), [*again.parameters()])
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_the_carried_state_is_no_weight() -> None:
    model = make()
    names = set(model.state_dict())
    model(*window_batch(some_tokens(False), bos=BOS, fresh=True).model_inputs)
    assert (
        set(model.state_dict())
        == names
        == {f"language_model.{n}" for n in model.language_model.state_dict()}
    )
