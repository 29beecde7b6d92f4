"""A block's parts for training in bfloat16 on a CPU: half the memory, a fraction of the time.

PyTorch's fused attention is slow there in the backward pass (measured with 2.14: three times as
slow as plain matrix products), and what autograd keeps is more than needed. Here the products are
plain ones, over as many samples at a time as the caches hold; attention weights of many tokens,
activations and the bfloat16 copies of fp32 weights, which autocast would keep, are computed again;
of a norm and the product that follows, only the normalised values are kept, in bfloat16. The
results are those of the plain formulas in bfloat16.

Shapes: B batch, N tokens, D width, n heads, d = D/n.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import Mlp
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

# Attention weights held at a time; 4 MB of them.
CHUNK = 2**21
# Up to this many tokens they are kept: a step's peak comes later, when gradients are there.
FEW_TOKENS = 256


def applies(x: Tensor) -> bool:
    """Whether products with a tensor are part of a training step in bfloat16 on a CPU."""
    autocast = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu")
    return (
        torch.bfloat16 in {x.dtype, autocast}
        and x.device.type == "cpu"
        and torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
    )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x weight^T + bias: (..., D) -> (..., out)."""
    if not applies(x):
        return F.linear(x, weight, bias)
    return _Linear.apply(x.bfloat16(), weight, bias, False, *_origin(x))


def self_attention(qkv: Tensor, num_heads: int, last: int | None = None) -> Tensor:
    """softmax(q k^T / sqrt(d)) v of every head: (B, N, 3 * D) bfloat16 -> (B, N, D).

    With `last`, of the queries of these many last tokens: (B, last, D).
    """
    return _SelfAttention.apply(qkv, num_heads, qkv.shape[1] if last is None else last)


class Linear(nn.Linear):
    """torch's, by way of `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., out)."""
        return linear(x, self.weight, self.bias)


class LeanLayerNorm(nn.LayerNorm):
    """torch's; in a training step in bfloat16 on a CPU it keeps what it made, not what it got."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D); bfloat16 in such a step."""
        if not applies(x):
            return super().forward(x)
        out, normalised = _LayerNorm.apply(x, self.weight, self.bias, self.eps)
        # With these `linear` makes its input again, and does not keep it.
        out.normalised = (out._version, normalised, self.weight, self.bias)
        return out


class LeanMlp(Mlp):
    """timm's MLP; in a training step in bfloat16 on a CPU it keeps no activations but its own."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        hidden = linear(x, self.fc1.weight, self.fc1.bias)
        if applies(hidden):
            return _Linear.apply(hidden, self.fc2.weight, self.fc2.bias, True)
        return self.fc2(self.act(hidden))


class _Linear(torch.autograd.Function):
    """linear(x) or linear(gelu(x)) of bfloat16 x, which keeps x and the weight as it is stored.

    Of an x that came from a norm it keeps what it came from, which the norm keeps too.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool, *origin: Tensor
    ) -> Tensor:
        ctx.save_for_backward(weight, *(origin or [x]))
        ctx.gelu = gelu
        return _product(F.gelu(x) if gelu else x, weight.bfloat16(), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, *origin = ctx.saved_tensors
        x = _affine(*origin) if len(origin) > 1 else origin[0]
        rows, needed = grad.flatten(0, -2), ctx.needs_input_grad
        grad_x = grad_weight = grad_bias = None
        # In this order, and in place, one tensor of the size of x is in memory at a time.
        if needed[2]:
            grad_bias = rows.sum(dim=0).to(weight.dtype)
        if needed[1]:
            inputs = F.gelu(x) if ctx.gelu else x
            grad_weight = (rows.T @ inputs.flatten(0, -2)).to(weight.dtype)
            del inputs
        if needed[0]:
            grad_x = grad @ weight.to(grad.dtype)
            if ctx.gelu:
                torch.ops.aten.gelu_backward.grad_input(grad_x, x, grad_input=grad_x)
        return grad_x, grad_weight, grad_bias, None, *(None for _ in needed[4:])


class _LayerNorm(torch.autograd.Function):
    """Layer norm of (..., D), and its values before weight and bias, which it keeps: bfloat16."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        # Without weight and bias it takes twice as long as with those that change nothing.
        ones, zeros = x.new_ones(weight.shape).float(), x.new_zeros(weight.shape).float()
        values, _, scale = torch.native_layer_norm(x.float(), weight.shape, ones, zeros, eps)
        normalised = values.bfloat16()
        ctx.save_for_backward(normalised, scale, weight, bias)
        ctx.mark_non_differentiable(normalised)
        ctx.set_materialize_grads(False)
        return _affine(values, weight, bias), normalised

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: None) -> tuple[Tensor | None, ...]:
        normalised, scale, weight, bias = ctx.saved_tensors
        # Of values with mean 0 and scale 1, whose derivative by x is the scale.
        grad_x, grad_weight, grad_bias = torch.ops.aten.native_layer_norm_backward(
            grad.float(),
            normalised.float(),
            weight.shape,
            torch.zeros_like(scale),
            torch.ones_like(scale),
            weight.float(),
            bias.float(),
            ctx.needs_input_grad[:3],
        )
        return grad_x if grad_x is None else grad_x.mul_(scale), grad_weight, grad_bias, None


class _SelfAttention(torch.autograd.Function):
    """Attention in chunks of samples, which of many tokens keeps no attention weights."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, num_heads: int, last: int) -> Tensor:
        kept = []
        ctx.num_heads, ctx.shape, ctx.last = num_heads, qkv.shape, last
        batch, length, dim = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
        out = qkv.new_empty(batch, last, num_heads, dim // num_heads)
        for part in _chunks(qkv.shape, num_heads):
            heads = _by_head(qkv[part], 3, num_heads)
            q, k, v = heads
            weights = _weights(q[:, -last:], k)
            out[part] = _by_token(torch.bmm(weights, v), num_heads)
            kept += [heads, weights if length <= FEW_TOKENS else None]
        ctx.save_for_backward(*kept)
        return out.view(batch, last, dim)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        num_heads, first = ctx.num_heads, ctx.shape[1] - ctx.last
        kept = iter(ctx.saved_tensors)
        grad_qkv = grad.new_empty(ctx.shape).unflatten(2, (3, num_heads, -1))
        grad_qkv[:, :first, 0] = 0
        for part, (q, k, v), weights in zip(_chunks(ctx.shape, num_heads), kept, kept, strict=True):
            q = q[:, first:]
            (grad_out,) = _by_head(grad[part], 1, num_heads)
            weights = _weights(q, k) if weights is None else weights
            grad_weights = torch.bmm(grad_out, v.transpose(1, 2))
            grad_logits = torch.ops.aten._softmax_backward_data(
                grad_weights, weights, -1, weights.dtype
            ).mul_(q.shape[-1] ** -0.5)
            for place, value in enumerate((
                torch.bmm(grad_logits, k),
                torch.bmm(grad_logits.transpose(1, 2), q),
                torch.bmm(weights.transpose(1, 2), grad_out),
            )):
                grad_qkv[part, -value.shape[1] :, place] = _by_token(value, num_heads)
        return grad_qkv.flatten(2), None, None


def _origin(x: Tensor) -> tuple[Tensor, ...]:
    """What x = `_affine`(...) was made from, where a norm made it and nothing changed it since."""
    version, *origin = getattr(x, "normalised", (None,))
    return tuple(origin) if version == x._version else ()


def _affine(normalised: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A norm's values in bfloat16, (..., D), from those before its weight and bias."""
    return torch.addcmul(bias, normalised, weight).bfloat16()


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """F.linear of bfloat16 x, which would first fill what comes out with the bias (5 % slower)."""
    bias = None if bias is None else bias.to(x.dtype)
    # Builds of PyTorch without oneDNN lack both of its functions.
    fused = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    if bias is None or not fused:
        return F.linear(x, weight, bias)
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def _chunks(shape: torch.Size, num_heads: int) -> Iterator[slice]:
    """Slices of a batch of (B, N, 3 * D) whose attention weights fit into the caches."""
    batch, length, _ = shape
    size = max(1, CHUNK // (num_heads * length**2))
    yield from (slice(first, first + size) for first in range(0, batch, size))


def _by_head(x: Tensor, parts: int, num_heads: int) -> Tensor:
    """(B, N, parts * D) -> contiguous (parts, B * n, N, d)."""
    batch, length = x.shape[:2]
    x = x.view(batch, length, parts, num_heads, -1).permute(2, 0, 3, 1, 4)
    # Of a single sample the reshaped is a view, which would keep all that it is a part of.
    return x.reshape(parts, batch * num_heads, length, -1).contiguous()


def _by_token(x: Tensor, num_heads: int) -> Tensor:
    """(B * n, N, d) -> (B, N, n, d)."""
    return x.unflatten(0, (-1, num_heads)).transpose(1, 2)


def _weights(q: Tensor, k: Tensor) -> Tensor:
    """Attention weights of each head, (B * n, N, N)."""
    nothing = q.new_empty(()).expand(1, 1, 1)
    logits = torch.baddbmm(nothing, q, k.transpose(1, 2), beta=0, alpha=q.shape[-1] ** -0.5)
    return logits.softmax(dim=-1)
