"""Attention rollout against products written out, and by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tcnn import GPSAConfig, recast
from tcnn.analysis.capture import capture
from tcnn.analysis.rollout import attention_rollout


def rolled(model: nn.Module, x: Tensor, residual: float = 0.5) -> Tensor:
    with capture(model.eval()) as seen, torch.no_grad():
        model(x)
    return attention_rollout(seen, residual)


def test_one_shut_layer_by_hand() -> None:
    """1×3: half stays, and each head brings a sixth from its pixel; at the border the two heads
    that are left bring a quarter each."""
    cnn = nn.Sequential(nn.Conv2d(1, 1, (1, 3), padding=(0, 1)))
    found = rolled(recast(cnn, "0", input_size=(1, 1, 4)), torch.randn(1, 1, 1, 4))
    assert found.shape == (1, 1, 4, 1, 4)
    expected = torch.tensor(
        [[3 / 4, 1 / 4, 0, 0], [1 / 6, 2 / 3, 1 / 6, 0], [0, 1 / 6, 2 / 3, 1 / 6],
         [0, 0, 1 / 4, 3 / 4]]
    )  # fmt: skip
    torch.testing.assert_close(found[0, 0, :, 0], expected)
    raw = rolled(recast(cnn, "0", input_size=(1, 1, 4)), torch.randn(1, 1, 1, 4), residual=0)
    torch.testing.assert_close(raw[0, 0, 1, 0], torch.tensor([1 / 3, 1 / 3, 1 / 3, 0]))


def test_layers_on_changing_grids_against_loops() -> None:
    """8×6 → (stride 2) 4×3 → (pooled, not recast) 2×1 → 2×1."""
    torch.manual_seed(0)
    cnn = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(inplace=True),
        nn.Conv2d(4, 4, 3, stride=2, padding=1), nn.AvgPool2d((2, 3)), nn.Conv2d(4, 4, 3, padding=1)
    )  # fmt: skip
    config = GPSAConfig(gate_init=0.4)
    model = recast(cnn, ["0", "2", "4"], config, input_size=(2, 8, 6)).eval()
    with torch.no_grad():
        model[2].gating_param[3] = 1.7  # attention below 0 at its tap
    with capture(model) as seen, torch.no_grad():
        model(torch.randn(2, 2, 8, 6))
    found = attention_rollout(seen)
    assert found.shape == (2, 2, 1, 8, 6)
    for image in range(2):
        total = torch.eye(48)
        for name, stride in (("0", 1), ("2", 2), ("4", 1)):
            mixed = seen.attention(name).mixed[image].abs().mean(dim=0)
            rows, columns, height, width = mixed.shape
            if name == "4":  # 2×1 pixels, each the mean of a block of 2×3 of those of layer "2"
                blocks = total.view(4, 3, -1)
                total = torch.stack([blocks[:2].mean((0, 1)), blocks[2:].mean((0, 1))])
            step = torch.zeros(rows * columns, height * width)
            for u in range(rows):
                for v in range(columns):
                    own = mixed[u, v] / mixed[u, v].sum()
                    own = 0.5 * own
                    own[u * stride, v * stride] += 0.5
                    step[u * columns + v] = own.flatten()
            total = step @ total
        torch.testing.assert_close(found[image].flatten(2).flatten(0, 1), total)
    torch.testing.assert_close(found.sum(dim=(-2, -1)), torch.ones(2, 2, 1))


def test_attention_on_padding_alone_stays() -> None:
    """A 1×1 image under a kernel whose only tap lies on padding."""
    cnn = nn.Sequential(nn.Conv2d(1, 1, 1, padding=1, stride=2))
    found = rolled(recast(cnn, "0", input_size=(1, 1, 1)), torch.randn(1, 1, 1, 1), residual=0)
    assert found.flatten().tolist() == [1] * found.numel()


def test_images_without_a_batch() -> None:
    cnn = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1))
    assert rolled(recast(cnn, "0", input_size=(1, 4, 4)), torch.randn(1, 4, 4)).shape[0] == 1


def test_errors() -> None:
    cnn = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), nn.Conv2d(1, 1, 3, padding=1))
    model = recast(cnn, ["0", "1"], input_size=(1, 4, 4))
    with capture(model) as seen:
        pass
    with pytest.raises(ValueError, match="run an image"):
        attention_rollout(seen)
    with capture(model) as seen:
        model(torch.randn(3, 1, 4, 4))
        model[0](torch.randn(2, 1, 4, 4))
    with pytest.raises(ValueError, match=r"batches have \[2, 3\]"):
        attention_rollout(seen)
