"""What holds of every model that attends to regions: its steps are its loss, it sees its own image
alone, it learns a batch by heart."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import pytest
import torch
from attention_models import (
    BOS,
    CAPTIONS,
    EOS,
    IMAGE_OF,
    IMAGES,
    MODELS,
    F,
    R,
    make_batch,
    make_model,
    padded,
)
from host_reads import no_host_reads
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

from captioner.data.packed import TokenStore
from captioner.errors import ConfigError
from captioner.generation import Constraints, SamplingParams, beam_search, greedy, sample
from captioner.generation.hypothesis import repeat_rows, select_rows
from captioner.models.ensemble import Ensemble
from captioner.models.language_model import DropoutRates
from captioner.ops import dropout

FEEDBACK = ["show, attend and tell", "up-down"]
STATIC = [name for name in MODELS if "gru" not in name and name not in FEEDBACK]


def gradients(model: nn.Module, batch: tuple[Tensor, ...], **settings: object) -> list[Tensor]:
    """The loss, and the gradient of every parameter."""
    loss = model.loss(*batch, **settings)  # type: ignore[operator]
    return [loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("tabulated", [False, True])
def test_the_loss_step_by_step_is_the_loss_at_once(name: str, tabulated: bool) -> None:
    model = make_model(name).double().eval()
    batch = make_batch(torch.float64)
    expected = model.loss(*batch)
    found = torch.zeros((), dtype=torch.float64)
    with torch.no_grad():
        if tabulated:
            with model.tabulated():
                found = step_by_step(model, batch[0])
        else:
            found = step_by_step(model, batch[0])
    torch.testing.assert_close(found.to(expected.dtype), expected.detach(), rtol=1e-6, atol=0)


def step_by_step(model: nn.Module, images: Tensor) -> Tensor:
    """The captions' summed loss through start, reordered states and step, all captions at once."""
    state = select_rows(model.start(images), IMAGE_OF)  # type: ignore[operator]
    words = torch.nn.utils.rnn.pad_sequence(
        [torch.tensor([BOS, *caption, EOS]) for caption in CAPTIONS]
    )
    loss = torch.zeros((), dtype=torch.float64)
    for before, after in pairwise(words):
        log_probs, state = model.step(before, state)  # type: ignore[operator]
        chosen = log_probs.gather(1, after.unsqueeze(1)).squeeze(1)
        loss -= chosen[after != 0].double().sum()
    return loss


@pytest.mark.parametrize("name", MODELS)
def test_a_caption_sees_its_own_image_alone(name: str) -> None:
    model = make_model(name).double()
    images, rows, *tokens, _ = make_batch(torch.float64)
    order = torch.tensor([2, 0, 1])
    permuted = model(images[order], order.argsort()[rows], *tokens)
    torch.testing.assert_close(permuted, model(images, rows, *tokens), rtol=1e-12, atol=1e-12)
    other = images.clone()
    other[[0, 1]] += 1
    changed = (model(other, rows, *tokens) - model(images, rows, *tokens)).abs().amax(1) > 1e-12
    token_images = rows[[b for size in tokens[1].tolist() for b in range(size)]]
    assert torch.equal(changed, token_images != 2)


@pytest.mark.parametrize("name", MODELS)
def test_captions_of_one_image_share_its_row(name: str) -> None:
    model = make_model(name).double()
    images, rows, *tokens = make_batch(torch.float64)
    alone = (images[rows], torch.arange(len(rows)), *tokens)
    for shared, single in zip(
        gradients(model, (images, rows, *tokens)), gradients(model, alone), strict=True
    ):
        torch.testing.assert_close(shared, single, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", MODELS)
def test_the_whole_gradient_is_that_of_finite_differences(name: str) -> None:
    model = make_model(name).double()
    images, *rest = make_batch(torch.float64)
    names = [name for name, _ in model.named_parameters()]

    class Loss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, images: Tensor) -> Tensor:
            return model.loss(images, *rest, label_smoothing=0.1)

    def loss(images: Tensor, *parameters: Tensor) -> Tensor:
        held = {f"model.{name}": x for name, x in zip(names, parameters, strict=True)}
        return torch.func.functional_call(Loss(), held, (images,))

    leaves = [x.detach().clone().requires_grad_() for x in (images, *model.parameters())]
    assert torch.autograd.gradcheck(loss, leaves, fast_mode=True)


@pytest.mark.parametrize("name", STATIC)
@pytest.mark.parametrize("by_image", [False, True])
def test_the_static_shape_form_is_the_ordinary_one(name: str, by_image: bool) -> None:
    model = make_model(name).double()
    images, rows, *tokens = make_batch(torch.float64)
    batch = (images, rows, *tokens)
    static = padded(batch)
    if not by_image:
        static = (images[static[1]], torch.arange(len(static[1])), *static[2:])
    expected = gradients(model, batch, label_smoothing=0.1)
    with no_host_reads():
        found = gradients(model, static, label_smoothing=0.1, capacity=True)
    for ours, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", MODELS)
def test_feedback_has_no_static_shape_form(name: str) -> None:
    model = make_model(name)
    assert model.feedback == (name in FEEDBACK)
    if model.feedback:
        with pytest.raises(ValueError, match="capacity needs a model without feedback, not"):
            model.loss(*padded(make_batch()), capacity=True)


@pytest.mark.parametrize("name", STATIC)
@pytest.mark.parametrize("variational", [False, True])
def test_dropout_reads_nothing_on_the_host(name: str, variational: bool) -> None:
    attention = {"region_dropout": 0.2, "weight_dropout": 0.2}
    model = make_model(name, DropoutRates(0.2, 0.2, 0.2, variational, 0.2, 0.2), attention)
    batch = padded(make_batch())
    with no_host_reads():
        gradients(model, batch, capacity=True)


@pytest.mark.parametrize("name", STATIC)
@pytest.mark.parametrize("by_image", [False, True])
def test_every_tensor_is_made_on_the_device(name: str, by_image: bool) -> None:
    """Of a GPU that is not there: a tensor left on the CPU cannot meet those on the device."""
    images, rows, *tokens = padded(make_batch())
    batch = (
        (images, rows, *tokens) if by_image else (images[rows], torch.arange(len(rows)), *tokens)
    )
    attention = {"region_dropout": 0.2, "weight_dropout": 0.2}
    with FakeTensorMode() as mode, torch.device("cuda"):
        model = make_model(name, DropoutRates(0.2, 0.2, 0.2, True, 0.2, 0.2), attention)
        for module in model.modules():
            if "backend" in vars(module):
                module.backend = "reference"
        on_device = [mode.from_tensor(x).to("cuda") for x in batch]
    with mode:
        loss = model.loss(*on_device, label_smoothing=0.1, capacity=True)
        assert loss.device.type == "cuda"


@pytest.mark.parametrize("name", MODELS)
def test_every_dropout_changes_the_loss_in_training_alone(name: str) -> None:
    batch = make_batch()
    exact = make_model(name).loss(*batch)
    rates = [DropoutRates(**{key: 0.5}) for key in ("input", "output", "embedding")]
    rates.append(DropoutRates())
    for case in (*rates, "region_dropout", "weight_dropout", "feature_dropout"):
        given = case if isinstance(case, DropoutRates) else DropoutRates()
        attention = {case: 0.5} if case in ("region_dropout", "weight_dropout") else {}
        image = {"feature_dropout": 0.5} if case == "feature_dropout" else {}
        model = make_model(name, given, attention, **image)  # type: ignore[arg-type]
        assert (model.loss(*batch) == exact) == (case == DropoutRates())
        torch.testing.assert_close(model.eval().loss(*batch), exact)


@pytest.mark.parametrize("name", STATIC)
@pytest.mark.parametrize("by_image", [False, True])
def test_recurrent_dropout_has_one_mask_a_batch(name: str, by_image: bool) -> None:
    """The loss of weights that are masked by hand: images, words and sentinels read the same ones,
    also where an image is read once for all of its captions."""
    images, rows, *tokens = make_batch()
    batch = (images, rows, *tokens)
    if not by_image:
        batch = (images[rows], torch.arange(len(rows)), *tokens)
    model, masked = make_model(name, DropoutRates(recurrent=0.4)), make_model(name)
    torch.manual_seed(4)
    found = model.loss(*batch)
    torch.manual_seed(4)
    with torch.no_grad():
        first = masked.lstm if name == "adaptive" else masked.language_model.lstm
        for rnn in (first, getattr(masked, "second", None)):
            for weights in rnn.all_weights if rnn is not None else []:
                weights[1].copy_(dropout(weights[1], 0.4, True))
    torch.testing.assert_close(found, masked.loss(*batch))


@pytest.mark.parametrize("name", MODELS)
def test_one_batch_is_learnt_by_heart_and_generated_exactly(name: str) -> None:
    model = make_model(name, scale=0.3)
    images, _, *_ = make_batch()
    captions = CAPTIONS[:3]  # one an image: no two can both be the likeliest
    tokens, rows = TokenStore(captions, bos=BOS, eos=EOS).pack(torch.arange(IMAGES))
    batch = (images, rows, tokens.inputs, tokens.batch_sizes, tokens.targets)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.04)
    for _ in range(80):
        optimizer.zero_grad()
        loss = model.loss(*batch)
        loss.backward()
        optimizer.step()
    assert loss / len(tokens.targets) < 0.1
    model.eval()
    constraints = Constraints(bos=BOS, eos=EOS, max_length=8)
    diverse = partial(beam_search, beam_size=4, groups=2, diversity=0.1)
    drawn = partial(
        sample,
        samples=3,
        params=SamplingParams(top_k=1),
        generator=torch.Generator().manual_seed(0),
    )
    for method in (greedy, partial(beam_search, beam_size=3), diverse, drawn):
        with torch.inference_mode(), model.tabulated():
            found = method(model.step, model.start(images), constraints, batch_size=IMAGES)
        assert [list(one[0].token_ids) for one in found] == captions
    both = Ensemble([model, model])
    with torch.inference_mode(), both.tabulated():
        state = both.start([images, images])
        found = beam_search(both.step, state, constraints, batch_size=IMAGES, beam_size=3)
    assert [list(one[0].token_ids) for one in found] == captions


@pytest.mark.parametrize("name", MODELS)
def test_beams_share_keys_and_values(name: str) -> None:
    model = make_model(name).eval()
    state = model.start(make_batch()[0])
    beams = select_rows(repeat_rows(state, IMAGES, 5), torch.arange(7))
    assert beams[-1] is state[-1]
    assert beams[-2].tolist() == [[0, 0, 0, 0, 0, 1, 1]]
    assert model.step(torch.full((7,), BOS), beams)[0].shape[0] == 7


@pytest.mark.parametrize("name", MODELS)
def test_maps_are_distributions_over_the_regions(name: str) -> None:
    model = make_model(name)
    images, rows, inputs, sizes, _ = make_batch()
    maps = model.attention_maps(images, rows, inputs, sizes)
    assert maps.shape[0] == len(inputs) and maps.shape[1] in (R, R + 1)
    assert (maps >= 0).all()
    torch.testing.assert_close(maps.sum(1), torch.ones(len(inputs)))


@pytest.mark.parametrize("name", MODELS)
def test_bfloat16_is_near(name: str) -> None:
    model = make_model(name)
    exact = gradients(model, make_batch())
    with torch.autocast("cpu", torch.bfloat16):
        loss = model.loss(*make_batch())
    found = [loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))]
    torch.testing.assert_close(found[0], exact[0], rtol=0.02, atol=0)
    for ours, wanted in zip(found[1:], exact[1:], strict=True):
        assert (ours - wanted).norm() < 0.1 * wanted.norm() + 1e-3


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("shape", [(IMAGES, 1, F), (IMAGES, R + 1, F), (IMAGES, R, F + 1)])
def test_other_features_are_refused(name: str, shape: tuple[int, ...]) -> None:
    model = make_model(name, regions=R)
    _, *rest = make_batch()
    found = f"for {R} regions an image of {F} numbers, got features of {shape[1]} regions"
    with pytest.raises(ConfigError, match=found):
        model.loss(torch.zeros(shape), *rest)
    with pytest.raises(ConfigError, match=found):
        model.start(torch.zeros(shape))
