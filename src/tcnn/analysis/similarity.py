"""How alike two networks represent images, layer by layer: linear CKA."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tcnn.errors import TCNNError
from tcnn.evaluate import finite
from tcnn.layers import GPSA2d
from tcnn.running import eval_mode
from tcnn.tables import text_table

_FEWEST = 4  # images of a batch, below which the estimator is not defined
Batch = Tensor | Sequence[Any]


def gram(features: Tensor) -> Tensor:
    """K = X Xᵀ in float64, (n, n), of features (n, ...) of n images less their mean.

    HSIC₁ is the same with the mean and without; but where the mean is much larger than what tells
    images apart, it is without it that the digits last.
    """
    flat = features.detach().flatten(1).double()
    flat = flat - flat[:1]  # what is the same for all images is 0, and stays so
    flat = flat - flat.mean(dim=0)
    return flat @ flat.T


def unbiased_hsic(a: Tensor, b: Tensor) -> Tensor:
    r"""HSIC₁(K, L) of each Gram matrix K of `a` with each L of `b`.

    .. math::
        \frac{1}{n(n-3)} \Bigl[ tr(\tilde K \tilde L)
        + \frac{1^T \tilde K 1 \, 1^T \tilde L 1}{(n-1)(n-2)}
        - \frac{2}{n-2} 1^T \tilde K \tilde L 1 \Bigr]

    with K̃ and L̃ the matrices without their diagonal.

    Args:
        a, b: symmetric matrices, (A, n, n) and (B, n, n), n ≥ 4.

    Returns:
        (A, B). Unbiased, so below 0 too where there is no likeness.

    Source: Song, Smola, Gretton, Bedo, Borgwardt 2012, JMLR 13, eq. 5; Nguyen, Raghu, Kornblith
        2021 (arXiv 2010.15327), where it is named so.
    """
    n = a.shape[-1]
    a, b = (grams - torch.diag_embed(grams.diagonal(dim1=-2, dim2=-1)) for grams in (a, b))
    rows_a, rows_b = a.sum(dim=-1), b.sum(dim=-1)
    trace = a.flatten(1) @ b.flatten(1).T
    sums = torch.outer(rows_a.sum(dim=-1), rows_b.sum(dim=-1)) / ((n - 1) * (n - 2))
    return (trace + sums - 2 / (n - 2) * (rows_a @ rows_b.T)) / (n * (n - 3))


class LinearCKA:
    r"""Linear CKA over minibatches, of each of a's representations with each of b's.

    .. math::
        \frac{\frac1m \sum_i HSIC_1(X_i X_i^T, Y_i Y_i^T)}
        {\sqrt{\frac1m \sum_i HSIC_1(X_i X_i^T, X_i X_i^T)}
        \sqrt{\frac1m \sum_i HSIC_1(Y_i Y_i^T, Y_i Y_i^T)}}

    Only sums over batches are held. Batches are to be of one size: of means over batches, each
    counts alike.

    Source: Nguyen, Raghu, Kornblith 2021 (arXiv 2010.15327), minibatch CKA.
    """

    def __init__(self) -> None:
        self._sums: list[Tensor | float] = [0.0, 0.0, 0.0]

    def add(self, a: Tensor, b: Tensor) -> None:
        """Take in a batch: Gram matrices (A, n, n) and (B, n, n) of the same n images."""
        own = [torch.cat([unbiased_hsic(m[None], m[None])[0] for m in grams]) for grams in (a, b)]
        terms = (unbiased_hsic(a, b), *own)
        self._sums = [total + term for total, term in zip(self._sums, terms, strict=True)]

    def value(self) -> Tensor:
        """CKA, (A, B): 1 for representations that are alike but for rotation and one scale. NaN for
        one that is the same for all images."""
        both, a, b = map(torch.as_tensor, self._sums)
        return both / (a[:, None].sqrt() * b[None, :].sqrt())


def linear_cka(batches: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """`LinearCKA` of two representations, given as batches of features (n, ...) of n ≥ 4 images.

    Returns:
        Scalar, float64.
    """
    sums = LinearCKA()
    for x, y in batches:
        sums.add(gram(x)[None], gram(y)[None])
    return sums.value()[0, 0]


@dataclass(frozen=True)
class CKAResult:
    """Linear CKA of two networks' layers on the same images.

    Attributes:
        layers_a, layers_b: names of the layers, in the networks' order.
        matrix: CKA by layer of a, then by layer of b; NaN for a layer whose output is the same for
            all images.
        images, batches: that it was measured on.
        left_out: images of batches of fewer than four, which the estimator does not take.
    """

    layers_a: tuple[str, ...]
    layers_b: tuple[str, ...]
    matrix: tuple[tuple[float, ...], ...]
    images: int
    batches: int
    left_out: int

    def of(self, layer_a: str, layer_b: str) -> float:
        """CKA of two layers."""
        return self.matrix[self.layers_a.index(layer_a)][self.layers_b.index(layer_b)]

    def table(self) -> str:
        """For each layer of a: its CKA with the layer of b that has its name, and with the nearest
        one of all."""
        rows = []
        for name, values in zip(self.layers_a, self.matrix, strict=True):
            own = self.of(name, name) if name in self.layers_b else None
            known = [value if math.isfinite(value) else -math.inf for value in values]
            best = known.index(max(known))
            rows.append((name, own, self.layers_b[best], values[best]))
        return text_table(("layer", "CKA with its namesake", "nearest layer", "CKA"), rows)

    def to_json(self) -> dict[str, Any]:
        """The figures as plain data; None for NaN."""
        return {
            "layers_a": list(self.layers_a),
            "layers_b": list(self.layers_b),
            "cka": [[finite(value) for value in row] for row in self.matrix],
            "images": self.images,
            "batches": self.batches,
            "left_out": self.left_out,
        }


def cka(
    model_a: nn.Module,
    model_b: nn.Module,
    batches: Iterable[Batch],
    layers_a: str | Sequence[str] | None = None,
    layers_b: str | Sequence[str] | None = None,
) -> CKAResult:
    """Run two networks in eval mode on the same images, and compare their layers' outputs.

    Of each layer, its n×n Gram matrices of one batch are held at a time, and no features. Of one
    that is called several times, the last call counts. Hooks are gone afterwards, and each module
    is back in its own mode.

    Args:
        model_a, model_b: the networks, on devices of their own.
        batches: images (n, ...), or tuples that begin with them, such as a `DataLoader`'s.
        layers_a, layers_b: names or globs of modules whose output is one tensor (n, ...). None is
            all convolutions, recast or not, and linear layers that are called and give one;
            layers_b None is layers_a.

    Raises:
        TCNNError: a name matches no module; a named layer is not called, or gives no tensor of n
            rows; there is no batch of four images.
    """
    layers_b = layers_a if layers_b is None else layers_b
    sides = [_Side(model_a, layers_a), _Side(model_b, layers_b)]
    sums, images, count, left_out = LinearCKA(), 0, 0, 0
    with torch.no_grad(), eval_mode(model_a), eval_mode(model_b):
        for batch in batches:
            x = batch if isinstance(batch, Tensor) else batch[0]
            if len(x) < _FEWEST:
                left_out += len(x)
                continue
            a, b = (side.grams(x) for side in sides)
            sums.add(a, b)
            images, count = images + len(x), count + 1
    if not count:
        raise TCNNError(
            f"Expected batches of {_FEWEST} images or more, but got "
            f"{'smaller ones' if left_out else 'none'}: give larger batches."
        )
    matrix = tuple(tuple(row) for row in sums.value().tolist())
    names_a, names_b = (tuple(side.layers) for side in sides)
    return CKAResult(names_a, names_b, matrix, images, count, left_out)


class _Side:
    """One of the networks, and those of its layers that are compared."""

    def __init__(self, model: nn.Module, wanted: str | Sequence[str] | None) -> None:
        self.model, self.named = model, wanted is not None
        modules = dict(model.named_modules())
        if wanted is None:
            inner = {m.qk for m in modules.values() if isinstance(m, GPSA2d)}  # never called
            kinds = nn.Conv2d | GPSA2d | nn.Linear
            names = {n for n, m in modules.items() if isinstance(m, kinds) and m not in inner}
        else:
            names = set()
            for pattern in [wanted] if isinstance(wanted, str) else wanted:
                matched = {name for name in modules if fnmatch.fnmatchcase(name, pattern)}
                if not matched:
                    raise TCNNError(
                        f"Expected layers of {type(model).__name__}, but {pattern!r} matches none "
                        f"of its {len(modules)} modules: give names as of named_modules(), such as "
                        f"{next(reversed(modules))!r}."
                    )
                names |= matched
        self.layers = {name: module for name, module in modules.items() if name in names}

    def grams(self, x: Tensor) -> Tensor:
        """Gram matrices of the layers' outputs on a batch, (layers, n, n), on the CPU."""
        parameter = next((p for p in self.model.parameters() if p.is_floating_point()), x)
        found: dict[str, Tensor | str] = {}
        with ExitStack() as hooks:
            for name, module in self.layers.items():
                hook = module.register_forward_hook(partial(_keep, found, name, len(x)))
                hooks.callback(hook.remove)
            self.model(x.to(parameter.device))
        unfit = {n: found.get(n, "no call of it") for n in self.layers}
        unfit = {n: got for n, got in unfit.items() if isinstance(got, str)}
        if not self.named:  # by the first batch it is known which they are
            self.layers = {n: module for n, module in self.layers.items() if n not in unfit}
            self.named, unfit = True, {}
        if unfit or not self.layers:
            name, got = next(iter(unfit.items()), ("any layer", "none"))
            raise TCNNError(
                f"Expected {name} of {type(self.model).__name__} to give a tensor with a row for "
                f"each of {len(x)} images, but got {got}: name other layers."
            )
        return torch.stack([gram for n in self.layers if isinstance(gram := found[n], Tensor)])


def _keep(
    found: dict[str, Tensor | str],
    name: str,
    images: int,
    _module: nn.Module,
    _args: Any,
    output: Any,
) -> None:
    """Note the Gram matrix of a layer's output, or what it is instead."""
    if not isinstance(output, Tensor):
        found[name] = type(output).__name__
    elif output.dim() < 2 or len(output) != images:
        found[name] = "×".join(map(str, output.shape)) or "a number"
    else:
        found[name] = gram(output).cpu()
