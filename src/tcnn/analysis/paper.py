"""The paper's own results, to be set beside ours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class PaperNetwork:
    """One network of the paper; accuracies are top-1 in per cent.

    Attributes:
        family: the network as it was, or with its last stage recast and fine-tuned.
        depth: layers.
        parameters: in millions.
        clean: on ImageNet-1k.
        imagenet_c, imagenet_a, imagenet_r: on these, ImageNet-C as the mean over corruptions.
        fgsm: on ImageNet-1k, attacked.
    """

    family: Literal["ResNet-RS", "T-CNN"]
    depth: int
    parameters: int
    clean: float
    imagenet_c: float
    imagenet_a: float
    imagenet_r: float
    fgsm: float


# Read off the figure, so to about ±0.1.
# Source: d'Ascoli, Sagun, Biroli, Morcos 2021 (arXiv 2106.05795) fig. 1.
NETWORKS = (
    PaperNetwork("ResNet-RS", 50, 36, 78.8, 36.8, 5.7, 39.1, 28.7),
    PaperNetwork("ResNet-RS", 101, 64, 80.3, 44.1, 11.8, 44.8, 32.9),
    PaperNetwork("ResNet-RS", 152, 87, 81.2, 49.9, 23.4, 45.9, 41.5),
    PaperNetwork("ResNet-RS", 200, 93, 82.8, 49.4, 25.4, 48.1, 40.4),
    PaperNetwork("ResNet-RS", 270, 130, 83.8, 53.6, 26.6, 48.7, 44.7),
    PaperNetwork("ResNet-RS", 350, 164, 84.0, 53.9, 34.9, 49.7, 48.3),
    PaperNetwork("T-CNN", 50, 38, 81.0, 48.0, 18.7, 42.9, 47.2),
    PaperNetwork("T-CNN", 101, 66, 82.4, 52.9, 27.7, 47.8, 50.3),
    PaperNetwork("T-CNN", 152, 89, 83.7, 54.5, 39.8, 50.6, 57.3),
    PaperNetwork("T-CNN", 200, 96, 84.0, 57.0, 41.2, 51.1, 58.2),
    PaperNetwork("T-CNN", 270, 133, 84.3, 58.6, 43.7, 51.4, 59.0),
    PaperNetwork("T-CNN", 350, 167, 84.5, 59.2, 44.8, 53.8, 53.4),
)
