"""Linear CKA: against a second implementation, and where the answer is known."""

from __future__ import annotations

import itertools
import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from nets import TwoStage, lively
from tcnn import GPSAConfig, recast
from tcnn.analysis.similarity import cka, gram, linear_cka, unbiased_hsic
from tcnn.errors import TCNNError


def hsic_by_tuples(k: Tensor, l: Tensor) -> float:  # noqa: E741
    """HSIC as the U-statistic that it is: the mean over all ordered quadruples of distinct images
    of k_ij (l_ij + l_qr - 2 l_iq) (Song et al. 2012, eq. 4 and 5), image by image."""
    n, total, count = len(k), 0.0, 0
    for i, j, q, r in itertools.permutations(range(n), 4):
        total += (k[i, j] * (l[i, j] + l[q, r] - 2 * l[i, q])).item()
        count += 1
    return total / count


@settings(max_examples=15, deadline=None)
@given(n=st.integers(4, 6), widths=st.tuples(st.integers(1, 4), st.integers(1, 4)),
       shift=st.floats(-3, 3), seed=st.integers(0, 99))  # fmt: skip
def test_hsic_against_quadruples(n: int, widths: tuple[int, int], shift: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(n, width, generator=generator).double() + shift for width in widths)
    k, l = x @ x.T, y @ y.T  # noqa: E741
    found = unbiased_hsic(k[None], l[None])
    assert found.shape == (1, 1)
    assert found.item() == pytest.approx(hsic_by_tuples(k, l), rel=1e-6, abs=1e-6)


def reference_cka(batches: list[tuple[Tensor, Tensor]]) -> float:
    """Minibatch CKA of Nguyen et al. 2021, batch by batch, as the paper writes it."""

    def hsic(k: Tensor, l: Tensor) -> Tensor:  # noqa: E741
        n = len(k)
        k = k * (1 - torch.eye(n).double())
        l = l * (1 - torch.eye(n).double())  # noqa: E741
        one = torch.ones(n, 1).double()
        middle = (one.T @ k @ one) * (one.T @ l @ one) / ((n - 1) * (n - 2))
        last = 2 / (n - 2) * (one.T @ k @ l @ one)
        return (torch.trace(k @ l) + middle - last).squeeze() / (n * (n - 3))

    kl = kk = ll = torch.zeros(()).double()
    for x, y in batches:
        k, l = x.flatten(1) @ x.flatten(1).T, y.flatten(1) @ y.flatten(1).T  # noqa: E741
        kl, kk, ll = kl + hsic(k, l), kk + hsic(k, k), ll + hsic(l, l)
    m = len(batches)
    return (kl / m / ((kk / m).sqrt() * (ll / m).sqrt())).item()


@settings(max_examples=25, deadline=None)
@given(n=st.integers(5, 9), m=st.integers(1, 3), seed=st.integers(0, 99))
def test_linear_cka_against_the_papers_formula(n: int, m: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for _ in range(m):
        x = torch.randn(n, 3, 2, 2, generator=generator).double()
        noise = torch.randn(n, 5, generator=generator).double()
        batches.append((x, x.flatten(1)[:, :5] + noise))
    assert linear_cka(batches).item() == pytest.approx(reference_cka(batches))


def test_what_cka_does_not_see() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20, 6, generator=generator).double()
    rotation = torch.linalg.qr(torch.randn(6, 6, generator=generator).double()).Q
    assert linear_cka([(x, 3 * x @ rotation + 7)]).item() == pytest.approx(1)
    other = torch.randn(20, 6, generator=generator).double()
    assert abs(linear_cka([(x, other)]).item()) < 0.3
    assert math.isnan(linear_cka([(x, torch.ones(20, 2))]).item())


def test_unbiased_where_the_plain_estimator_is_not() -> None:
    """Independent features: the mean over many batches is 0, of few images in many dimensions."""
    generator = torch.Generator().manual_seed(0)
    values = [
        unbiased_hsic(
            gram(torch.randn(8, 50, generator=generator))[None],
            gram(torch.randn(8, 50, generator=generator))[None],
        ).item()
        for _ in range(400)
    ]
    mean = torch.tensor(values)
    assert abs(mean.mean()) < 3 * mean.std() / 20


# Of networks

X = torch.randn(22, 3, 16, 16, generator=torch.Generator().manual_seed(0))
BATCHES = list(X.split(8))


def networks() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    cnn = lively(TwoStage())
    return cnn, recast(cnn, "deep", input_size=(3, 16, 16))


def test_a_recast_network_is_like_its_cnn() -> None:
    cnn, hybrid = networks()
    found = cka(cnn, hybrid, BATCHES)
    assert found.layers_a == ("stem", "down", "mix", "deep", "squeeze", "head") == found.layers_b
    for name in found.layers_a:
        assert found.of(name, name) == pytest.approx(1, abs=1e-6)
    assert (found.images, found.batches, found.left_out) == (22, 3, 0)


def test_the_matrix_against_features_kept_whole() -> None:
    cnn, _ = networks()
    hybrid = recast(cnn, "deep", GPSAConfig(gate_init=0.2), input_size=(3, 16, 16)).eval()
    cnn.eval()
    found = cka(cnn, hybrid, [(x, "labels") for x in BATCHES], ["d*", "head"], "deep")
    assert found.layers_a == ("down", "deep", "head") and found.layers_b == ("deep",)
    kept: dict[str, list[Tensor]] = {}
    handles = [
        module.register_forward_hook(
            lambda _m, _a, y, key=f"{side}{name}": kept.setdefault(key, []).append(
                y.double() - y.double().mean(dim=0)  # or the reference has no digits left
            )
        )
        for side, model in (("a", cnn), ("b", hybrid))
        for name, module in model.named_modules()
    ]
    with torch.no_grad():
        for x in BATCHES:
            cnn(x), hybrid(x)
    for handle in handles:
        handle.remove()
    for name in found.layers_a:
        expected = reference_cka(list(zip(kept[f"a{name}"], kept["bdeep"], strict=True)))
        assert found.of(name, "deep") == pytest.approx(expected, rel=1e-6)
    assert found.of("deep", "deep") < 1 - 1e-4


def test_small_batches_are_left_out_and_counted() -> None:
    cnn, hybrid = networks()
    found = cka(cnn, hybrid, X.split(19), "deep")
    assert (found.images, found.batches, found.left_out) == (19, 1, 3)
    for batches, said in (([X[:3]], "smaller ones"), ([], "none")):
        with pytest.raises(TCNNError, match=f"but got {said}: give larger"):
            cka(cnn, hybrid, batches)


def test_nothing_is_left_on_the_networks() -> None:
    cnn, hybrid = networks()
    cnn.train()
    hybrid.eval()
    before = [m.training for model in (cnn, hybrid) for m in model.modules()]
    state = {name: value.clone() for name, value in cnn.state_dict().items()}

    def batches() -> object:
        yield X
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        cka(cnn, hybrid, batches())  # type: ignore[arg-type]
    cka(cnn, cnn, BATCHES)  # one network with itself
    assert [m.training for model in (cnn, hybrid) for m in model.modules()] == before
    assert not any(m._forward_hooks for model in (cnn, hybrid) for m in model.modules())
    assert all(torch.equal(value, state[name]) for name, value in cnn.state_dict().items())


class Odd(nn.Module):
    """One layer unused, one that splits images into rows, one whose output is a pair."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.unused = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)
        self.rows, self.gru = nn.Linear(16, 4), nn.GRU(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.rows(self.first(x).flatten(0, 1))
        return self.gru(y)[0].unflatten(0, (len(x), -1))


def test_layers_without_a_row_for_each_image() -> None:
    model = Odd()
    assert cka(model, model, BATCHES).layers_a == ("first",)  # of all there is
    for name, got in (("unused", "no call"), ("rows", "32×16×4"), ("gru", "tuple"), ("x*", "none")):
        with pytest.raises(TCNNError, match=got):
            cka(model, model, BATCHES, name)


def test_a_layer_that_tells_images_apart_no_more() -> None:
    cnn, hybrid = networks()
    with torch.no_grad():
        cnn.head.weight.zero_()
    found = cka(cnn, hybrid, BATCHES)
    assert math.isnan(found.of("head", "stem"))
    assert found.to_json()["cka"][-1] == [None] * 6
    assert "nan" in found.table()


def test_output() -> None:
    cnn, hybrid = networks()
    found = cka(cnn, hybrid, BATCHES, "stem", ["deep", "head"])
    assert "nearest layer" in found.table() and "stem" in found.table()
    plain = json.loads(json.dumps(found.to_json()))
    assert plain["cka"] == [list(found.matrix[0])] and plain["layers_b"] == ["deep", "head"]
