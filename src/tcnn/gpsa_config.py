"""The options of a GPSA layer, apart from the layer so that command-line help needs no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

_MOST = 65536  # pixels of a window, or width of a head


@dataclass(frozen=True, kw_only=True)
class GPSAConfig:
    """How a convolution is recast as gated positional self-attention (see `tcnn.layers.GPSA2d`).

    Raises:
        ValueError: an option is outside its range; the message names it.
    """

    gate: Literal["linear", "sigmoid"] = "linear"
    """"linear": the parameter is the content share 1 - g itself, exact at the start and with a
    live gradient. "sigmoid": g = σ(λ), as in ConViT; at g = 1 its gradient vanishes."""

    gate_init: float = 1.0
    """The gate g of every head at the start, from 0 (content alone) to 1 (the convolution)."""

    positions: Literal["fixed", "learned"] = "fixed"
    """"fixed": each head stays on its kernel tap (α = ∞), computed as a convolution. "learned":
    finite α with trainable positions v_pos."""

    locality_strength: float = 20.0
    """α of learned positions at the start: the positional attention falls off as exp(-α‖δ - Δ‖²).
    From 15 up the layer equals its convolution to float32 precision, and positions hardly move."""

    content: Literal["dot", "cosine"] = "dot"
    """"dot": S = softmax(Q Kᵀ / √d_k), as in ConViT; at the start it is nearly the image's mean.
    "cosine": S = softmax(τ cos(Q, K)) of the pixels less their mean, with W_qry = W_key and τ = 5
    at the start: each pixel attends to those that look like it."""

    qk_dim: int | None = None
    """Width of one head's queries and keys; None is max(8, in_channels // heads)."""

    window: int | None = None
    """Side in pixels of the neighbourhood of the query that content keys come from; None is the
    whole image. On grids much larger than the window the cost grows as the pixels do, not as their
    square."""

    key_stride: int = 1
    """Side in pixels of the cells whose means content keys and values are, in place of pixels: the
    cost of content attention falls as its square. It changes what an open gate sees, not the start.
    1 is each pixel; not together with `window`."""

    attn_drop: float = 0.0
    """Dropout probability on the entries of the content attention, in training."""

    @property
    def starts_exact(self) -> bool:
        """Whether a layer equals its convolution at the start, to float32 precision."""
        return self.gate_init == 1 and (self.positions == "fixed" or self.locality_strength >= 15)

    def __post_init__(self) -> None:
        _one_of("gate", self.gate, ("linear", "sigmoid"))
        _one_of("positions", self.positions, ("fixed", "learned"))
        _one_of("content", self.content, ("dot", "cosine"))
        _number("gate_init", self.gate_init, lambda g: 0 <= g <= 1, "a number from 0 to 1")
        _number(
            "locality_strength",
            self.locality_strength,
            lambda α: 0 < α < float("inf"),
            "a finite number above 0 (α = ∞ is positions='fixed')",
        )
        _number("attn_drop", self.attn_drop, lambda p: 0 <= p < 1, "a number in [0, 1)")
        for name, none in (("qk_dim", "None or "), ("window", "None or "), ("key_stride", "")):
            value = getattr(self, name)
            whole = isinstance(value, int) and not isinstance(value, bool)
            if not (value is None and none) and (not whole or not 1 <= value <= _MOST):
                raise ValueError(
                    f"Expected `{name}` to be {none}a whole number from 1 to {_MOST}, "
                    f"but got {value!r}."
                )
        if self.window is not None and self.key_stride > 1:
            raise ValueError(
                f"Expected `window` or `key_stride`, but got window={self.window} and "
                f"key_stride={self.key_stride}: each makes content attention affordable by itself."
            )


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"Expected `{name}` to be one of {allowed}, but got {value!r}.")


def _number(name: str, value: float, holds: Callable[[float], bool], wanted: str) -> None:
    if not isinstance(value, int | float) or not holds(value):
        raise ValueError(f"Expected `{name}` to be {wanted}, but got {value!r}.")
