"""A block's parts for training in bfloat16 on a CPU: half the memory, a fraction of the time.

PyTorch's fused attention is slow there in the backward pass (measured with 2.14: three times as
slow as plain matrix products), and what autograd keeps is more than needed. Here the products are
plain ones, over as many samples at a time as the caches hold; attention weights of many tokens,
activations and the bfloat16 copies of fp32 weights, which autocast would keep, are computed again;
of a norm its values are kept in bfloat16 instead of its input in fp32. The results are those of the
plain formulas in bfloat16.

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
    return _Linear.apply(x.bfloat16(), weight, bias, False)


def self_attention(qkv: Tensor, num_heads: int) -> Tensor:
    """softmax(q k^T / sqrt(d)) v of every head: (B, N, 3 * D) bfloat16 -> (B, N, D)."""
    return _SelfAttention.apply(qkv, num_heads)


class Linear(nn.Linear):
    """torch's, by way of `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., out)."""
        return linear(x, self.weight, self.bias)


class LeanLayerNorm(nn.LayerNorm):
    """torch's; in a training step in bfloat16 on a CPU it keeps what it made, not what it got."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D); bfloat16 in such a step."""
        if applies(x):
            return _LayerNorm.apply(x, self.weight, self.bias, self.eps)
        return super().forward(x)


class LeanMlp(Mlp):
    """timm's MLP; in a training step in bfloat16 on a CPU it keeps no activations but its own."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        hidden = linear(x, self.fc1.weight, self.fc1.bias)
        if applies(hidden):
            return _Linear.apply(hidden, self.fc2.weight, self.fc2.bias, True)
        return self.fc2(self.act(hidden))


class _Linear(torch.autograd.Function):
    """linear(x) or linear(gelu(x)) of bfloat16 x, which keeps x and the weight as it is stored."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.gelu = gelu
        bias = None if bias is None else bias.to(x.dtype)
        return F.linear(F.gelu(x) if gelu else x, weight.to(x.dtype), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
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
        return grad_x, grad_weight, grad_bias, None


class _LayerNorm(torch.autograd.Function):
    """Layer norm of (..., D), which keeps the normalised values in bfloat16."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        out, mean, scale = torch.native_layer_norm(x, weight.shape, weight, bias, eps)
        normalised = torch.sub(x, mean).mul_(scale).bfloat16()
        ctx.save_for_backward(normalised, scale, weight, bias)
        return out.bfloat16()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        normalised, scale, weight, bias = ctx.saved_tensors
        # Of values with mean 0 and scale 1, whose derivative by x is the scale.
        grad_x, grad_weight, grad_bias = torch.ops.aten.native_layer_norm_backward(
            grad.float(),
            normalised.float(),
            weight.shape,
            torch.zeros_like(scale),
            torch.ones_like(scale),
            weight,
            bias,
            ctx.needs_input_grad[:3],
        )
        return grad_x if grad_x is None else grad_x.mul_(scale), grad_weight, grad_bias, None


class _SelfAttention(torch.autograd.Function):
    """Attention in chunks of samples, which of many tokens keeps no attention weights."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, num_heads: int) -> Tensor:
        kept = []
        ctx.num_heads = num_heads
        batch, length, dim = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
        out = qkv.new_empty(batch, length, num_heads, dim // num_heads)
        for part in _chunks(qkv, num_heads):
            q, k, v = _by_head(qkv[part], 3, num_heads)
            weights = _weights(q, k)
            out[part] = _by_token(torch.bmm(weights, v), num_heads)
            kept.append(weights if length <= FEW_TOKENS else None)
        ctx.save_for_backward(qkv, *kept)
        return out.view(batch, length, dim)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (qkv, *kept), heads = ctx.saved_tensors, ctx.num_heads
        grad_qkv = torch.empty_like(qkv).unflatten(2, (3, heads, -1))
        for part, weights in zip(_chunks(qkv, heads), kept, strict=True):
            q, k, v = _by_head(qkv[part], 3, heads)
            (grad_out,) = _by_head(grad[part], 1, heads)
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
                grad_qkv[part, :, place] = _by_token(value, heads)
        return grad_qkv.flatten(2), None


def _chunks(qkv: Tensor, num_heads: int) -> Iterator[slice]:
    """Slices of the batch whose attention weights fit into the caches."""
    batch, length = qkv.shape[:2]
    size = max(1, CHUNK // (num_heads * length**2))
    yield from (slice(first, first + size) for first in range(0, batch, size))


def _by_head(x: Tensor, parts: int, num_heads: int) -> Tensor:
    """(B, N, parts * D) -> contiguous (parts, B * n, N, d)."""
    batch, length = x.shape[:2]
    x = x.view(batch, length, parts, num_heads, -1).permute(2, 0, 3, 1, 4)
    return x.reshape(parts, batch * num_heads, length, -1)


def _by_token(x: Tensor, num_heads: int) -> Tensor:
    """(B * n, N, d) -> (B, N, n, d)."""
    return x.unflatten(0, (-1, num_heads)).transpose(1, 2)


def _weights(q: Tensor, k: Tensor) -> Tensor:
    """Attention weights of each head, (B * n, N, N)."""
    nothing = q.new_empty(()).expand(1, 1, 1)
    logits = torch.baddbmm(nothing, q, k.transpose(1, 2), beta=0, alpha=q.shape[-1] ** -0.5)
    return logits.softmax(dim=-1)
