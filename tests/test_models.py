"""Names to networks, and weights from files."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import tcnn
from tcnn.models import ModelError

NAME = "tcnn.networks:cifar_resnet20"


def test_every_kind_of_name_builds() -> None:
    for name, settings in (
        ("timm:resnet18.a1_in1k", {"num_classes": 7}),
        ("torchvision:resnet18", {"num_classes": 7}),
        (NAME, {"num_classes": 7}),
    ):
        model = tcnn.load_model(name, **settings)
        assert not model.training
        assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 7)


def test_torchvision_detection_builds_without_a_download() -> None:
    model = tcnn.load_model("torchvision:ssdlite320_mobilenet_v3_large")
    assert len(tcnn.plan(model, input_size=(3, 320, 320)).taken) > 0


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("wrap", [False, True])
def test_weights_from_a_file(suffix: str, wrap: bool, tmp_path: Path) -> None:
    source = tcnn.load_model(NAME)
    state = source.state_dict()
    if wrap:
        state = {f"module.{k}": v for k, v in state.items()}
    file = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        save_file(state, file)
    else:
        torch.save({"state_dict": state, "best_prec1": 91.0} if wrap else state, file)
    model = tcnn.load_model(NAME, weights=file)
    assert all(torch.equal(a, source.state_dict()[k]) for k, a in model.state_dict().items())


def test_weights_of_modules_that_ask_for_their_version(tmp_path: Path) -> None:
    source = tcnn.load_model("torchvision:mnasnet0_5")
    save_file(source.state_dict(), tmp_path / "weights.safetensors")
    model = tcnn.load_model("torchvision:mnasnet0_5", weights=tmp_path / "weights.safetensors")
    assert all(torch.equal(a, source.state_dict()[k]) for k, a in model.state_dict().items())


class _Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path("evil-was-here"),)  # type: ignore[return-value]


def test_weights_that_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("evil.pth").write_bytes(pickle.dumps(_Evil(), protocol=2))
    torch.save(nn.Linear(1, 1), "module.pth")
    Path("cut.safetensors").write_bytes(b"12345")
    torch.save({1: torch.ones(1)}, "number.pth")
    Path("odd.pth").write_bytes(b"\x80\x02.")
    Path("empty.pth").touch()
    torch.save([1], "list.pth")
    torch.save({"a": torch.ones(1)}, "other.pth")
    for file, said in (
        ("evil.pth", "would run code"),
        ("module.pth", "would run code"),
        ("cut.safetensors", "damaged"),
        ("empty.pth", "cannot be read"),
        ("list.pth", "dictionary of named tensors"),
        ("number.pth", "dictionary of named tensors"),
        ("odd.pth", "cannot be read"),
        ("other.pth", "do not fit"),
        ("none.pth", "is not there"),
    ):
        with pytest.raises(ModelError, match=said) as error:
            tcnn.load_model(NAME, weights=file)
        assert "\n" not in str(error.value)
    assert not Path("evil-was-here").exists()


def test_names_that_are_refused() -> None:
    for name, said in (
        ("resnet50", "none of these"),
        ("timm:resnet5", "nearest: resnet50"),
        ("torchvision:resnet5", "nearest: resnet50"),
        ("nonesuch.module:net", "nonesuch"),
        (":net", "ValueError"),
        (".relative:net", "TypeError"),
        ("tcnn.networks:nonesuch", "nonesuch"),
        ("os:getcwd", "an nn.Module, but got str"),
    ):
        with pytest.raises(ModelError, match=said) as error:
            tcnn.load_model(name)
        assert "\n" not in str(error.value)
    with pytest.raises(ModelError, match="only timm and torchvision publish weights"):
        tcnn.load_model(NAME, pretrained=True)
    with pytest.raises(ModelError, match=r"6n \+ 2"):
        tcnn.load_model("tcnn.networks:cifar_resnet", depth=21)
    with pytest.raises(ModelError, match="either"):
        tcnn.load_model(NAME, pretrained=True, weights="x")
