"""The bfloat16 step on a CPU against the plain formulas, values and gradients."""

import pytest
import torch
import torch.nn.functional as F
from timm.layers import Mlp

from backbones import cpu_training
from backbones.vit import Block


def plain_attention(qkv, num_heads):
    batch, length, dim = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
    q, k, v = qkv.view(batch, length, 3, num_heads, dim // num_heads).permute(2, 0, 3, 1, 4)
    weights = (q @ k.transpose(-1, -2) * (dim // num_heads) ** -0.5).softmax(-1)
    return (weights @ v).transpose(1, 2).reshape(batch, length, dim)


def gradients(function, inputs, grad):
    leaves = [x.clone().requires_grad_() for x in inputs]
    out = function(*leaves)
    out.backward(grad.to(out.dtype))
    return [out.detach(), *(leaf.grad for leaf in leaves)]


def assert_as_good(ours, plain, exact):
    """No farther from fp64 than 1.5 times the plain formula in the same precision."""
    for one, other, truth in zip(ours, plain, exact, strict=True):
        allowed = 1.5 * (other.double() - truth).abs().max() + 1e-6
        assert (one.double() - truth).abs().max() <= allowed


def under_autocast(function, x):
    """What comes out, and the tensors kept for the backward pass."""
    kept = []
    with (
        torch.autocast("cpu", torch.bfloat16),
        torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t),
    ):
        return function(x), kept


@pytest.mark.parametrize(("batch", "length", "heads", "dim"), [(5, 37, 4, 64), (3, 10, 2, 16)])
@pytest.mark.parametrize("chunk", [1, 2**14, 2**20])
@pytest.mark.parametrize("few", [0, 256])
@pytest.mark.parametrize("last", [None, 7, 1])
def test_attention(batch, length, heads, dim, chunk, few, last, monkeypatch):
    monkeypatch.setattr(cpu_training, "CHUNK", chunk)
    monkeypatch.setattr(cpu_training, "FEW_TOKENS", few)
    torch.manual_seed(0)
    qkv, grad = torch.randn(batch, length, 3 * dim).bfloat16(), torch.randn(batch, length, dim)
    asked = slice(0 if last is None else -last, None)
    grad = grad.bfloat16()[:, asked]
    ours = gradients(lambda x: cpu_training.self_attention(x, heads, last), [qkv], grad)
    plain = gradients(lambda x: plain_attention(x, heads)[:, asked], [qkv], grad)
    exact = gradients(lambda x: plain_attention(x, heads)[:, asked], [qkv.double()], grad)
    assert_as_good(ours, plain, exact)


@pytest.mark.parametrize("gelu", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(7, 24), (2, 5, 24)])
def test_linear(shape, bias, gelu):
    torch.manual_seed(0)
    inputs = [torch.randn(*shape), torch.randn(6, 24)] + [torch.randn(6)] * bias
    inputs, grad = [x.bfloat16() for x in inputs], torch.randn(*shape[:-1], 6).bfloat16()

    def lean(x, weight, bias=None):
        return cpu_training._Linear.apply(x, weight, bias, gelu)

    def plain(x, weight, bias=None):
        return F.linear(F.gelu(x) if gelu else x, weight, bias)

    exact = gradients(plain, [x.double() for x in inputs], grad)
    assert_as_good(gradients(lean, inputs, grad), gradients(plain, inputs, grad), exact)


def test_layer_norm():
    torch.manual_seed(0)
    inputs = [torch.randn(3, 7, 48) * 2 + 5, torch.randn(48), torch.randn(48)]
    grad = torch.randn(3, 7, 48)

    def lean(x, weight, bias):
        return cpu_training._LayerNorm.apply(x, weight, bias, 1e-6)[0]

    def plain(x, weight, bias):
        return F.layer_norm(x, (48,), weight, bias, 1e-6)

    ours = gradients(lean, inputs, grad)
    assert ours[0].dtype == torch.bfloat16 and ours[1].dtype == torch.float32
    exact = gradients(plain, [x.double() for x in inputs], grad.bfloat16())
    assert_as_good(ours, gradients(plain, [x.bfloat16() for x in inputs], grad), exact)


def test_layer_norm_keeps_no_copy_of_its_input_and_gives_gradients_only_where_asked():
    norm, x = cpu_training.LeanLayerNorm(8), torch.randn(5, 8)
    norm.bias.requires_grad_(False)
    out, kept = under_autocast(norm, x)
    assert not any(t.shape == x.shape and t.dtype == torch.float32 for t in kept)
    out.float().sum().backward()
    assert norm.bias.grad is None and norm.weight.grad.shape == (8,)


@pytest.mark.parametrize("changed", [False, True])
def test_linear_makes_a_norms_output_again_unless_it_was_changed_since(changed):
    torch.manual_seed(0)
    norm, layer, x = cpu_training.LeanLayerNorm(8), cpu_training.Linear(8, 6), torch.randn(5, 8)
    torch.nn.init.normal_(norm.weight), torch.nn.init.normal_(norm.bias)

    def both(x):
        out = norm(x)
        return layer(out.mul_(3) if changed else out)

    out, kept = under_autocast(both, x)
    # The norm's values before its weight and bias, which both keep, or also those after.
    assert len({t.data_ptr() for t in kept if t.shape == x.shape}) == 1 + changed
    out.float().sum().backward()
    exact = F.linear(norm(x) * (3 if changed else 1), layer.weight, layer.bias).sum()
    (expected,) = torch.autograd.grad(exact, layer.weight)
    torch.testing.assert_close(layer.weight.grad, expected, atol=0.1, rtol=0.02)


def test_attention_of_one_sample_keeps_what_it_needs_alone():
    """By itself, a view of one sample would keep the whole batch's."""
    chunked = torch.randn(1, 5, 3 * 8).bfloat16()
    (q, *_) = cpu_training._by_head(chunked, 3, 2)
    assert q.untyped_storage().nbytes() == chunked.nbytes and q.is_contiguous()
    assert q.data_ptr() != chunked.data_ptr()


def test_linear_keeps_no_copy_of_its_weight_and_gives_gradients_only_where_asked():
    layer, x = cpu_training.Linear(8, 6), torch.randn(5, 8)
    layer.weight.requires_grad_(False)
    out, kept = under_autocast(layer, x)
    assert out.dtype == torch.bfloat16
    assert any(t is layer.weight for t in kept) and len(kept) == 2
    out.float().sum().backward()
    assert layer.weight.grad is None and layer.bias.grad.tolist() == [5.0] * 6


@pytest.mark.parametrize("last", [None, 4])
@pytest.mark.parametrize("grad", [True, False])
def test_a_block_takes_the_lean_way_only_in_training_under_autocast(grad, last, monkeypatch):
    torch.manual_seed(0)
    block, x = Block(32, 4), torch.randn(2, 9, 32)
    calls = []
    for name in ("_SelfAttention", "_LayerNorm", "_Linear"):
        function = getattr(cpu_training, name)
        apply = function.apply
        monkeypatch.setattr(
            function, "apply", lambda *a, f=apply, n=name: (calls.append(n), f(*a))[1]
        )
    with torch.set_grad_enabled(grad):
        plain = block(x)
        assert not calls
        with torch.autocast("cpu", torch.bfloat16):
            lean = block(x, last=last)
    expected = ["_LayerNorm", "_Linear", "_SelfAttention", "_Linear"]
    expected += ["_LayerNorm", "_Linear", "_Linear"]
    assert calls == (expected if grad else [])
    assert lean.dtype == torch.float32
    torch.testing.assert_close(lean, plain[:, -(last or 0) :], atol=0.02, rtol=0.02)


def test_every_parameter_gets_the_gradient_of_fp32():
    torch.manual_seed(0)
    block, x = Block(64, 4), torch.randn(3, 17, 64)
    found = []
    for autocast in (False, True):
        block.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = block(x).square().mean()
        loss.backward()
        found.append({name: p.grad.clone() for name, p in block.named_parameters()})
    for name, exact in found[0].items():
        error = (found[1][name] - exact).norm() / exact.norm()
        assert found[1][name].dtype == torch.float32 and error < 0.03, name


def test_a_block_all_in_bfloat16_trains():
    torch.manual_seed(0)
    block, x = Block(64, 4), torch.randn(3, 17, 64)
    loss = block(x).square().mean()
    names, parameters = zip(*block.named_parameters(), strict=True)
    exact = dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))
    block.bfloat16()(x.bfloat16()).square().mean().backward()
    for name, parameter in block.named_parameters():
        error = (parameter.grad.float() - exact[name]).norm() / exact[name].norm()
        assert parameter.grad.dtype == torch.bfloat16 and error < 0.03, name


def test_without_bfloat16_it_is_timms_mlp():
    torch.manual_seed(0)
    lean, x = cpu_training.LeanMlp(8, 16), torch.randn(2, 3, 8)
    timms = Mlp(8, 16)
    timms.load_state_dict(lean.state_dict())
    assert torch.equal(lean(x), timms(x))
