"""The captioner: its features, its gradients, and that it can learn a batch by heart."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from captioner.data.packed import TokenStore
from captioner.generation import Constraints, beam_search, greedy
from captioner.models.captioner import Captioner
from captioner.models.language_model import DropoutRates, LanguageModel
from captioner.ops.extension import ABSENT

BOS, EOS, V, F = 1, 2, 9, 6
CAPTIONS = [[4, 5, 6, 7], [5, 4], [8, 8, 3, 8, 5], [6]]


def make(*, hidden: int = 16, **settings: object) -> Captioner:
    torch.manual_seed(0)
    model = LanguageModel(vocab_size=V, embedding_dim=hidden, hidden_size=hidden)
    return Captioner(language_model=model, feature_dim=F, **settings)  # type: ignore[arg-type]


def make_batch(regions: int = 1) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """images, image_rows, inputs, batch_sizes and targets; caption k describes image k."""
    images = torch.randn(4, regions, F, generator=torch.Generator().manual_seed(1))
    tokens, rows = TokenStore(CAPTIONS, bos=BOS, eos=EOS).pack(torch.arange(4))
    return images, rows, tokens.inputs, tokens.batch_sizes, tokens.targets


@pytest.mark.parametrize("regions", [1, 3])
def test_a_packed_batch_gives_what_each_caption_gives_alone(regions: int) -> None:
    model = make().double()
    images, rows, inputs, batch_sizes, targets = make_batch(regions)
    images = images.double()
    loss = model.loss(images, rows, inputs, batch_sizes, targets)
    alone = 0.0
    for image, caption in enumerate(CAPTIONS):
        words = torch.tensor([BOS, *caption, EOS])
        logits = model(
            images[image : image + 1], torch.zeros(1, dtype=torch.int64),
            words[:-1], torch.ones(len(words) - 1, dtype=torch.int64),
        )  # fmt: skip
        alone += nn.functional.cross_entropy(logits, words[1:], reduction="sum")
    torch.testing.assert_close(loss, alone, rtol=1e-10, atol=1e-10)


def test_captions_of_one_image_share_its_row() -> None:
    model = make().double()
    images, _, inputs, batch_sizes, _ = make_batch()
    images = images.double()
    shared = model(images[:2], torch.tensor([1, 0, 1, 1]), inputs, batch_sizes)
    repeated = model(images[[1, 0, 1, 1]], torch.arange(4), inputs, batch_sizes)
    torch.testing.assert_close(shared, repeated, rtol=1e-10, atol=1e-10)


def test_the_whole_gradient_is_that_of_finite_differences() -> None:
    model = make(hidden=2).double()
    images, rows, inputs, batch_sizes, targets = make_batch(regions=2)
    names = [name for name, _ in model.named_parameters()]

    def loss(features: Tensor, *parameters: Tensor) -> Tensor:
        named = dict(zip(names, parameters, strict=True))
        logits = torch.func.functional_call(model, named, (features, rows, inputs, batch_sizes))
        return cross_entropy(logits, targets, reduction="sum", label_smoothing=0.1)

    leaves = [p.detach().clone().requires_grad_() for p in model.parameters()]
    assert torch.autograd.gradcheck(loss, (images.double().requires_grad_(), *leaves))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_the_cross_entropy_of_the_logits(smoothing: float) -> None:
    model = make()
    *inputs, targets = make_batch()
    loss = model.loss(*inputs, targets, label_smoothing=smoothing)
    expected = cross_entropy(model(*inputs), targets, reduction="sum", label_smoothing=smoothing)
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("regions", [1, 2])
def test_one_batch_is_learnt_by_heart_and_decoded_exactly(regions: int) -> None:
    model = make()
    images, rows, inputs, batch_sizes, targets = make_batch(regions)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    for _ in range(150):
        optimizer.zero_grad()
        loss = model.loss(images, rows, inputs, batch_sizes, targets)
        (loss / len(targets)).backward()
        optimizer.step()
    assert loss / len(targets) < 0.02
    model.eval()
    constraints = Constraints(bos=BOS, eos=EOS, max_length=8)
    for decoder in (greedy, partial(beam_search, beam_size=3)):
        with torch.no_grad():
            found = decoder(model.step, model.start(images), constraints, batch_size=4)
        assert [list(one[0].token_ids) for one in found] == CAPTIONS
        assert all(one[0].finished for one in found)


def test_the_start_state_is_that_of_reading_the_image_as_a_word() -> None:
    model = make().double()
    images = torch.randn(3, 2, F, dtype=torch.float64)
    lstm = nn.LSTM(16, 16).double()
    lstm.load_state_dict(model.language_model.lstm.state_dict())
    _, expected = lstm(model.image_projection(images).transpose(0, 1))
    torch.testing.assert_close(model.start(images), expected, rtol=1e-10, atol=1e-10)


def test_feature_norms_are_what_their_names_say() -> None:
    images = 5 + 3 * torch.randn(200, 1, F)
    images[0, 0, 0] = 1e4
    seen: list[Tensor] = []
    for norm in ("standardise", "l2", "none"):
        model = make(feature_norm=norm)
        model.image_projection.register_forward_pre_hook(lambda _, x: seen.append(x[0]))
        model.set_feature_statistics(torch.full((F,), 5.0), torch.full((F,), 3.0))
        model.embed_images(images)
    standardised, unit, same = seen
    expected = (images - 5) / 3
    expected[0, 0, 0] = 6
    torch.testing.assert_close(standardised, expected)
    torch.testing.assert_close(unit.norm(dim=-1), torch.ones(200, 1))
    torch.testing.assert_close(unit * images.norm(dim=-1, keepdim=True), images)
    assert torch.equal(same, images)


def test_a_constant_feature_is_not_divided_by_zero() -> None:
    model = make()
    model.set_feature_statistics(torch.zeros(F), torch.zeros(F))
    assert torch.isfinite(model.embed_images(torch.zeros(1, 1, F))).all()


def test_feature_statistics_travel_with_the_weights() -> None:
    model, other = make(), make()
    model.set_feature_statistics(torch.arange(F).float(), torch.full((F,), 2.0))
    other.load_state_dict(model.state_dict())
    assert other.feature_mean.tolist() == list(range(F))
    assert other.feature_std.tolist() == [2.0] * F


def test_feature_dropout_acts_in_training_only() -> None:
    model = make(feature_dropout=0.5)
    images = torch.randn(2, 1, F)
    assert not torch.equal(model.embed_images(images), model.embed_images(images))
    model.eval()
    assert torch.equal(model.embed_images(images), make().embed_images(images))


def test_an_unknown_feature_norm_is_refused() -> None:
    with pytest.raises(ValueError, match="one of standardise, l2, none, got 'unit'"):
        make(feature_norm="unit")


class TinyEncoder(nn.Module):
    """Images [I, 3, S, S] -> features [I, 1, F]."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, F, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.convolution(images).mean((2, 3)).unsqueeze(1)


def test_a_trained_encoder_takes_images_and_gets_gradients() -> None:
    model = make(encoder=TinyEncoder())
    _, rows, inputs, batch_sizes, targets = make_batch()
    model.loss(torch.randn(4, 3, 8, 8), rows, inputs, batch_sizes, targets).backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    assert all(g is not None and g.any() for g in gradients.values())
    assert any(name.startswith("encoder.") for name in gradients)


def curve(backend: str, steps: int = 50, compiled: bool = False) -> list[float]:
    """Losses of a captioner trained from one seed, dropout included."""
    torch.manual_seed(0)
    language = LanguageModel(
        vocab_size=V, embedding_dim=24, hidden_size=24, num_layers=2, backend=backend,
        dropout=DropoutRates(output=0.2),
    )  # fmt: skip
    model = Captioner(language_model=language, feature_dim=F)
    run = torch.compile(model.loss, backend="aot_eager") if compiled else model.loss
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    images, rows, inputs, batch_sizes, targets = make_batch()
    losses = []
    for _ in range(steps):
        loss = run(images, rows, inputs, batch_sizes, targets)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.skipif(ABSENT is not None, reason=str(ABSENT))
def test_every_backend_trains_alike() -> None:
    """The curves differ by rounding alone: float32, 50 steps, each of which learns."""
    fused, theirs, twin = curve("fused"), curve("torch"), curve("reference")
    assert fused[-1] < 0.5 * fused[0]
    assert fused == pytest.approx(theirs, rel=1e-3)
    assert fused == pytest.approx(twin, rel=1e-3)
    assert fused[:5] == pytest.approx(theirs[:5], rel=1e-5)


@pytest.mark.filterwarnings("ignore:Dynamo")
def test_a_compiled_captioner_trains_alike() -> None:
    backend = "reference" if ABSENT else "fused"
    torch._dynamo.reset()
    try:
        assert curve(backend, 3, compiled=True) == pytest.approx(curve(backend, 3), rel=1e-5)
    finally:
        torch._dynamo.reset()
