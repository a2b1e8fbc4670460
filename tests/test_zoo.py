"""Every family of timm's and torchvision's networks, recast: equal to the bit or refused by name.

The unmarked tests are the quick part, the ones marked `zoo` all of it (`make zoo`).
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import tcnn
import zoo
import zoo_networks

# What other people's code warns of while it builds.
pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:timm"),
    pytest.mark.filterwarnings("ignore::FutureWarning:torchvision"),
]

QUICK = [
    ("timm", "resnet10t"),
    ("timm", "tf_efficientnet_b0"),  # padding from the image's size
    ("timm", "tf_mixnet_s"),  # and several kernel sizes in one layer
    ("timm", "resnetv2_50x1_bit"),  # standardised weights
    ("timm", "nf_regnet_b0"),  # scaled standardised weights
    ("timm", "convnext_atto"),  # depthwise 7×7, patchify
    ("timm", "repvgg_a0"),  # parallel branches
    ("timm", "coat_tiny"),  # convolutions that several blocks share
    ("torchvision", "lraspp_mobilenet_v3_large"),
    ("torchvision", "fasterrcnn_mobilenet_v3_large_320_fpn"),  # a head used on every level
]

# Members of families whose cheapest member does not have what they have.
UNUSUAL = [
    "coatnet_nano_cc_224",
    "convnextv2_atto",
    "dm_nfnet_f0",
    "dpn68",
    "eca_botnext26ts_256",
    "ecaresnet26t",
    "efficientnet_cc_b0_4e",
    "efficientnet_es",
    "gernet_s",
    "lambda_resnet26t",
    "maxvit_tiny_tf_224",
    "mixnet_s",
    "mobilenetv4_conv_small",
    "mobileone_s0",
    "nf_resnet50",
    "regnetz_b16",
    "repvgg_a0",
    "resnet26d",
    "resnetblur50",
    "resnetv2_50",
    "resnetv2_50x1_bit",
    "resnext26ts",
    "sebotnet33ts_256",
    "seresnet18",
    "tf_efficientnet_b0",
    "tf_efficientnetv2_b0",
    "tf_mixnet_s",
    "tf_mobilenetv3_small_minimal_100",
    "vit_small_resnet26d_224",
    "xception41",
]


def check(source: str, family: str, name: str, request: pytest.FixtureRequest) -> zoo.Row:
    row = zoo.examine(source, family, name)
    request.node.user_properties.append(("zoo", row.to_json()))
    assert row.wide == row.recast + sum(row.refused.values())
    assert row.alive == row.recast, "recast kernels that the output does not depend on"
    if row.recast:
        assert row.error == 0
        assert row.flip > 1e-6, "a flipped kernel was not seen"
        assert row.learned < 1e-3
    return row


@pytest.mark.parametrize(("source", "name"), QUICK, ids=lambda v: v)
def test_quick(source: str, name: str, request: pytest.FixtureRequest):
    assert check(source, "", name, request).recast > 0


@pytest.mark.zoo
@pytest.mark.parametrize("family", zoo_networks.timm_families())
def test_timm_family(family: str, request: pytest.FixtureRequest):
    check("timm", family, zoo_networks.cheapest("timm", family), request)


@pytest.mark.zoo
@pytest.mark.parametrize("family", zoo_networks.torchvision_families())
def test_torchvision_family(family: str, request: pytest.FixtureRequest):
    check("torchvision", family, zoo_networks.cheapest("torchvision", family), request)


@pytest.mark.zoo
@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual(name: str, request: pytest.FixtureRequest):
    import timm

    if not timm.is_model(name):
        pytest.skip(f"this timm has no {name}")
    check("timm", "(unusual)", name, request)


# The check itself: each of these is one silent error in one layer, and must be found.


def flip_a_kernel(layer: nn.Module) -> None:
    layer.weight.data.copy_(layer.weight.flip(2, 3))


def swap_two_filters(layer: nn.Module) -> None:
    layer.weight.data[:2] = layer.weight.data[[1, 0]]


def open_a_gate(layer: nn.Module) -> None:
    layer.gating_param.data[4] = 1e-3


def detach(layer: nn.Module) -> None:
    layer.register_forward_hook(lambda _m, _a, output: output * (1 + 1e-5))


@pytest.mark.parametrize("spoil", [flip_a_kernel, swap_two_filters, open_a_gate, detach])
@pytest.mark.parametrize("name", ["layer1.0.conv2", "layer4.0.conv2"])
def test_one_wrong_layer_is_found(spoil: Any, name: str, monkeypatch: pytest.MonkeyPatch):
    recast = tcnn.recast

    def careless(*args: Any, **kwargs: Any) -> nn.Module:
        hybrid = recast(*args, **kwargs)
        with torch.no_grad():
            spoil(hybrid.get_submodule(name))
        return hybrid

    monkeypatch.setattr(tcnn, "recast", careless)
    with pytest.raises(AssertionError, match=f"first different layer {name}"):
        zoo.examine("timm", "resnet", "resnet10t")


def test_a_fresh_network_would_hide_errors():
    """Why `shake` is there: the last kernel of a fresh residual branch is multiplied by zero."""
    torch.manual_seed(0)
    network, size = zoo_networks.build("timm", "resnet10t")
    images = torch.randn(2, 3, *size)
    names = list(zoo_networks.wide(network))
    assert len(zoo.alive(network, images, names)) < len(names)
    zoo_networks.shake(network, images)
    assert len(zoo.alive(network, images, names)) == len(names)
