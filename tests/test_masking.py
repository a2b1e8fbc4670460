"""Masking experiments against networks changed by hand; the hybrid is never left changed."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nets import Tied
from tcnn import GPSAConfig, recast, restore
from tcnn.analysis.masking import Mask, all_masks, masked, masking
from tcnn.layers import gpsa_layers

X = torch.randn(12, 3, 9, 8, generator=torch.Generator().manual_seed(0))
Y = torch.arange(12) % 4
CONFIGS: dict[str, dict[str, Any]] = {
    "fixed": {},
    "learned": {"positions": "learned", "locality_strength": 2.0},
    "sigmoid": {"gate": "sigmoid"},
    "window": {"window": 3},
    "cosine": {"content": "cosine"},
}


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True),
        nn.Conv2d(4, 6, (1, 3), padding=(0, 1)), nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4),
    )  # fmt: skip


def hybrid(options: dict[str, Any], gate: float = 0.6) -> nn.Module:
    config = GPSAConfig(gate_init=gate, **options)
    return recast(network(), ["0", "3"], config, input_size=(3, 9, 8)).eval()


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(X)


def with_gates(model: nn.Module, names: list[str], gate: float) -> Tensor:
    """The hybrid's scores with gates set by hand, by its own parameters."""
    with torch.no_grad():
        for name in names:
            parameter = model.get_submodule(name).gating_param
            logit = 100.0 if gate else -200.0
            sigmoid = model.get_submodule(name).config.gate == "sigmoid"
            parameter.fill_(logit if sigmoid else 1 - gate)
    return logits(model)


@pytest.mark.parametrize("kind", ["position only", "content only"])
@pytest.mark.parametrize("layer", [None, "0", "3"])
@pytest.mark.parametrize("name", CONFIGS)
def test_gates_are_as_if_set_by_hand(name: str, layer: str | None, kind: Any) -> None:
    model, same = hybrid(CONFIGS[name]), hybrid(CONFIGS[name])
    before = logits(model)
    with masked(model, Mask(kind, layer)):
        got = logits(model)
    names = [layer] if layer else ["0", "3"]
    expected = with_gates(same, names, 1.0 if kind == "position only" else 0.0)
    torch.testing.assert_close(got, expected)
    assert not torch.allclose(got, before)
    assert torch.equal(logits(model), before)


def test_position_only_is_the_cnn() -> None:
    model = hybrid({})
    with masked(model, Mask("position only")):
        got = logits(model)
    assert torch.equal(got, logits(network().eval()))


@pytest.mark.parametrize("gate", [1.0, 0.6])
@pytest.mark.parametrize("name", CONFIGS)
def test_an_ablated_head_is_as_if_its_kernel_were_zero(name: str, gate: float) -> None:
    model = hybrid(CONFIGS[name], gate)
    before = logits(model)
    for mask in all_masks(model):
        if mask.tap is None or mask.layer is None:
            continue
        with masked(model, mask):
            got = logits(model)
        same = hybrid(CONFIGS[name], gate)
        with torch.no_grad():
            same.get_submodule(mask.layer).weight[:, :, mask.tap[0], mask.tap[1]] = 0
        torch.testing.assert_close(got, logits(same))
        assert not torch.equal(got, before)
    assert torch.equal(logits(model), before)


def test_a_head_of_a_standardised_layer() -> None:
    """Its kernel is made of its weight at each call: the kernel's slice is silenced."""
    from timm.layers import StdConv2d

    cnn = nn.Sequential(StdConv2d(2, 3, 3, padding=1, eps=1e-6)).eval()
    model = recast(cnn, "0", input_size=(2, 6, 6))
    x = torch.randn(2, 2, 6, 6)
    weight = cnn[0].weight
    kernel = (weight - weight.mean((1, 2, 3), keepdim=True)) / (
        weight.var((1, 2, 3), unbiased=False, keepdim=True) + 1e-6
    ).sqrt()
    kernel[:, :, 0, 2] = 0
    with torch.no_grad(), masked(model, Mask("head ablated", "0", (0, 2))):
        expected = nn.functional.conv2d(x, kernel, cnn[0].bias, padding=1)
        torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)


def test_tied_weights_lose_the_one_head() -> None:
    model = recast(Tied(), ["one", "two"], input_size=(3, 9, 8)).eval()
    weight = model.one.weight.detach().clone()
    with masked(model, Mask("head ablated", "one", (1, 1))):
        kernels = model.one._kernel(), model.two._kernel()
    assert kernels[0][:, :, 1, 1].abs().max() == 0
    assert torch.equal(kernels[1], weight) and torch.equal(model.one.weight, weight)


# Scores


def test_scores_ranks_and_intervals() -> None:
    model = hybrid({})
    found = masking(model, [(X[:5], Y[:5]), (X[5:], Y[5:])])
    masks = all_masks(model)
    assert len(masks) == 2 * 3 + 9 + 3 and {s.mask for s in found.scores} == set(masks)
    assert found.images == 12
    right = logits(model).argmax(1) == Y
    assert found.top1 == pytest.approx(right.double().mean().item())
    for score in found.scores:
        with masked(model, score.mask):
            now = logits(model).argmax(1) == Y
        difference = now.double() - right.double()
        assert score.change == pytest.approx(difference.mean().item())
        assert score.top1 == pytest.approx(found.top1 + score.change)
        assert score.low <= score.change <= score.high
    changes = [score.change for score in found.scores]
    assert changes == sorted(changes)


def test_a_useless_head_changes_nothing_and_a_needed_one_all() -> None:
    """One head looks at the pixel that has the label, the other is silent."""
    conv = nn.Conv2d(1, 1, (1, 2))
    with torch.no_grad():
        conv.weight.copy_(torch.tensor([[[[10.0, 0.0]]]]))
        conv.bias.zero_()  # type: ignore[union-attr]
    read = nn.Linear(1, 2)
    with torch.no_grad():
        read.weight.copy_(torch.tensor([[-1.0], [1.0]]))
        read.bias.copy_(torch.tensor([0.1, -0.1]))
    model = recast(nn.Sequential(conv, nn.Flatten(), read), "0", input_size=(1, 1, 2))
    labels = torch.tensor([0, 1] * 10)
    x = torch.stack([labels.float(), torch.rand(20)], dim=1).view(20, 1, 1, 2)
    found = masking(model, [(x, labels)], [Mask("head ablated", "0", (0, b)) for b in (0, 1)])
    assert found.top1 == 1
    assert [(s.mask.tap, s.change) for s in found.scores] == [((0, 0), -0.5), ((0, 1), 0.0)]
    assert found.scores[1].low == found.scores[1].high == 0
    assert found.scores[0].high < 0
    assert found.of(Mask("head ablated", "0", (0, 1))).top1 == 1


def test_batches_are_read_once_in_whatever_order() -> None:
    model = hybrid({})
    reads = []

    def shuffled() -> Any:
        for index in torch.randperm(12).split(4):
            reads.append(len(index))
            yield X[index], Y[index]

    found = masking(model, shuffled(), [Mask("position only"), Mask("content only")])
    again = masking(model, [(X, Y)], [Mask("position only"), Mask("content only")])
    assert reads == [4, 4, 4]
    assert {s.mask: s.change for s in found.scores} == pytest.approx(
        {s.mask: s.change for s in again.scores}
    )


# Left as it was


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("when", ["in the block", "in the network", "in the batches"])
def test_the_model_is_left_as_it_was(name: str, when: str) -> None:
    model = hybrid(CONFIGS[name])
    model[1].train()
    modes = [module.training for module in model.modules()]
    state = {key: value.clone() for key, value in model.state_dict().items()}
    names = [set(vars(layer)) for layer in gpsa_layers(model).values()]
    calls = 0

    def fail(*_: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise ZeroDivisionError

    handle = model[7].register_forward_hook(fail) if when == "in the network" else None
    for mask in all_masks(model):
        with pytest.raises(ZeroDivisionError):
            if when == "in the block":
                with masked(model, mask):
                    raise ZeroDivisionError
            else:
                calls = 0
                bad = when == "in the batches"
                batches = ((X, Y) if i < 1 or not bad else 1 / 0 for i in range(3))
                masking(model, batches, [mask])  # type: ignore[arg-type]
    if handle is not None:
        handle.remove()
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert [set(vars(layer)) for layer in gpsa_layers(model).values()] == names
    assert not any(m._forward_hooks for m in model.modules())


def test_masks_one_in_another() -> None:
    model = hybrid({})
    outer, inner = Mask("content only"), Mask("position only", "0")
    with masked(model, outer):
        content = logits(model)
        with masked(model, inner):
            assert not torch.equal(logits(model), content)
        assert torch.equal(logits(model), content)
    with (
        masked(model, Mask("head ablated", "3", (0, 0))),
        masked(model, Mask("head ablated", "3", (0, 2))),
    ):
        kernel = model[3]._kernel()
    assert [bool(kernel[:, :, 0, b].any()) for b in range(3)] == [False, True, False]


def test_a_hybrid_can_be_restored_and_copied_after() -> None:
    import copy

    model = hybrid({}, gate=1.0)
    masking(model, [(X, Y)])
    assert torch.equal(logits(copy.deepcopy(model)), logits(restore(model)))


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        (Mask("position only", "9"), "but got '9'"),
        (Mask("head ablated", "0"), "the layer and the tap"),
        (Mask("head ablated", None, (0, 0)), "the layer and the tap"),
        (Mask("head ablated", "3", (1, 0)), r"1×3 kernel, but got \(1, 0\)"),
        (Mask("head ablated", "3", (0, -1)), "1×3 kernel"),
        (Mask("content only", "3", (0, 0)), "Expected no tap"),
    ],
)
def test_masks_that_are_none(mask: Mask, said: str) -> None:
    model = hybrid({})
    with pytest.raises(ValueError, match=said):
        masking(model, [(X, Y)], [mask])
    with pytest.raises(ValueError, match=said), masked(model, mask):
        pass


def test_nothing_to_mask() -> None:
    with pytest.raises(ValueError, match="recast it first"):
        masking(network(), [(X, Y)])
    with pytest.raises(ValueError, match="holds none"):
        masking(hybrid({}), [])


def test_output() -> None:
    found = masking(hybrid({}), [(X, Y)])
    lines = found.table().splitlines()
    assert len(lines) == 2 + 1 + 18 and lines[2].startswith("none")
    assert "position only, all layers" in found.table()
    assert "head ablated, 3 (0, 2)" in found.table()
    plain = json.loads(json.dumps(found.to_json()))
    assert len(plain["scores"]) == 18 and set(plain["scores"][0]["mask"]) == {
        "kind",
        "layer",
        "tap",
    }
