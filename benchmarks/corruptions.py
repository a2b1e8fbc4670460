"""What corrupting an image costs, beside the package `imagecorruptions`.

    python benchmarks/corruptions.py --json benchmarks/results/corruptions.json

One image on one core, as in a worker of a data loader. The two take turns, so that a drift of the
machine's speed meets them alike. A figure is the mean over the severities of the median of the runs
at each; the ratio is that of the two figures. --picture draws all corruptions of a photograph
instead (Chelsea the cat, by Stéfan van der Walt, CC0, which comes with scikit-image).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import cv2
import numpy as np
import skimage.data
import torch
from matplotlib.figure import Figure

from tcnn.corruptions import CORRUPTIONS, SEVERITIES, Image, corrupt, image_rng
from tcnn.provenance import provenance
from tcnn.tables import text_table
from tcnn.timing import alternate

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from reference_corruptions import reference


def picture(size: int) -> Image:
    """Colours of all scales, as a photograph has them."""
    rng = np.random.default_rng(0)
    total = np.zeros((size, size, 3))
    for cells in (3, 8, 20, size):
        noise = rng.random((cells, cells, 3))
        total += cv2.resize(noise, (size, size), interpolation=cv2.INTER_CUBIC) / cells**0.5
    total -= total.min()
    return (total / total.max() * 255).astype(np.uint8)


def compare(name: str, image: Image, runs: int) -> dict[str, str | int | float]:
    """A row: both packages' milliseconds for one image, the mean over severities."""
    rng = np.random.default_rng(0)
    totals = {"tcnn": 0.0, "reference": 0.0}
    for severity in SEVERITIES:
        calls: dict[str, Callable[[], object]] = {
            "tcnn": lambda s=severity: corrupt(image, name, s, rng),  # type: ignore[misc]
            "reference": lambda s=severity: reference(image, name, s),  # type: ignore[misc]
        }
        for key, timing in alternate(calls, runs).items():
            totals[key] += 1e3 * timing.spread.median / len(SEVERITIES)
    return {
        "name": name,
        "size": len(image),
        "ms": totals["tcnn"],
        "images_per_second": 1e3 / totals["tcnn"],
        "reference_ms": totals["reference"],
        "times_faster": totals["reference"] / totals["tcnn"],
    }


def draw(path: Path) -> None:
    """A photograph as it is and under every corruption at severity 3."""
    photograph = cv2.resize(
        skimage.data.chelsea()[:, 75:375], (112, 112), interpolation=cv2.INTER_AREA
    )
    figure = Figure(figsize=(6.2, 5.6), layout="constrained")
    for axes, name in zip(figure.subplots(4, 5).flat, ("original", *CORRUPTIONS), strict=True):
        image = photograph
        if name in CORRUPTIONS:
            image = corrupt(photograph, name, 3, image_rng(0, name, 3, 0))
        axes.imshow(image, interpolation="nearest")
        axes.set_title(name.replace("_", " "), fontsize=8)
        axes.axis("off")
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 64, 224])
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--picture", type=Path, help="draw the corruptions, and measure nothing")
    args = parser.parse_args()
    if args.picture:
        draw(args.picture)
        return

    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    np.random.seed(0)
    rows = []
    for size in args.sizes:
        image = picture(size)
        rows += [compare(name, image, args.runs) for name in CORRUPTIONS]
        table = [
            (
                row["name"],
                f"{row['ms']:.2f}",
                f"{row['images_per_second']:.0f}",
                f"{row['reference_ms']:.2f}",
                f"{row['times_faster']:.1f}",
            )
            for row in rows
            if row["size"] == size
        ]
        columns = ("corruption", "ms", "images/s", "reference ms", "times faster")
        print(f"\n{size}×{size}×3, one thread\n{text_table(columns, table)}", flush=True)
    if args.json:
        packages = ("imagecorruptions", "opencv-python-headless", "scikit-image", "scipy", "pillow")
        content = {
            "command": f"python benchmarks/corruptions.py --sizes {' '.join(map(str, args.sizes))} "
            f"--runs {args.runs}",
            "rows": rows,
            **provenance(),
        }
        content["versions"].update({name: version(name) for name in packages})
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
