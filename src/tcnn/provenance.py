"""What a figure was made with: versions and hardware, to stand beside it."""

from __future__ import annotations

import os
import platform
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import tcnn

_PACKAGES = ("torch", "torchvision", "timm", "lightning", "numpy", "scikit-learn", "safetensors")


def provenance() -> dict[str, Any]:
    """Versions of Python, of this package and of those it stands on, and the machine."""
    versions = {"python": platform.python_version(), "tcnn": tcnn.__version__}
    for name in _PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "versions": versions,
        "hardware": {
            "processor": _processor(),
            "system": platform.system(),
            "cpus": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
    }


def _processor() -> str:
    """The processor's name where the system tells it, or else its architecture."""
    try:
        found = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    name = found[1] if found else platform.processor()
    return f"{name} ({platform.machine()})" if name else platform.machine()
