"""Models of one architecture computed together: each trains as it would alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from captioner.data.packed import CaptionBatch, TokenStore
from captioner.models.attention import AttentionSettings
from captioner.models.captioner import Captioner
from captioner.models.language_model import LanguageModel
from captioner.models.layered_attention import JOINS, LayeredAttention
from captioner.models.word_layers import DropoutRates
from captioner.ops.extension import why_not_on
from captioner.training.distributed import World
from captioner.training.optimisation import make_optimizer, parameter_groups
from captioner.training.randomness import OwnRandomness
from captioner.training.stacked import StackedModels, together
from captioner.training.step import PlainStep, StepSettings

V, E, H, F, A, IMAGES = 13, 6, 7, 5, 8, 3
CPU = torch.device("cpu")
# Seed, learning rate, weight decay, dropout.
OWN = ((1, 1e-2, 0.0, 0.0), (2, 3e-3, 1e-3, 0.3), (3, 2e-2, 0.0, 0.5), (4, 1e-3, 1e-2, 0.1))
SETTINGS = StepSettings(clip_norm=1.0, label_smoothing=0.1)


def language_model(
    dropout: float, *, hidden_size: int = H, kind: str = "lstm", num_layers: int = 2
) -> LanguageModel:
    return LanguageModel(
        vocab_size=V,
        embedding_dim=E,
        hidden_size=hidden_size,
        num_layers=num_layers,
        dropout=DropoutRates(dropout, dropout, dropout, embedding=dropout, recurrent=dropout),
        kind=kind,
    )


def pooled(dropout: float) -> nn.Module:
    return Captioner(language_model=language_model(dropout), feature_dim=F, feature_dropout=dropout)


def layered(dropout: float, join: str = "concat", hidden_size: int = H) -> nn.Module:
    return LayeredAttention(
        language_model=language_model(dropout, hidden_size=hidden_size, num_layers=1),
        attention=AttentionSettings(dim=A, heads=2, region_dropout=dropout, weight_dropout=dropout),
        feature_dim=F,
        feature_dropout=dropout,
        join=join,
    )


def batches(count: int, regions: int = 1) -> list[CaptionBatch]:
    """Captions of few images, each by several, and of many."""
    drawn = torch.Generator().manual_seed(5)
    lengths = torch.randint(1, 6, (12,), generator=drawn).tolist()
    captions = [torch.randint(3, V, (n,), generator=drawn).tolist() for n in lengths]
    store = TokenStore(captions, bos=0, eos=1)
    found = []
    for number in range(count):
        rows = torch.randperm(12, generator=drawn)[: 6 if number % 2 else 3]
        tokens, order = store.pack(rows, torch.arange(len(rows)) % IMAGES)
        images = torch.randn(IMAGES, regions, F, generator=drawn, dtype=torch.float64)
        found.append(CaptionBatch(images, order, tokens))
    return found


def seeded(
    make: Callable[[float], nn.Module], own: Sequence[float], dtype: torch.dtype = torch.float64
) -> PlainStep:
    """The step of a model of its own."""
    seed, lr, weight_decay, dropout = own
    torch.manual_seed(int(seed))
    model = make(dropout).to(dtype)
    groups = parameter_groups(model, lr=lr, weight_decay=weight_decay, lr_by_prefix={})
    return PlainStep(
        model=model,
        optimizer=make_optimizer("adam", groups),
        settings=SETTINGS,
        total_steps=100,
        device=CPU,
        average=None,
        world=World(),
    )


@pytest.mark.parametrize(("make", "regions"), [(pooled, 1), (layered, 4)])
def test_captioners_train_as_each_would_alone(
    make: Callable[[float], nn.Module], regions: int
) -> None:
    """Seeds, rates, decays and dropouts of their own, 50 steps, two batches in some of them."""
    given = batches(60, regions)
    groups = [given[k : k + 1] for k in range(40)] + [given[k : k + 2] for k in range(40, 60, 2)]
    alone = []
    for own in OWN:
        step, losses = seeded(make, own), []
        for number, group in enumerate(groups):
            running = torch.zeros((), dtype=torch.float64)
            step(group, number, running)
            losses.append(float(running))
        alone.append((step, losses))

    steps, generators = [], []
    for own in OWN:
        steps.append(seeded(make, own))
        generators.append(OwnRandomness(CPU).generator)  # in the state that the model left
    models = StackedModels([step.model for step in steps], generators)
    found: list[list[float]] = [[] for _ in OWN]
    for number, group in enumerate(groups):
        losses, tokens = models.gradients(group, SETTINGS.label_smoothing)
        for step, loss, own_losses in zip(steps, losses, found, strict=True):
            running = torch.zeros((), dtype=torch.float64)
            step(group, number, running, (loss, tokens))
            own_losses.append(float(running))
        models.release()
    for (single, wanted), step, own_losses in zip(alone, steps, found, strict=True):
        assert own_losses == pytest.approx(wanted, rel=1e-10)
        pairs = zip(step.model.parameters(), single.model.parameters(), strict=True)
        for one, other in pairs:
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """On which each model has the bits that it has alone."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("rate", [0.0, 0.3])
@pytest.mark.parametrize("join", JOINS)
def test_attention_gives_each_the_bits_that_it_has_alone(join: str, rate: float) -> None:
    """Of float32, at sizes for which products are blocked and sums cascaded."""
    make = partial(layered, join=join, hidden_size=40)
    batch = replace(batches(1)[0], images=torch.randn(IMAGES, 81, F))
    alone = []
    for own in OWN:
        step = seeded(make, (*own[:3], rate), torch.float32)
        loss, _ = step.gradients([batch])
        alone.append((float(loss), [p.grad for p in step.model.parameters()]))

    models, generators = [], []
    for own in OWN:
        models.append(seeded(make, (*own[:3], rate), torch.float32).model)
        generators.append(OwnRandomness(CPU).generator)
    losses, _ = StackedModels(models, generators).gradients([batch], SETTINGS.label_smoothing)
    for (loss, gradients), model, found in zip(alone, models, losses, strict=True):
        assert float(found) == loss
        pairs = zip(model.named_parameters(), gradients, strict=True)
        assert [name for (name, p), wanted in pairs if not torch.equal(p.grad, wanted)] == []


@pytest.mark.parametrize(("make", "regions"), [(pooled, 1), (layered, 4)])
def test_a_model_that_is_lost_changes_no_other(
    make: Callable[[float], nn.Module], regions: int
) -> None:
    """NaN in its weights; and parted, all have memory of their own."""
    (batch,) = batches(1, regions)
    found = []
    for lost in (False, True):
        steps = [seeded(make, (*own[:3], 0.0)) for own in OWN]
        models = StackedModels([x.model for x in steps], [torch.Generator() for _ in OWN])
        if lost:
            steps[2].model.language_model.lstm.weight_hh_l0.data[0, 0] = torch.nan  # type: ignore[union-attr]
        for number in range(3):
            losses, tokens = models.gradients([batch], 0.0)
            for step, loss in zip(steps, losses, strict=True):
                step([batch], number, torch.zeros(()), (loss.float(), tokens))
            models.release()
        found.append([list(x.model.parameters()) for x in steps])
    for k, (one, other) in enumerate(zip(*found, strict=True)):
        same = all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
        assert same == (k != 2)
    weight = found[1][0][0]
    assert weight.untyped_storage().nbytes() > weight.nbytes
    models.part()
    assert weight.untyped_storage().nbytes() == weight.nbytes


def other_statistics(dropout: float) -> nn.Module:
    model = pooled(dropout)
    model.feature_mean.fill_(dropout)  # type: ignore[operator, union-attr]
    return model


def with_sizes(dropout: float) -> nn.Module:
    return language_model(0.0, hidden_size=round(10 * dropout) + 4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (with_sizes, "lstm.weight_ih_l0 has another shape"),
        (
            lambda rate: language_model(rate, kind="gru"),
            "GRU is not computed for several models together",
        ),
        (other_statistics, "feature_mean differs among them"),
        (
            lambda rate: Captioner(
                language_model=language_model(0.0),
                feature_dim=F,
                feature_norm="l2" if rate else "none",
            ),
            "feature_norm differs among them: none, l2",
        ),
    ],
)
def test_what_cannot_be_together_says_why(make: Callable[[float], nn.Module], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        together([make(0.0), make(0.5)])


# -- on a GPU -------------------------------------------------------------------------------------


def gpu_step(own: Sequence[float], *, bf16: bool) -> PlainStep:
    """Without dropout, whose masks on a GPU are other ones for models computed together."""
    seed, lr, weight_decay, _ = own
    torch.manual_seed(int(seed))
    language = LanguageModel(vocab_size=V, embedding_dim=16, hidden_size=64, backend="fused")
    model = Captioner(language_model=language, feature_dim=F).cuda()
    groups = parameter_groups(model, lr=lr, weight_decay=weight_decay, lr_by_prefix={})
    return PlainStep(
        model=model,
        optimizer=make_optimizer("adam", groups),
        settings=StepSettings(clip_norm=1.0, label_smoothing=0.1, bf16=bf16),
        total_steps=100,
        device=torch.device("cuda"),
        average=None,
        world=World(),
    )


def no_gpu() -> str | None:
    return why_not_on("cuda") if torch.cuda.is_available() else "needs a GPU"


@pytest.mark.skipif(no_gpu() is not None, reason=str(no_gpu()))
@pytest.mark.parametrize("bf16", [False, True])
def test_on_a_gpu_captioners_train_as_each_would_alone(bf16: bool) -> None:
    """30 steps; bfloat16 keeps eight bits, and Adam blows roundings up."""
    given = [CaptionBatch(x.images.float(), x.image_rows, x.tokens) for x in batches(30)]
    cuda = torch.device("cuda")
    alone: list[list[float]] = []
    for own in OWN:
        step, losses = gpu_step(own, bf16=bf16), []
        for number, batch in enumerate(given):
            running = torch.zeros((), dtype=torch.float64, device=cuda)
            step([batch], number, running)
            losses.append(float(running))
        alone.append(losses)
    steps = [gpu_step(own, bf16=bf16) for own in OWN]
    models = StackedModels([step.model for step in steps], [torch.Generator(cuda) for _ in OWN])
    for number, batch in enumerate(given):
        found, tokens = models.gradients([batch], 0.1, bf16=bf16)
        for step, loss, wanted in zip(steps, found, alone, strict=True):
            running = torch.zeros((), dtype=torch.float64, device=cuda)
            step([batch], number, running, (loss, tokens))
            assert float(running) == pytest.approx(wanted[number], rel=3e-2 if bf16 else 1e-4)
        models.release()
