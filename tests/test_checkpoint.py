"""Saving and loading: bitwise round trips, and folders that must be refused."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import tcnn
from nets import TwoStage
from tcnn.checkpoint import CheckpointError

NAME = "tcnn.networks:cifar_resnet"
SETTINGS = {"depth": 8, "widths": [4, 8, 8], "num_classes": 3}
SIZE = (3, 16, 16)
CLASSES = ["ant", "bee", "côte d'azur"]


def hybrid(config: tcnn.GPSAConfig | None = None) -> nn.Module:
    torch.manual_seed(0)
    model = tcnn.recast(tcnn.load_model(NAME, **SETTINGS), None, config, SIZE)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("gating_param"):
                parameter.uniform_(-0.5, 0.5)
    return model


def same(a: nn.Module, b: nn.Module, x: Tensor) -> bool:
    with torch.no_grad():
        return torch.equal(a(x), b(x))


@pytest.mark.parametrize("positions", ["fixed", "learned"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_round_trip_is_bitwise(
    positions: str, dtype: torch.dtype, layout: torch.memory_format, tmp_path: Path
) -> None:
    config = tcnn.GPSAConfig(positions=positions, window=5)  # type: ignore[arg-type]
    model = hybrid(config).to(dtype).to(memory_format=layout)
    tcnn.save(model, tmp_path, classes=CLASSES)
    again = tcnn.load(tmp_path, classes=CLASSES)
    x = torch.randn(2, *SIZE).to(dtype).to(memory_format=layout)
    assert same(model, again, x)
    assert {k: v.dtype for k, v in again.state_dict().items()} == {
        k: v.dtype for k, v in model.state_dict().items()
    }
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.safetensors", "tcnn.json"]
    assert again.get_submodule("layer3.0.conv1").config == config
    tcnn.save(again, tmp_path / "second")  # the class list comes along
    assert json.loads((tmp_path / "second/tcnn.json").read_text())["classes"] == CLASSES


def test_a_saved_folder_is_a_model_name(tmp_path: Path) -> None:
    model = hybrid()
    tcnn.save(model, tmp_path)
    assert same(model, tcnn.load_model(str(tmp_path)), torch.randn(2, *SIZE))


def test_restored_and_plain_networks_save_too(tmp_path: Path) -> None:
    cnn = tcnn.restore(tcnn.recast(tcnn.load_model(NAME, **SETTINGS), input_size=SIZE))
    tcnn.save(cnn, tmp_path)
    assert same(cnn, tcnn.load(tmp_path), torch.randn(2, *SIZE))


def test_networks_of_the_users_own_are_passed_in(tmp_path: Path) -> None:
    model = tcnn.recast(TwoStage().eval(), input_size=SIZE)
    tcnn.save(model, tmp_path)
    with pytest.raises(CheckpointError, match="pass the network with cnn="):
        tcnn.load(tmp_path)
    other = TwoStage()
    before = other.stem.weight.clone()
    assert same(model, tcnn.load(tmp_path, cnn=other), torch.randn(2, *SIZE))
    assert torch.equal(other.stem.weight, before)


def test_tied_weights_round_trip(tmp_path: Path) -> None:
    from nets import Tied

    model = tcnn.recast(Tied().eval(), "*", input_size=SIZE)
    tcnn.save(model, tmp_path)
    again = tcnn.load(tmp_path, cnn=Tied())
    assert again.one.weight is again.two.weight
    assert same(model, again, torch.randn(2, *SIZE))


def test_loading_never_runs_what_the_folder_names(tmp_path: Path) -> None:
    tcnn.save(hybrid(), tmp_path)
    _edit(tmp_path, lambda s: s["model"].update(name="os:getcwd"))
    with pytest.raises(CheckpointError, match="would run code or read files that the folder chose"):
        tcnn.load(tmp_path)


def _edit(folder: Path, change: Callable[[dict], object]) -> None:  # type: ignore[type-arg]
    file = folder / "tcnn.json"
    settings = json.loads(file.read_text())
    change(settings)
    file.write_text(json.dumps(settings))


def _cut(name: str, keep: float) -> Callable[[Path], object]:
    def cut(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: int(len(content) * keep)])

    return cut


def _flip_a_bit(folder: Path) -> None:
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-100] ^= 1
    (folder / "model.safetensors").write_bytes(content)


def _only_a_pickle(folder: Path) -> None:
    for file in list(folder.iterdir()):
        file.unlink()
    (folder / "model.pt").write_bytes(pickle.dumps({"a": 1}))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_cut("model.safetensors", 0.5), "is damaged|is missing"),
        (_cut("model.safetensors", 0), "is damaged|is missing"),
        (_cut("tcnn.json", 0.5), "damaged"),
        (_flip_a_bit, "has changed since"),
        (lambda f: (f / "model.safetensors").unlink(), "is damaged|is missing"),
        (lambda f: (f / "tcnn.json").unlink(), "it is missing"),
        (_only_a_pickle, "model.pt is a pickle, which is refused"),
        (lambda f: _edit(f, lambda s: s.update(format=99)), "Expected format 1 .* but got 99"),
        (lambda f: (f / "tcnn.json").write_text("[1]"), "Expected format 1"),
        (lambda f: _edit(f, lambda s: s.update(layers=[])), "as tcnn writes"),
        (lambda f: _edit(f, lambda s: s["layers"].update(nowhere={})), "nothing of that name"),
        (lambda f: _edit(f, lambda s: s["layers"].pop("layer3.0.conv1")), "to fit CifarResNet"),
        (lambda f: _edit(f, lambda s: s["layers"]["layer3.0.conv1"].update(gate="x")), "gate"),
        (lambda f: _edit(f, lambda s: s["layers"]["layer3.0.conv1"].update(y=1)), "'y'"),
        (lambda f: _edit(f, lambda s: s["model"].update(name="timm:nonesuch")), "nonesuch"),
        (lambda f: _edit(f, lambda s: s["model"]["settings"].update(depth=14)), "to fit"),
        (lambda f: _edit(f, lambda s: s.update(classes=["a"])), "class"),
    ],
)  # fmt: skip
def test_damage_is_told_in_one_line(
    damage: Callable[[Path], object], said: str, tmp_path: Path
) -> None:
    tcnn.save(hybrid(), tmp_path, classes=CLASSES)
    damage(tmp_path)
    with pytest.raises(CheckpointError, match=said) as error:
        tcnn.load(tmp_path)
    assert "\n" not in str(error.value)


def test_wrong_class_lists(tmp_path: Path) -> None:
    model = hybrid()
    with pytest.raises(CheckpointError, match=r"each of the 3 classes .* the class list has 2"):
        tcnn.save(model, tmp_path, classes=CLASSES[:2])
    tcnn.save(model, tmp_path)
    with pytest.raises(CheckpointError, match="saved without a class list"):
        tcnn.load(tmp_path, classes=CLASSES)
    tcnn.save(model, tmp_path, classes=CLASSES)
    with pytest.raises(CheckpointError, match="class 0 is 'bee' where it has 'ant'"):
        tcnn.load(tmp_path, classes=["bee", "ant", CLASSES[2]])
    with pytest.raises(CheckpointError, match="got 2 classes where it has 3"):
        tcnn.load(tmp_path, classes=CLASSES[:2])


def test_unwritable_folder_keeps_what_was_there(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(CheckpointError, match="Expected to write to the folder"):
        tcnn.save(hybrid(), file)
    assert file.read_text() == "mine"
    model = hybrid()
    tcnn.save(model, tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    broken = hybrid()
    broken._tcnn_origin.settings["oops"] = object()
    with pytest.raises(CheckpointError, match="plain data"):
        tcnn.save(broken, tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_a_network_changed_since_it_was_built_is_not_rebuilt_silently(tmp_path: Path) -> None:
    """A state dict says nothing of strides, pools and activations."""
    for change in (
        lambda net: setattr(net, "maxpool", nn.Identity()),
        lambda net: setattr(net.conv1[0], "stride", (1, 1)),
        lambda net: setattr(net.layer2[0], "act1", nn.GELU()),
    ):
        net = tcnn.load_model("timm:resnet10t", num_classes=3)
        change(net)
        model = tcnn.recast(net, input_size=(3, 64, 64))
        tcnn.save(model, tmp_path)
        with pytest.raises(CheckpointError, match="when it was saved and is") as error:
            tcnn.load(tmp_path)
        assert "\n" not in str(error.value)
        again = tcnn.load_model("timm:resnet10t", num_classes=3)
        with pytest.raises(CheckpointError, match="when it was saved and is"):
            tcnn.load(tmp_path, cnn=again)
        change(again)
        assert same(model, tcnn.load(tmp_path, cnn=again), torch.randn(2, 3, 64, 64))


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("torchvision:fcn_resnet50", {"weights_backbone": "DEFAULT"}),
        ("torchvision:resnet18", {"weights": "DEFAULT"}),
        ("timm:hf-hub:somebody/something", {}),
        ("timm:local-dir:/somewhere", {}),
        ("timm:resnet10t", {"checkpoint_path": "evil.pth"}),
        ("timm:resnet10t", {"pretrained_cfg": {"file": "evil.pth"}}),
        ("timm:resnet10t", {"pretrained": True}),
    ],
)
def test_loading_reads_nothing_that_the_folder_names(
    name: str, settings: dict[str, object], tmp_path: Path
) -> None:
    tcnn.save(hybrid(), tmp_path)
    _edit(tmp_path, lambda s: s["model"].update(name=name, settings=settings))
    with pytest.raises(CheckpointError, match="would run code or read files"):
        tcnn.load(tmp_path)


@pytest.mark.parametrize("classes", [[0, 1, 2], [None] * 3, "abc", ["a", "b", "\udc80"]])
def test_class_lists_that_could_not_be_read_again(classes: list[str], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="class") as error:
        tcnn.save(hybrid(), tmp_path, classes=classes)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_networks_that_cannot_be_written(tmp_path: Path) -> None:
    for buffer in (torch.empty(2, device="meta"), torch.eye(2).to_sparse()):
        model = hybrid()
        model.register_buffer("odd", buffer)
        with pytest.raises(CheckpointError) as error:
            tcnn.save(model, tmp_path)
        assert "\n" not in str(error.value)
        assert not list(tmp_path.iterdir())


class _Scaled(nn.Module):
    """A network with a buffer that its state dict leaves out."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.register_buffer("scale", torch.full((4, 1, 1), 2.0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) * self.scale


def test_buffers_outside_the_state_dict_follow_the_dtype(tmp_path: Path) -> None:
    model = tcnn.recast(_Scaled().eval(), input_size=SIZE).bfloat16()
    tcnn.save(model, tmp_path)
    again = tcnn.load(tmp_path, cnn=_Scaled())
    assert again.scale.dtype == torch.bfloat16
    assert same(model, again, torch.randn(2, *SIZE).bfloat16())


def test_what_changes_nothing_of_the_function_may_change(tmp_path: Path) -> None:
    """Settings of training, as update_bn, Grad-CAM and fine-tuning change them."""
    net = tcnn.load_model("timm:resnet10t", num_classes=3)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
        if isinstance(module, nn.ReLU):
            module.inplace = False
    net.layer1[0].drop_block = nn.Dropout(0.1)
    model = tcnn.recast(net, input_size=(3, 64, 64))
    tcnn.save(model, tmp_path)
    assert same(model, tcnn.load(tmp_path), torch.randn(2, 3, 64, 64))


class _Mute(nn.Sequential):
    """A class of the user's own, with a description that cannot be had, or is never the same."""

    def extra_repr(self) -> str:
        raise RuntimeError("no description")


def test_descriptions_that_cannot_be_had(tmp_path: Path) -> None:
    def build() -> nn.Module:
        net = _Mute(nn.Conv2d(3, 4, 3, padding=1)).eval()
        net[0].padding = 1  # one number, which nn.Conv2d's own description does not take
        return net

    model = tcnn.recast(build(), input_size=SIZE)
    tcnn.save(model, tmp_path)
    assert same(model, tcnn.load(tmp_path, cnn=build()), torch.randn(2, *SIZE))


def test_modules_that_ask_for_their_version_load(tmp_path: Path) -> None:
    model = tcnn.recast(tcnn.load_model("torchvision:mnasnet0_5"), input_size=(3, 64, 64))
    tcnn.save(model, tmp_path)
    assert same(model, tcnn.load(tmp_path), torch.randn(2, 3, 64, 64))


def test_files_can_be_read_by_whom_the_umask_lets(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        tcnn.save(hybrid(), tmp_path)
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o644}
