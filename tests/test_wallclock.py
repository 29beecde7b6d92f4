"""Timed steps (Table 2): what is compared, and what becomes of the seconds."""

from dataclasses import replace

import pytest
import torch
from tiny_training import job_in

from backbones.architectures import ARCHITECTURES
from mae_bench.flops import FORMULAS
from mae_bench.job import Stopped
from mae_bench.recipes import load_recipe
from tasks.pretraining import wallclock

IMAGES = 6


@pytest.fixture
def job(tmp_path, monkeypatch):
    changes = {"data.image_size": 32, "solver.iterations": 3, "solver.batch_size": 4}
    recipe = load_recipe("pretraining/mini_wallclock", {**changes, "model.decoder_depth": 1})
    run = job_in(tmp_path).run.model_copy(
        update={"backbone": "vit_mini_patch8", "recipe_values": recipe}
    )
    items = [{"images": torch.full((3, 32, 32), float(i))} for i in range(IMAGES)]
    monkeypatch.setattr(wallclock, "labelled_sets", lambda *given: (items, [], []))
    return replace(job_in(tmp_path), run=run)


def test_seconds_become_hours_and_a_speed_up(job, monkeypatch):
    """Of the median step behind the warm-up; 800 epochs of 6 images in batches of 4."""
    timed = []
    seconds = {8: iter([90.0, 80.0, 9.0, 3.0, 6.0]), 1: iter([70.0, 60.0, 1.5, 2.0, 7.0])}

    def step(job, model, images):
        assert images.shape == (4, 3, 32, 32)
        timed.append((model["encoder_mask_tokens"], model["decoder_depth"]))
        return lambda: next(seconds[model["decoder_depth"]])

    monkeypatch.setattr(wallclock, "_step", step)
    outcome = wallclock.run(job)
    assert timed == [(True, 8), (False, 1)]
    assert outcome.metrics["speedup"].value == 6.0 / 2.0
    assert outcome.metrics["hours"].value == pytest.approx(2.0 * 800 * IMAGES / 4 / 3600)
    assert outcome.facts["seconds_of_steps"] == [1.5, 2.0, 7.0]
    assert outcome.metrics["relative_flops"].value == 1.0


def test_flops_are_those_of_the_formula(job):
    """Table 1(c) has 3.3 for a ViT-L."""
    counted, expected = [], []
    for tokens in (True, False):
        model = {**job.recipe["model"], "encoder_mask_tokens": tokens}
        counted.append(wallclock._flops(job, model, torch.zeros(1, 3, 32, 32)))
        own = FORMULAS["pretraining"](ARCHITECTURES[job.run.backbone], job.recipe["data"], model)
        expected.append(own.whole.training_flops)
    assert counted == pytest.approx(expected, rel=0.05)


def test_a_timed_step_trains(job, monkeypatch):
    """Of the model that the recipe asks for, and of the one it is compared with."""
    built, build = [], wallclock.build
    monkeypatch.setattr(wallclock, "build", lambda *given: built.append(build(*given)) or built[-1])
    outcome = wallclock.run(job)
    assert [len(mae.decoder.blocks) for mae in built[:2]] == [8, 1]
    for mae in built[:2]:
        # It starts at 0; AdamW moves a parameter by about the lr in each of five steps.
        moved = mae.decoder.head.bias.detach().abs().mean().item()
        assert moved == pytest.approx(5 * 1.5e-4, rel=0.5)
    assert min(outcome.facts["seconds_of_steps"] + outcome.facts["seconds_of_baseline_steps"]) > 0


def test_it_stops_when_asked_to(job):
    with pytest.raises(Stopped):
        wallclock.run(replace(job, should_stop=lambda: True))
