"""The package `imagecorruptions` 1.1.2 as a reference, made to run on today's libraries.

It is from 2021 and asks for what has gone since: pkg_resources, which it finds its own folder with,
`multichannel` of scikit-image and np.float_. Each is put in its place for the time it is needed,
and the installed package stays as it is.
"""

from __future__ import annotations

import importlib.util
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import PIL.Image
import skimage.filters


def _load() -> types.ModuleType:
    """The package's module of functions, imported under the stand-ins."""
    spec = importlib.util.find_spec("imagecorruptions")
    if spec is None or spec.origin is None:
        raise ImportError("Expected imagecorruptions to be installed: make venv")
    folder = Path(spec.origin).parent
    resources = types.ModuleType("pkg_resources")
    resources.resource_filename = lambda _, name: str(folder / name)  # type: ignore[attr-defined]

    plain = skimage.filters.gaussian

    def gaussian(image: np.ndarray, sigma: Any, multichannel: bool = False, **rest: Any) -> Any:
        return plain(image, sigma, channel_axis=-1 if multichannel else None, **rest)

    with mock.patch.object(skimage.filters, "gaussian", gaussian), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        # Not mock.patch.dict, which would forget all that is imported meanwhile.
        before = sys.modules.get("pkg_resources")
        sys.modules["pkg_resources"] = resources
        try:
            return importlib.import_module("imagecorruptions.corruptions")
        finally:
            del sys.modules["pkg_resources"]
            if before:
                sys.modules["pkg_resources"] = before


_MODULE = _load()


@contextmanager
def _old_libraries() -> Iterator[None]:
    with warnings.catch_warnings(), mock.patch.object(np, "float_", np.float64, create=True):
        # Spatter divides 0 by 0 where no liquid is left, and casts what comes of it.
        warnings.simplefilter("ignore", RuntimeWarning)
        yield


def reference(image: np.ndarray, name: str, severity: int) -> np.ndarray:
    """The reference's result on an RGB image, its randomness from numpy's global state."""
    function: Callable[..., Any] = getattr(_MODULE, name)
    with _old_libraries():
        return np.uint8(function(PIL.Image.fromarray(image), severity))


class LegacyRandomness:
    """numpy's global generator under the names of `np.random.Generator`."""

    def __init__(self, seed: int) -> None:
        state = np.random.RandomState(seed)
        self.standard_normal = state.standard_normal
        self.uniform = state.uniform
        self.poisson = state.poisson
        self.random = state.random_sample
        self.integers = state.randint
