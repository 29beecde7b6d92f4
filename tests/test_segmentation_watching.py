"""What is watched while a segmentor trains: precision, its curve, what BatchNorm sees."""

import json

import pytest
import torch
from test_engine_resume import assert_same, read
from tiny_training import Noisy, Small, job_in

from mae_bench.errors import UserError
from mae_bench.job import STATE_FILE, Stopped
from mae_bench.recipes import load_recipe
from mae_bench.records import NO_EFFECT
from tasks import engine
from tasks.segmentation.checks import norm_images
from tasks.segmentation.watching import Curve, PrecisionProbe, Validation

pytestmark = pytest.mark.mmseg


class Fp32(Small):
    """A model that leaves mixed precision for its own part, as a stray context or a cast does."""

    def forward(self, images, labels, mode="loss"):
        with torch.autocast("cpu", enabled=False):
            return super().forward(images, labels, mode)


def fit(folder, hooks, model=None, **solver):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = Small() if model is None else model
    engine.fit(job_in(folder, **solver), model, None, Noisy(), hooks=hooks)
    return model


@pytest.mark.parametrize("amp", [None, "bfloat16"])
def test_the_probe_tells_what_layers_compute_in(amp, tmp_path):
    model = Small()
    probe = PrecisionProbe({"net": model.net}, amp)
    fit(tmp_path, [probe], model, amp=amp)
    assert probe.found == {"net": amp or "float32"}
    assert not any(module._forward_hooks for module in model.modules()), "only the first step"


@pytest.mark.parametrize(
    ("kind", "amp", "asked"),
    [(Fp32, "bfloat16", "bfloat16"), (Small, None, "bfloat16"), (Small, "bfloat16", None)],
)
def test_amp_that_is_off_stops_the_training_at_its_first_step(kind, amp, asked, tmp_path):
    model = kind()
    with pytest.raises(RuntimeError, match=r"solver\.amp asks for \w+, but layers computed in"):
        fit(tmp_path, [PrecisionProbe({"net": model.net}, asked)], model, amp=amp)
    assert model.calls == 1


def test_a_curve_warns_below_its_band_only():
    curve = Curve([[100, 20.0], [200, 30.0]], band=1.5, total=200)
    assert curve.warning(100, 18.5) is None
    assert "18.49 at iteration 100 is 1.51 below" in curve.warning(100, 18.49)
    assert curve.warning(100, 40.0) is None and curve.warning(150, 0.0) is None
    assert "30.00, 1.5 are allowed" in curve.warning(200, 1.0)
    assert Curve([[100, 20.0], [200, 30.0]], 1.5, total=400).warning(100, 0.0) is None


@pytest.mark.parametrize(
    "points", [[], 5, [[2, 1.0], [1, 1.0]], [[1, 1.0], [1, 2.0]], [[1]], [["a", 1]], [[1, None]]]
)
def test_a_curve_out_of_order_is_refused(points):
    with pytest.raises(UserError, match="ascending order"):
        Curve(points, 1.0, 10)


def scoring(values, job=None, stop_at=None):
    """A score that walks through values, and may be interrupted once."""
    values, calls = iter(values), []

    def score():
        calls.append(1)
        if len(calls) == stop_at:
            job.should_stop = lambda: True
            raise Stopped
        return next(values)

    return score


def test_scores_on_the_way_are_logged_and_warned_of(tmp_path, capsys):
    job = job_in(tmp_path)
    curve = Curve([[2, 50.0], [4, 60.0], [6, 70.0]], 1.0, total=6)
    hook = Validation(job, scoring([49.5, 40.0]), 2, curve)
    fit(tmp_path, [hook])
    assert hook.scores == {2: 49.5, 4: 40.0}, "the end is scored by the run itself"
    hook.hold(6, 10.0)
    assert len(hook.warnings) == 2 and capsys.readouterr().out.count("WARNING: mIoU") == 2
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["miou"]) for line in lines if "miou" in line] == [
        (2, 49.5),
        (4, 40.0),
        (6, 10.0),
    ]


def drawing():
    """A score that uses up random numbers, as no score may."""
    return torch.rand(1000).mean().item()


def test_scoring_on_the_way_changes_nothing(tmp_path):
    alone = fit(tmp_path / "alone", [])
    scored = fit(tmp_path / "scored", [Validation(job_in(tmp_path), drawing, 2, None)])
    assert_same(alone.state_dict(), scored.state_dict())
    assert {"validate_every", "reference"} <= NO_EFFECT


def test_a_score_that_was_interrupted_is_made_up_for(tmp_path):
    job = job_in(tmp_path)
    hook = Validation(job, scoring([1.0, 2.0], job, stop_at=2), 2, None)
    with pytest.raises(Stopped):
        engine.fit(job, Small(), None, Noisy(), hooks=[hook])
    assert read(tmp_path / STATE_FILE)["step"] == 4 and hook.scores == {2: 1.0}
    again = Validation(job_in(tmp_path), scoring([3.0]), 2, None)
    fit(tmp_path, [again])
    assert again.scores == {2: 1.0, 4: 3.0}


@pytest.mark.parametrize(
    ("solver", "passes", "seen"),
    [
        ({}, 1, 16),
        ({"accumulation": 2}, 1, 8),
        ({"accumulation": 2}, 4, 2),
        ({"batch_size": 8}, 1, 8),
    ],
)
def test_what_batchnorm_sees(solver, passes, seen, tmp_path, capsys):
    recipe = load_recipe("segmentation/upernet")["solver"]
    job = job_in(tmp_path, **{**recipe, **solver})
    job.accumulation = passes
    assert norm_images(job) == seen
    batch = solver.get("batch_size", 16)
    assert ("WARNING: BatchNorm sees" in capsys.readouterr().out) == (seen < batch)


def test_a_single_image_has_no_variance(tmp_path):
    job = job_in(tmp_path, batch_size=16, accumulation=16)
    with pytest.raises(UserError, match=r"would see 1 image .*16 in 16 passes.* at least 2"):
        norm_images(job)
