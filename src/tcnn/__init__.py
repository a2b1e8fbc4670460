"""Recast the convolutions of a trained CNN as gated positional self-attention (arXiv 2106.05795).

The names below are the public interface. They are imported when first used (PEP 562), so that
`import tcnn` and the command line's help cost nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tcnn.checkpoint import load, save
    from tcnn.equivalence import EquivalenceReport, check_equivalence
    from tcnn.errors import TCNNError
    from tcnn.gpsa_config import GPSAConfig
    from tcnn.layers import GPSA2d
    from tcnn.models import load_model
    from tcnn.planning import Plan, plan
    from tcnn.surgery import recast, restore

__version__ = "0.1.0"

_HOMES = {
    "EquivalenceReport": "equivalence",
    "GPSA2d": "layers",
    "GPSAConfig": "gpsa_config",
    "Plan": "planning",
    "TCNNError": "errors",
    "check_equivalence": "equivalence",
    "load": "checkpoint",
    "load_model": "models",
    "plan": "planning",
    "recast": "surgery",
    "restore": "surgery",
    "save": "checkpoint",
}

__all__ = [
    "EquivalenceReport",
    "GPSA2d",
    "GPSAConfig",
    "Plan",
    "TCNNError",
    "__version__",
    "check_equivalence",
    "load",
    "load_model",
    "plan",
    "recast",
    "restore",
    "save",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'tcnn' has no attribute {name!r}")
    value = getattr(import_module(f"tcnn.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
