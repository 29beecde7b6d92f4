"""Mixed precision, activations computed twice, compilation: what they may change and what not."""

import copy

import pytest
import torch
from test_engine_resume import assert_same
from tiny_training import Noisy, Small, job_in

from backbones import create_backbone
from tasks import engine
from tasks.engine import acceleration, order
from tasks.engine.acceleration import (
    PRECISIONS,
    MixedPrecision,
    checkpoint_activations,
    compile_forward,
    optim_wrapper,
)
from tasks.pretraining.mae import MaskedAutoencoder
from tasks.pretraining.targets import NormPixel


def tiny_mae(drop_path_rate=0.0):
    torch.manual_seed(0)
    encoder = create_backbone(
        "vit_mini_patch8",
        img_size=32,
        embed_dim=32,
        num_heads=2,
        drop_path_rate=drop_path_rate,
    )
    return MaskedAutoencoder(
        encoder, NormPixel(8, None), decoder_width=16, decoder_depth=1, decoder_heads=2
    )


@pytest.fixture
def images():
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))


# --- bf16 and fp16 ---------------------------------------------------------------------------


def test_bf16_trains_on_a_cpu_and_keeps_fp32_weights(tmp_path):
    """Same course as fp32 within bf16's precision; the model sees bf16, the optimizer does not."""
    seen = []

    class Watching(Small):
        def forward(self, images, labels, mode="loss"):
            seen.append(self.net[0](images).dtype)
            return super().forward(images, labels, mode)

    losses = {}
    for amp in (None, "bfloat16"):
        torch.manual_seed(0)
        model = Watching(dropout=0.0)
        folder = tmp_path / str(amp)
        trained = engine.fit(job_in(folder, amp=amp), model, None, Noisy())
        losses[amp] = float(
            (folder / "metrics.jsonl").read_text().split('"loss": ')[1].split(",")[0]
        )
        assert all(p.dtype == torch.float32 for p in model.parameters())
        assert trained.facts["precision"] == (amp or "float32")
    assert set(seen) == {torch.float32, torch.bfloat16}
    assert losses["bfloat16"] == pytest.approx(losses[None], rel=0.05)
    assert losses["bfloat16"] != losses[None]


def scaled(parameter):
    """fp16's scaler, on a CPU so that it can be tested anywhere."""
    return MixedPrecision(torch.optim.SGD([parameter], lr=1.0), torch.float16, "cpu")


def test_fp16_leaves_an_overflowing_step_out_and_goes_on():
    weight = torch.nn.Parameter(torch.ones(2))
    wrapper = scaled(weight)
    before = wrapper.scaler.get_scale()
    wrapper.update_params((weight * float("inf")).sum())
    assert torch.equal(weight, torch.ones(2)) and weight.grad is None
    assert (wrapper.skipped, wrapper.skipped_in_a_row) == (1, 1)
    assert wrapper.scaler.get_scale() == before / 2
    wrapper.update_params((weight * 0.25).sum())
    torch.testing.assert_close(weight.data, torch.full((2,), 0.75))
    assert (wrapper.skipped, wrapper.skipped_in_a_row) == (1, 0)


def test_fp16_continues_with_its_scale():
    weight = torch.nn.Parameter(torch.ones(2))
    wrapper = scaled(weight)
    wrapper.update_params((weight * float("nan")).sum())
    state = copy.deepcopy(wrapper.state_dict())
    other = scaled(torch.nn.Parameter(torch.ones(2)))
    other.load_state_dict(state)
    assert other.scaler.get_scale() == wrapper.scaler.get_scale()
    assert_same(other.state_dict(), state)


def test_fp16_that_fits_no_scale_stops_the_run(tmp_path, monkeypatch):
    """One bad loss is the scaler's business, thirty in a row are not."""
    monkeypatch.setattr(
        "tasks.engine.training.optim_wrapper",
        lambda optimizer, amp, device, passes: MixedPrecision(optimizer, torch.float16, "cpu"),
    )
    model = Small(bad_at=2, dropout=0.0)
    trained = engine.fit(job_in(tmp_path / "once"), model, None, Noisy())
    assert trained.facts["skipped_steps"] >= 1 and model.calls == 6

    class Hopeless(Small):
        def forward(self, images, labels, mode="loss"):
            return {"loss": super().forward(images, labels, mode)["loss"] * float("inf")}

    job = job_in(tmp_path / "always", iterations=60)
    with pytest.raises(FloatingPointError, match="30 fp16 steps in a row overflowed at step 30"):
        engine.fit(job, Hopeless(), None, Noisy())


def test_gradients_of_micro_batches_are_averaged():
    """Also in mixed precision: two halves make the step of the whole."""
    weights = {}
    for passes in (1, 2):
        weight = torch.nn.Parameter(torch.ones(2))
        wrapper = optim_wrapper(torch.optim.SGD([weight], lr=1.0), "bfloat16", "cpu", passes)
        wrapper.initialize_count_status(torch.nn.Linear(1, 1), 0, -1)
        rows = torch.tensor([[1.0, 0.0], [0.0, 0.5]]).chunk(passes)
        for part in rows:
            wrapper.update_params((weight * part).sum(1).mean())
        weights[passes] = weight.detach()
    assert torch.equal(weights[1], weights[2])


# --- activations computed twice --------------------------------------------------------------


def kept_for_backward(model, images, noise):
    """Loss, gradients, and bytes that autograd keeps."""
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    torch.manual_seed(3)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(images, noise=noise)["loss"]
        size = sum(kept.values())
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return loss.item(), gradients, size


def test_checkpointed_activations_give_the_same_step_in_less_memory(images):
    """Bit for bit, drop path included; the names in the state stay what they were."""
    noise = torch.rand(4, 16, generator=torch.Generator().manual_seed(2))
    plain, thrifty = tiny_mae(0.5).train(), tiny_mae(0.5).train()
    names = list(thrifty.state_dict())
    checkpoint_activations(thrifty)
    assert list(thrifty.state_dict()) == names
    loss, gradients, size = kept_for_backward(plain, images, noise)
    same_loss, same_gradients, smaller = kept_for_backward(thrifty, images, noise)
    assert loss == same_loss
    assert_same(gradients, same_gradients)
    assert smaller < 0.6 * size
    again = copy.deepcopy(thrifty)
    again.zero_grad()
    assert again.encoder.blocks[0].forward.args[0].__self__ is again.encoder.blocks[0]


def test_checkpointing_is_a_setting_of_the_solver(tmp_path):
    class Pictures(Noisy):
        def __getitem__(self, index):
            return {"images": torch.randn(3, 32, 32), "labels": index}

    weights = []
    for on in (False, True):
        model = tiny_mae()
        job = job_in(tmp_path / str(on), activation_checkpointing=on, base_lr=0.01)
        engine.fit(job, model, model.encoder, Pictures())
        weights.append(model.state_dict())
    assert_same(*weights)


# --- compilation -----------------------------------------------------------------------------


@pytest.mark.slow
def test_a_compiled_model_computes_the_same():
    batch = {"images": torch.randn(4, 3), "labels": torch.arange(4)}
    model = Small().eval()
    names, expected = list(model.state_dict()), model(**batch)["loss"]
    reason = compile_forward(model, "cpu")
    if reason is not None:
        pytest.skip(reason)
    torch.testing.assert_close(model(**batch)["loss"], expected, atol=1e-5, rtol=1e-5)
    assert list(model.state_dict()) == names
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0


def test_masks_are_not_drawn_by_compiled_code(monkeypatch):
    """Of both halves of a batch the noise is that of an uncompiled step, whatever the seed."""
    monkeypatch.setattr(order, "_draw", order._draw)
    order.keep_out_of_graphs()
    graphs, zeros = [], torch.zeros(4, 3)

    def plain(x):
        return x + order.batch_rand(4, 3)

    compiled = torch.compile(plain, backend=lambda graph, _: graphs.append(graph) or graph.forward)
    for step in range(3):
        for half in range(2):
            noise = []
            for function in (plain, compiled):
                order.seed_step(0, step, half, 2)
                noise.append(function(zeros))
            assert torch.equal(*noise)
    order.end_steps()
    assert len(graphs) == 1 and "rand" not in graphs[0].code


def test_without_a_compiler_training_goes_on_and_says_so(tmp_path, monkeypatch, capsys):
    def fail(function):
        raise RuntimeError("no C++ compiler found\nlong story")

    monkeypatch.setattr(acceleration.torch, "compile", fail)
    model = Small()
    trained = engine.fit(job_in(tmp_path, compile=True), model, None, Noisy())
    assert model.calls == 6
    assert "torch.compile does not work here (no C++ compiler found)" in capsys.readouterr().out
    assert "training goes on without it" in trained.facts["not_compiled"]


def updated(amp="bfloat16", waiting=0, **options):
    """Weights and state of AdamW after four passes; bytes of gradients at the end of each."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 8), torch.nn.Linear(8, 2))
    model[1].bias.requires_grad_(False)
    optimizer, left = torch.optim.AdamW(model.parameters(), 0.1, fused=True), []
    wrapper = MixedPrecision(optimizer, PRECISIONS[amp], "cpu", **options)
    wrapper.initialize_count_status(model, 0, -1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(acceleration, "WAITING", waiting)
        for _ in range(4):
            with wrapper.optim_context(model):
                loss = model(torch.randn(3, 4)).float().square().mean()
            wrapper.backward(loss)
            left.append(sum(p.grad.nbytes for p in model.parameters() if p.grad is not None))
            if wrapper.should_update():
                wrapper.step()
                wrapper.zero_grad()
    return [[*model.parameters()], optimizer.state_dict()["state"]], left


def test_an_early_update_is_the_same_and_frees_gradients():
    late, waited = updated(waiting=10**9)
    for waiting in (0, 300):
        early, left = updated(waiting=waiting)
        assert_same(early, late)
        assert max(left) < min(waited) and (waiting or not any(left))


@pytest.mark.parametrize(
    ("options", "processes"),
    [
        ({"accumulative_counts": 2}, 1),
        ({"clip_grad": {"max_norm": 1.0}}, 1),
        ({"amp": "float16"}, 1),
        ({}, 2),
    ],
)
def test_gradients_that_are_not_final_wait(options, processes, monkeypatch):
    """For other micro-batches, for clipping, for the scaler, for other processes."""
    monkeypatch.setattr(acceleration.distributed, "world_size", lambda: processes)
    left, whole = updated(**options)[1], updated(waiting=10**9)[1]
    assert left == whole


def test_a_backward_pass_of_someone_elses_updates_nothing():
    weight = torch.nn.Parameter(torch.ones(2))
    optim_wrapper(torch.optim.SGD([weight], lr=1.0), "bfloat16", "cpu", 1)
    weight.sum().backward()
    assert torch.equal(weight.detach(), torch.ones(2)) and torch.equal(weight.grad, torch.ones(2))
