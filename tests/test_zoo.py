"""One table: what every network of the zoo must do."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from torch import nn

from unbackdoor import UnbackdoorError, zoo

SHARED = Path(os.environ.get("UNBACKDOOR_SHARED", Path(__file__).resolve().parents[2] / "shared"))
NUM_CLASSES = 5
PARAMETERS = {  # of ten classes on 3×32×32, as published for the networks whose keys these are
    "resnet_18": 11_173_962,
    "preact_resnet_18": 11_171_146,
    "vgg_19_bn": 20_040_522,
    "mobilenet_v2": 2_296_922,
    "shufflenet_v2_x0_5": 352_042,
    "shufflenet_v2_x1_0": 1_263_854,
    "resnet_20": 269_722,
    "wrn_16_1": 175_066,
    "small_vgg": 308_394,
    "small_vit": 2_693_578,  # this and the next are ours: a change of them breaks saved victims
    "plain_cnn": 814_122,
}
KEYS = {
    "resnet_18": {
        "conv1.weight",
        "bn1.running_var",
        "layer2.0.shortcut.0.weight",
        "layer2.0.shortcut.1.bias",
    },
    "preact_resnet_18": {"conv1.weight", "layer1.0.bn1.weight", "layer4.0.shortcut.0.weight", "linear.bias"},
    "vgg_19_bn": {"features.0.bias", "features.1.running_mean", "features.49.weight", "classifier.weight"},
    "mobilenet_v2": {"conv1.weight", "layers.16.bn3.weight", "layers.0.shortcut.1.weight", "bn2.bias"},
    "shufflenet_v2_x0_5": {"layer1.0.conv5.weight", "layer2.7.bn3.bias", "conv2.weight", "linear.weight"},
    "resnet_20": {"conv1.weight", "layer3.2.bn2.weight", "linear.weight"},
    "small_vgg": {"features.20.running_var", "classifier.bias"},
    "small_vit": {
        "cls_token",
        "pos_embed",
        "patch_embed.proj.bias",
        "blocks.5.attn.qkv.weight",
        "head.weight",
    },
    "plain_cnn": {"features.0.weight", "classifier.3.bias"},
}
GOLDEN = {  # logits under formula_weights: a change of a forward pass breaks every saved victim
    "small_vgg": [1.21, -1.8466, 1.2133],
    "wrn_16_1": [-16.9583, 38.1617, -12.5442],
    "resnet_18": [-0.3432, 0.3643, -0.0447],
    "preact_resnet_18": [-0.1195, 0.2384, -0.0594],
    "vgg_19_bn": [1.4425, -1.4541, 1.5871],
    "mobilenet_v2": [1.5764, 4.436, -2.3149],
    "shufflenet_v2_x0_5": [0.7825, 0.8678, 0.9674],
    "shufflenet_v2_x1_0": [0.8879, 1.0012, 1.1285],
    "resnet_20": [444.4283, 695.4105, -980.6492],
    "small_vit": [0.8346, 0.2286, -0.4082],
    "plain_cnn": [0.538, -0.5971, -0.4706],
}
OTHER_SIZE = {"vgg_19_bn": 28}


@pytest.fixture(scope="module", params=zoo.NAMES)
def built(request: pytest.FixtureRequest) -> tuple[str, nn.Module, nn.Module]:
    """The network for 3×32×32, and another for one channel and another size."""
    name = request.param
    torch.manual_seed(0)
    colour = zoo.build(name, num_classes=NUM_CLASSES)
    grey = zoo.build(name, num_classes=3, in_channels=1, input_size=OTHER_SIZE.get(name, 12))
    return name, colour, grey


def test_shapes_of_two_sizes_and_one_or_three_channels(built):
    name, colour, grey = built
    size = OTHER_SIZE.get(name, 12)
    assert colour.eval()(torch.rand(1, 3, 32, 32)).shape == (1, NUM_CLASSES)
    assert grey.eval()(torch.rand(2, 1, size, size)).shape == (2, 3)


def test_every_weight_gets_a_gradient(built):
    _, _, grey = built
    size = OTHER_SIZE.get(built[0], 12)
    grey.train()(torch.rand(2, 1, size, size)).logsumexp(1).sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in grey.parameters())


def test_the_seed_decides_the_weights(built):
    name, colour, _ = built
    torch.manual_seed(0)
    again = zoo.build(name, num_classes=NUM_CLASSES)
    torch.manual_seed(1)
    other = zoo.build(name, num_classes=NUM_CLASSES)
    weights = [torch.cat([p.flatten()[:50] for p in net.parameters()]) for net in (colour, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_state_dict_round_trip_computes_the_same(built):
    name, _, grey = built
    size = OTHER_SIZE.get(name, 12)
    other = zoo.build(name, num_classes=3, in_channels=1, input_size=size)
    other.load_state_dict(grey.state_dict(), strict=True)
    images = torch.rand(1, 1, size, size)
    assert torch.equal(grey.eval()(images), other.eval()(images))


def test_keys_are_those_of_the_literature(built):
    name, colour, _ = built
    assert KEYS.get(name, set()) <= set(colour.state_dict())
    assert not {key.split(".")[0] for key in colour.state_dict()} & {"module", "net", "model"}


def test_parameter_count_is_the_published_one(built):
    name, colour, _ = built
    head_width = next(m.in_features for m in reversed(list(colour.modules())) if isinstance(m, nn.Linear))
    spared = (10 - NUM_CLASSES) * (head_width + 1)
    assert sum(p.numel() for p in colour.parameters()) + spared == PARAMETERS[name]


@torch.no_grad()
def formula_weights(net: nn.Module) -> None:
    """Fill the network with weights that need no random generator, of a size that keeps signals alive."""
    for number, (name, tensor) in enumerate(net.state_dict().items()):
        if not tensor.is_floating_point():
            continue
        wave = torch.sin(torch.arange(tensor.numel(), dtype=torch.float64) * 12.9898 + number)
        if tensor.ndim > 1:
            values = wave * (3 / tensor[0].numel()) ** 0.5
        else:
            values = 0.1 * wave + (0 if name.endswith(("bias", "mean")) else 1)
        tensor.copy_(values.view(tensor.shape))


@pytest.mark.parametrize("name", zoo.NAMES)
@torch.no_grad()
def test_the_forward_pass_is_the_one_of_saved_victims(name):
    size = OTHER_SIZE.get(name, 12)
    net = zoo.build(name, num_classes=3, in_channels=1, input_size=size).eval()
    formula_weights(net)
    images = (
        torch.sin(torch.arange(size * size, dtype=torch.float64) * 0.7).float().view(1, 1, size, size) / 2
        + 0.5
    )
    assert net(images)[0].tolist() == pytest.approx(GOLDEN[name], rel=1e-2, abs=1e-3)


def test_small_vgg_drops_out_as_published():
    rates = [m.p for m in zoo.build("small_vgg", num_classes=2).features if isinstance(m, nn.Dropout)]
    assert rates == [0.3, 0.4, 0.4]


def test_resnet_18_layer_does_what_the_paper_says():
    block = zoo.build("resnet_18", num_classes=2).eval().layer2[0]
    x = torch.rand(1, 64, 8, 8)
    inner = block.bn2(block.conv2(block.bn1(block.conv1(x)).relu()))
    assert torch.equal(block(x), (inner + block.shortcut[1](block.shortcut[0](x))).relu())


def test_resnet_20_shortcut_pads_with_zero_channels():
    shortcut = zoo.build("resnet_20", num_classes=2).layer2[0].shortcut
    x = torch.rand(1, 16, 6, 6)
    out = shortcut(x)
    assert torch.equal(out[:, 8:24], x[:, :, ::2, ::2])
    assert out[:, :8].abs().sum() == out[:, 24:].abs().sum() == 0


def test_shuffle_takes_channels_in_turn():
    from unbackdoor.zoo.shufflenet_v2 import _shuffle

    first, second = torch.tensor([0.0, 1.0]), torch.tensor([2.0, 3.0])
    assert _shuffle(first.view(1, 2, 1, 1), second.view(1, 2, 1, 1)).flatten().tolist() == [0, 2, 1, 3]


def test_plain_cnn_has_no_normalisation():
    names = {type(module).__name__ for module in zoo.build("plain_cnn", num_classes=2).modules()}
    assert not any("Norm" in name for name in names)


def test_unknown_name_lists_the_valid_ones():
    with pytest.raises(UnbackdoorError, match="preact_resnet_18"):
        zoo.build("resnet", num_classes=10)


@pytest.mark.parametrize(
    ("name", "arguments", "says"),
    [
        ("small_vgg", {"num_classes": 10, "input_size": 4}, "at least 8"),
        ("small_vit", {"num_classes": 10, "input_size": 30}, "multiple of 4"),
        ("vgg_19_bn", {"num_classes": 10, "input_size": 8}, "at least 16"),
        ("small_vgg", {"num_classes": 1}, "two or more classes"),
        ("small_vgg", {"num_classes": 2, "in_channels": 0}, "one or more channels"),
    ],
)
def test_senseless_input_is_an_error(name, arguments, says):
    with pytest.raises(UnbackdoorError, match=says):
        zoo.build(name, **arguments)


def test_published_checkpoints_load_strictly():
    manifest = SHARED / "models" / "manifest.json"
    if not manifest.exists():
        pytest.skip("no shared models beside the repository (UNBACKDOOR_SHARED)")
    for entry in json.loads(manifest.read_text()):
        state = torch.load(manifest.parent / entry["file"], map_location="cpu", weights_only=True)[
            entry["key"]
        ]
        net = zoo.build(entry["network"], num_classes=43 if entry["data"] == "gtsrb" else 10)
        net.load_state_dict(state, strict=True)
        assert list(net.state_dict()) == list(state)
