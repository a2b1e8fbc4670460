"""`GPSA2d`: a convolution as gated positional self-attention (GPSA), one head per kernel tap."""

from __future__ import annotations

import copy as copying
import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad

from tcnn import content, content_op, convolutions, functional
from tcnn.geometry import Geometry
from tcnn.gpsa_config import GPSAConfig

_SIMILARITY_SCALE = 5.0  # τ at the start
_SHUT_LOGIT = 40.0  # sigmoid(40) is exactly 1 in float64, and so in every narrower type


@dataclass(frozen=True)
class AttentionMaps:
    """The attention of one layer on one batch, over the real pixels of its input.

    Attributes:
        position: P, (heads, Hq, Wq, H, W). A row sums to less than 1 by what falls on zero padding.
        content: S, (B, heads, Hq, Wq, H, W), rows summing to 1.
        gate: g, (heads,).
    """

    position: Tensor
    content: Tensor
    gate: Tensor

    @property
    def mixed(self) -> Tensor:
        """A = g P + (1 - g) S, (B, heads, Hq, Wq, H, W)."""
        gate = self.gate.view(-1, 1, 1, 1, 1)
        return gate * self.position + (1 - gate) * self.content


class GPSA2d(nn.Module):
    r"""A convolution as gated positional self-attention, one head h = (a, b) per kernel tap.

    .. math::
        Y   &= \sum_h W_{:,:,a,b} \, (A_h X) + \text{bias}, \qquad A_h = g_h P_h + (1 - g_h) S_h \\
        P_h &= \text{softmax}_{keys}(v^h_{pos} \cdot (\|δ\|^2, δ_1, δ_2)), \qquad
        S_h = \text{softmax}_{keys}(Q_h K_h^T / \sqrt{d_k})

    With content="cosine", S_h = softmax_keys(τ_h cos(Q_h, K_h)), Q and K of X less its mean over
    the pixels (scaled cosine attention: Liu et al. 2022, Swin V2, arXiv 2111.09883 §3.3).

    The query of output pixel (u, v) is anchored at input pixel (u·s, v·s); δ = key - anchor; head h
    starts centred at Δ_h = (a·d - p, b·d - p), with v_pos = -α (1, -2Δ_1, -2Δ_2). P ranges over the
    padded grid, S over the real pixels alone; a query anchored beyond the image reads the pixel
    nearest to it. With every gate g = 1 and α = ∞ this is the convolution.

    Takes the arguments of `torch.nn.Conv2d` and `config`, keeps the names and shapes of its
    parameters, and maps (B, C, H, W) or (C, H, W) to the convolution's output shape.

    Parameters:
        weight, bias: the convolution's own; `weight[:, :, a, b]` is head (a, b)'s output matrix.
        qk: W_qry and W_key, a linear map to (2, heads, d_k) channels.
        gating_param: (heads,). Linear gate: the content share 1 - g. Sigmoid gate: λ, g = σ(λ).
        v_pos: (heads, 3), learned positions only.
        logit_scale: (heads,), ln τ, cosine content only; τ counts as 100 above that.

    Head (a, b) has index h = a·Kw + b.

    Raises:
        ValueError: from `from_conv2d`, a convolution that cannot be recast exactly; from
            `to_conv2d`, a layer that is no longer a convolution.

    Source: d'Ascoli et al. 2021 (arXiv 2106.05795); ConViT (arXiv 2103.10697) eq. 4-7.
    """

    in_channels: int
    out_channels: int
    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int] | str
    dilation: tuple[int, int]
    groups: int
    padding_mode: str
    transposed: bool
    output_padding: tuple[int, int]
    weight: Tensor
    bias: Tensor | None
    config: GPSAConfig
    logit_scale: nn.Parameter
    scale: float  # of ScaledStdConv2d
    eps: float  # of weight standardisation
    _conv: Any  # the convolution it was recast from, without its parameters

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: Any = None,
        config: GPSAConfig | None = None,
    ) -> None:
        super().__init__()
        conv = nn.Conv2d(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            padding_mode,  # type: ignore[arg-type]
            device,
            dtype,
        )
        self._take_over(conv, config or GPSAConfig())

    @classmethod
    def from_conv2d(
        cls, conv: nn.Conv2d, config: GPSAConfig | None = None, *, copy: bool = True
    ) -> GPSA2d:
        """The layer that computes what `conv` computes.

        Args:
            conv: an `nn.Conv2d`, or one of timm's subclasses (same padding, standardised weights).
            config: options of the layer.
            copy: False hands over the parameters and hooks of `conv` themselves.
        """
        if not isinstance(conv, nn.Conv2d):
            raise ValueError(f"Expected `conv` to be an nn.Conv2d, but got {type(conv).__name__}.")
        layer = cls.__new__(cls)
        nn.Module.__init__(layer)
        layer._take_over(copying.deepcopy(conv) if copy else conv, config or GPSAConfig())
        return layer

    def _take_over(self, conv: nn.Conv2d, config: GPSAConfig) -> None:
        reason = convolutions.refusal(conv)
        if reason is not None:
            raise ValueError(f"This convolution cannot be recast: {reason}.")
        # The convolution's settings, and whatever else its network has noted on it.
        self.__dict__.update(convolutions.notes(conv))
        self.__dict__["_conv"] = convolutions.bare(conv, conv)  # not a submodule
        self.config = config
        self._dynamic_same = convolutions.is_dynamic_same(conv)
        self._standardized = convolutions.is_standardized(conv)

        reference = next(conv.parameters())
        device, dtype = reference.device, reference.dtype
        width = config.qk_dim or max(8, self.in_channels // self.heads)
        self.qk = nn.Linear(self.in_channels, 2 * self.heads * width, False, device, dtype)
        if config.content == "cosine":
            self._start_similar(width)
        else:
            nn.init.trunc_normal_(self.qk.weight, std=0.02)  # as the projections of ViT and ConViT
        gate = torch.full((self.heads,), config.gate_init, dtype=torch.float64)
        gating = (
            1 - gate if config.gate == "linear" else gate.logit().clamp(-_SHUT_LOGIT, _SHUT_LOGIT)
        )
        self.gating_param = nn.Parameter(gating.to(device, dtype))
        if config.positions == "learned":
            rows, columns = self.geometry.centres(torch.device("cpu"))
            v_pos = torch.stack([-torch.ones_like(rows), 2 * rows, 2 * columns], dim=1)
            self.v_pos = nn.Parameter((config.locality_strength * v_pos).to(device, dtype))
        convolutions.move_state(conv, self, ("weight", "bias", "gain"))
        self.train(conv.training)

    def _start_similar(self, width: int) -> None:
        """W_qry = W_key, orthonormal for each head, and the temperatures."""
        same = [
            nn.init.orthogonal_(torch.empty(width, self.in_channels, dtype=torch.float32))
            for _ in range(self.heads)
        ]
        with torch.no_grad():
            self.qk.weight.copy_(torch.cat(same + same))
        start = torch.full((self.heads,), math.log(_SIMILARITY_SCALE))
        self.logit_scale = nn.Parameter(start.to(self.qk.weight))

    def to_conv2d(self, *, copy: bool = True) -> nn.Conv2d:
        """The convolution that computes what this layer computes, of the class it was recast from.

        Args:
            copy: False hands over the parameters and hooks of this layer themselves.
        """
        reason = self.not_a_convolution()
        if reason is not None:
            raise ValueError(f"This layer is not a convolution: {reason}.")
        conv = convolutions.bare(self, self._conv)
        kept = convolutions.notes(conv).keys() & self.__dict__.keys()
        conv.__dict__.update({name: self.__dict__[name] for name in kept})  # changes included
        conv._reversed_padding_repeated_twice = convolutions.reversed_padding(conv)
        source = copying.deepcopy(self) if copy else self
        convolutions.move_state(source, conv, ("weight", "bias", "gain"))
        return conv

    def not_a_convolution(self) -> str | None:
        """Why the layer is not exactly a convolution any more; None where it is.

        Learned positions count as exact while every head keeps all but a rounding error of its
        attention on its own tap.
        """
        share = self.content_share.detach()
        if share.is_meta:
            return "it is on the meta device, where its gates have no values"
        open_heads = int(share.count_nonzero())
        if open_heads:
            return (
                f"{open_heads} of {self.heads} heads attend to content "
                f"(largest content share {share.abs().max().item():.3g})"
            )
        if self.config.positions == "learned":
            v_pos = self.v_pos.detach().double().cpu()
            for axis, centres in ((1, 0), (2, 1)):
                offsets = torch.arange(-64.0, 65.0, dtype=torch.float64)
                centre = self.geometry.centres(torch.device("cpu"))[centres].double()
                shifted = offsets + centre[:, None]
                logits = v_pos[:, :1] * shifted**2 + v_pos[:, axis : axis + 1] * shifted
                stray = 1 - logits.softmax(dim=1)[:, 64]
                if not stray.max() <= torch.finfo(self.v_pos.dtype).eps:  # so that NaN is none
                    return (
                        f"learned positions spread up to {stray.max().item():.2g} of a head's "
                        "attention beyond its kernel tap"
                    )
        return None

    @property
    def geometry(self) -> Geometry:
        """Where its queries, keys and heads lie."""
        # From the attributes as they are now: other code changes them after construction.
        return Geometry(
            convolutions.pair(self.kernel_size),
            convolutions.pair(self.stride),
            convolutions.pair(self.dilation),
            self.padding if isinstance(self.padding, str) else convolutions.pair(self.padding),
            self._dynamic_same,
        )

    @property
    def heads(self) -> int:
        """Number of heads: one per kernel tap."""
        return self.geometry.heads

    @property
    def gate(self) -> Tensor:
        """g_h, the share of the positional attention, (heads,): 1 is the convolution."""
        return self._gate_and_share()[0]

    @property
    def content_share(self) -> Tensor:
        """1 - g_h, the share of the content attention, (heads,)."""
        return self._gate_and_share()[1]

    def forward(self, input: Tensor) -> Tensor:
        """Y of (B, C, H, W) or (C, H, W), as from `torch.nn.Conv2d`."""
        if input.dim() == 3:
            return self.forward(input[None])[0]
        if input.dim() != 4:
            raise RuntimeError(
                "Expected 3D (unbatched) or 4D (batched) input to GPSA2d, "
                f"but got input of size: {list(input.shape)}."
            )
        x = input
        kernel = self._kernel()
        gate, share = self._gate_and_share()
        heads = self._heads_with_content(share)
        if heads is None:
            return self._attend_position(x, kernel, gate, shut=True)
        scene = self._scene(x)
        path = self._path(x, scene)
        if self._merges(x, share, heads, scene, path):
            mix = content.Mix(share, gate, self.geometry.taps())
            y = self._attend_content(x, kernel.flatten(2), heads, scene, path, mix)
            if self.bias is not None:
                y = y + self.bias.to(y.dtype).view(-1, 1, 1)
            return y.contiguous(memory_format=self._memory_format(x))
        y = self._attend_position(x, kernel, gate)
        return y + self._attend_content(
            x, (kernel.flatten(2) * share)[..., heads], heads, scene, path
        )

    @torch.no_grad()
    def attention(self, x: Tensor) -> AttentionMaps:
        """The layer's attention on a batch (B, C, H, W), as dense maps to look at."""
        size = (x.shape[-2], x.shape[-1])
        rows, columns = self._position_factors(size)
        scene = self._scene(x)
        queries, keys = self._queries_and_keys(x, self._key_image(x), slice(None))
        attention = content.content_map(queries, keys, scene)
        attention = attention.view(len(x), self.heads, *scene.grid, *scene.size)
        return AttentionMaps(
            position=rows[:, :, None, :, None] * columns[:, None, :, None, :],
            content=functional.unpool(attention, self.config.key_stride, size),
            gate=self.gate.detach(),
        )

    def extra_repr(self) -> str:
        changed = [
            f"{name}={getattr(self.config, name)!r}"
            for name in type(self.config).__dataclass_fields__
            if getattr(self.config, name) != getattr(GPSAConfig(), name)
        ]
        plain: Any = nn.Conv2d.extra_repr
        return ", ".join([plain(self), f"heads={self.heads}", *changed])

    # The convolution's own terms

    def _kernel(self) -> Tensor:
        """W as the convolution applies it, (out_channels, in_channels / groups, Kh, Kw)."""
        if not self._standardized:
            return self.weight
        gain = getattr(self, "gain", None)
        scale = None if gain is None else (gain * self.scale).view(-1)
        return convolutions.standardized(self.weight, scale, self.eps)

    def _convolve(self, x: Tensor, kernel: Tensor) -> Tensor:
        padding = self.padding
        if self._dynamic_same or self.padding_mode != "zeros":
            (top, bottom), (left, right) = self.geometry.pads((x.shape[-2], x.shape[-1]))
            mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
            x = F.pad(x, (left, right, top, bottom), mode=mode)
            padding = (0, 0)
        return F.conv2d(x, kernel, self.bias, self.stride, padding, self.dilation, self.groups)

    # The gate

    def _gate_and_share(self) -> tuple[Tensor, Tensor]:
        """(g, 1 - g), each (heads,)."""
        if self.config.gate == "linear":
            return 1 - self.gating_param, self.gating_param
        gate = self.gating_param.sigmoid()
        return gate, 1 - gate

    def _heads_with_content(self, share: Tensor) -> slice | list[int] | None:
        """Heads whose content term must be computed: None for none, a slice for all.

        A shut head adds nothing, but the gradient of a trainable gate, ⟨∂L/∂A, S - P⟩, needs S.
        """
        if torch.compiler.is_compiling() or share.is_meta:
            return slice(None)
        trained = torch.is_grad_enabled() and self.gating_param.requires_grad
        # All heads take part in dropout, so that a recomputation draws the same random numbers.
        drops = self.training and self.config.attn_drop > 0
        dual: Any = forward_ad.unpack_dual  # untyped
        if trained or drops or dual(share).tangent is not None:
            return slice(None)
        try:
            open_heads: list[int] = share.detach().nonzero().flatten().tolist()
        except RuntimeError:  # under vmap, where the values differ from network to network
            return slice(None)
        if len(open_heads) == self.heads:
            return slice(None)
        return open_heads or None

    # Position

    def _position_factors(self, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """R_h and C_h over the real pixels of an image (H, W): (heads, Hq, H), (heads, Wq, W)."""
        device = self.gating_param.device
        dtype = torch.promote_types(self.gating_param.dtype, torch.float32)
        anchors, centres = self.geometry.anchors(size, device), self.geometry.centres(device)
        factors = []
        for axis, pads in enumerate(self.geometry.pads(size)):
            offsets = functional.axis_offsets(anchors[axis], -pads[0], size[axis] + sum(pads))
            if self.config.positions == "learned":
                v_pos = self.v_pos.to(dtype)
                factor = functional.axis_softmax(offsets.to(dtype), v_pos[:, 0], v_pos[:, 1 + axis])
            else:
                factor = functional.axis_one_hot(offsets, centres[axis]).to(dtype)
            factors.append(functional.fold_padding(factor, *pads, self.padding_mode))
        return factors[0], factors[1]

    def _attend_position(
        self, x: Tensor, kernel: Tensor, gate: Tensor, shut: bool = False
    ) -> Tensor:
        """Σ_h g_h W[:, :, h] (P_h X) + bias; g is 1 where the gates are `shut`."""
        if self.config.positions == "fixed":
            return self._convolve(x, kernel if shut else kernel * gate.view(kernel.shape[2:]))
        rows, columns = self._position_factors((x.shape[-2], x.shape[-1]))
        y = functional.positional_output(
            x, rows.to(x.dtype), columns.to(x.dtype), kernel.flatten(2) * gate, self.groups
        )
        if self.bias is not None:
            y = y + self.bias.to(y.dtype).view(-1, 1, 1)
        return y.contiguous(memory_format=self._memory_format(x))

    def _memory_format(self, x: Tensor) -> torch.memory_format:
        """That of the convolution's output: channels last if its input or its kernel is."""
        layout = torch.channels_last
        for tensor in (x, self.weight):
            # With one channel a tensor counts as both, and its strides say which it is meant to be.
            ambiguous = tensor.is_contiguous() and tensor.shape[1] > 1
            if (
                tensor.is_contiguous(memory_format=layout)
                and tensor.stride(1) == 1
                and not ambiguous
            ):
                return layout
        return torch.contiguous_format

    # Content

    def _scene(self, x: Tensor) -> content.Scene:
        size, config = (x.shape[-2], x.shape[-1]), self.config
        drop = config.attn_drop if self.training else 0.0
        grid = self.geometry.grid(size)
        if config.key_stride > 1:  # without a window it is of no account what lies where
            coarse = (-(-size[0] // config.key_stride), -(-size[1] // config.key_stride))
            return content.Scene(coarse, grid, (0, 0), (1, 1), None, drop)
        origin = self.geometry.origin(size)
        return content.Scene(size, grid, origin, self.geometry.stride, config.window, drop)

    def _path(self, x: Tensor, scene: content.Scene) -> content.Path | None:
        """The path of content attention; None leaves it to where the sizes are known."""
        if content.transformed(x, self.gating_param):
            return "dense"
        if torch.compiler.is_compiling():
            return None
        pairs = math.prod(scene.grid) * math.prod(scene.size)
        return content.choose_path(pairs=pairs, tiles=scene.tile is not None)

    def _merges(
        self,
        x: Tensor,
        share: Tensor,
        heads: slice | list[int],
        scene: content.Scene,
        path: content.Path | None,
    ) -> bool:
        """Whether position and content are one attention A_h, in place of a sum of two outputs.

        Not where every gate is shut: then the sum is the convolution to the bit. (On other devices
        than a CPU that would be a synchronisation, and nothing is promised to the bit.)
        """
        if heads != slice(None) or self.config.key_stride > 1:
            return False
        if content.transformed(x, share):
            return False
        looks = x.device.type == "cpu" and not torch.compiler.is_compiling()
        if looks and not share.detach().any():
            return False
        if self.config.positions == "learned":
            return path == "dense"
        # Copies of pixels that other padding makes are no keys; nor are taps beyond the window.
        return self.padding_mode == "zeros" and all(map(scene.sees, self.geometry.taps()))

    def _attend_content(
        self,
        x: Tensor,
        matrix: Tensor,
        heads: slice | list[int],
        scene: content.Scene,
        path: content.Path | None,
        mix: content.Mix | None = None,
    ) -> Tensor:
        """Σ_h matrix[:, :, h] (A_h X) over the given heads, A_h = S_h without `mix`."""
        values = self._key_image(x)
        queries, keys = self._queries_and_keys(x, values, heads)
        task = (values, queries, keys, matrix, self.groups, scene, mix)
        if path != "dense":
            return content_op.attend(*task, tiles=None if path is None else path == "tiles")
        position = None
        if mix is not None and self.config.positions == "learned":
            rows, columns = self._position_factors((x.shape[-2], x.shape[-1]))
            position = functional.dense_position(rows * mix.gate.view(-1, 1, 1), columns)
        return content.attend_dense(*task, position)

    def _key_image(self, x: Tensor) -> Tensor:
        """What keys and values are of: the image, or the means of its cells."""
        cell = self.config.key_stride
        if cell == 1:
            return x
        return F.avg_pool2d(x, cell, ceil_mode=True, count_include_pad=False)

    def _queries_and_keys(
        self, x: Tensor, values: Tensor, heads: slice | list[int]
    ) -> tuple[Tensor, Tensor]:
        """Q, with the factor of the scores, and K: (B, heads, Nq, d_k), (B, heads, N, d_k)."""
        size = (x.shape[-2], x.shape[-1])
        same = values is x and self.geometry.queries_are_pixels(size)
        at_queries = x
        if not self.geometry.queries_are_pixels(size):
            rows, columns = (
                anchors.clamp(0, n - 1).long()
                for anchors, n in zip(self.geometry.anchors(size, x.device), size, strict=True)
            )
            at_queries = x.index_select(2, rows).index_select(3, columns)
        if self.config.content == "cosine":
            mean = x.mean(dim=(2, 3), keepdim=True)
            at_queries, values = at_queries - mean, values - mean
        weight = self.qk.weight.view(2, self.heads, -1, self.in_channels)[:, heads]
        if same:  # one projection for both
            both = functional.project_heads(values, weight.flatten(0, 1))
            queries, keys = both.chunk(2, dim=1)
        else:
            queries = functional.project_heads(at_queries, weight[0])
            keys = functional.project_heads(values, weight[1])
        scale = None
        if self.config.content == "cosine":
            queries, keys = functional.unit(queries), functional.unit(keys)
            # At most 100, as in Swin V2: a temperature that runs away would overflow.
            scale = self.logit_scale[heads].clamp(max=math.log(100)).exp()
        return functional.scaled_queries(queries, keys, scale)


def gpsa_layers(model: nn.Module) -> dict[str, GPSA2d]:
    """The recast layers of a network by name, in its order; a shared one by its first name."""
    return {name: m for name, m in model.named_modules() if isinstance(m, GPSA2d)}
