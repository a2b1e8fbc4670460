"""A network for other classes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import tcnn
from tcnn import sources
from tcnn.classifier import with_new_classifier

NETWORKS = [
    ("timm:resnet18", {"num_classes": 7}, {"fc.weight", "fc.bias"}),
    ("torchvision:resnet18", {}, {"fc.weight", "fc.bias"}),
    ("tcnn.networks:cifar_resnet", {"depth": 8}, {"linear.weight", "linear.bias"}),
]


@pytest.mark.parametrize("hybrid", [False, True], ids=["CNN", "hybrid"])
@pytest.mark.parametrize(("name", "settings", "new"), NETWORKS, ids=[n for n, *_ in NETWORKS])
def test_all_but_the_classifier_stays_to_the_bit(
    name: str, settings: dict[str, object], new: set[str], hybrid: bool
) -> None:
    torch.manual_seed(0)
    model = tcnn.load_model(name, **settings)
    if hybrid:
        model = tcnn.recast(model, input_size=(3, 32, 32) if "tcnn" in name else (3, 64, 64))
    model.eval()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    found, names = with_new_classifier(model, 3)
    assert set(names) == new
    assert not found.training
    after = found.state_dict()
    assert after.keys() == before.keys()
    for key, tensor in before.items():
        assert torch.equal(model.state_dict()[key], tensor)
        if key not in new:
            assert torch.equal(after[key], tensor)
            assert after[key].data_ptr() != model.state_dict()[key].data_ptr()
    with torch.no_grad():
        assert found(torch.rand(2, 3, 64, 64)).shape == (2, 3)
    assert sources.origin(found) == sources.Origin(name, {**settings, "num_classes": 3})


def test_it_can_be_saved_and_loaded(tmp_path: object) -> None:
    model = tcnn.recast(tcnn.load_model("tcnn.networks:cifar_resnet", depth=8))
    found, _ = with_new_classifier(model.double(), 2)
    assert found.linear.weight.dtype == torch.float64
    tcnn.save(found, str(tmp_path), classes=("a", "b"))
    x = torch.rand(2, 3, 32, 32, dtype=torch.float64)
    assert torch.equal(tcnn.load(str(tmp_path)).eval()(x), found.eval()(x))


def test_a_network_of_somebody_elses_is_refused() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))
    with pytest.raises(tcnn.TCNNError, match="how Sequential is built, to build it with 3 classes"):
        with_new_classifier(net, 3)


def test_as_many_classes_as_it_has() -> None:
    model = tcnn.recast(tcnn.load_model("tcnn.networks:cifar_resnet", depth=8))
    found, new = with_new_classifier(model, 10)
    assert new == ["linear.weight", "linear.bias"]
    for name, tensor in model.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor) != (name in new), name


def fixed(num_classes: int = 5) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def test_a_network_without_a_classifier() -> None:
    model = tcnn.load_model(f"{__name__}:fixed")
    with pytest.raises(tcnn.TCNNError, match="for another number of classes, but nothing of it"):
        with_new_classifier(model, 3)
