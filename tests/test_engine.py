"""Exact order and exact resume of the training loop, schedules against their formulas."""

import json
import math
import multiprocessing
import os
import signal

import numpy as np
import pytest
import torch
from mmengine.model import BaseModel
from torch import nn
from torch.utils.data import Dataset

from mae_bench.errors import UserError
from mae_bench.job import Job
from mae_bench.records import Run
from tasks import engine

SOLVER = {
    "iterations": 6,
    "batch_size": 4,
    "base_lr": 0.64,
    "min_lr": 0.0,
    "optimizer": "adamw",
    "betas": [0.9, 0.999],
    "weight_decay": 0.05,
    "layer_decay": 1.0,
    "warmup_iterations": 2,
    "amp": None,
    "num_workers": 0,
    "save_every": 3,
}


class Noisy(Dataset):
    """Items that depend on Python's, NumPy's and torch's random state."""

    def __len__(self):
        return 10

    def __getitem__(self, index):
        value = torch.randn(3) + float(np.random.rand()) + index
        return {"images": value, "labels": index}


class Small(BaseModel):
    """A layer with dropout, so that a step draws random numbers too; may die at a step."""

    def __init__(self, die_at=None, bad_at=None):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Linear(8, 1))
        self.die_at, self.bad_at, self.seen, self.calls = die_at, bad_at, [], 0

    def forward(self, images, labels, mode="loss"):
        self.calls += 1
        self.seen.append(labels.tolist())
        if self.calls == self.die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        factor = float("nan") if self.calls == self.bad_at else 1.0
        return {"loss": self.net(images).square().mean() * factor}


def job_in(folder, **solver):
    recipe = {"solver": {**SOLVER, **solver}}
    run = Run(
        task="t",
        task_version=1,
        dataset="d",
        data_fingerprint="f",
        backbone="b",
        init="i",
        recipe="r",
        recipe_values=recipe,
        seed=3,
    )
    folder.mkdir(exist_ok=True)
    return Job(run, folder, folder)


def train_in(folder, die_at=None):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = Small(die_at)
    engine.fit(job_in(folder), model, None, Noisy())
    return model


def test_six_steps_equal_three_kill_and_three(tmp_path):
    """Killed in step 5, after the save at 3: weights and curve end bit-identical."""
    whole = train_in(tmp_path / "whole")
    process = multiprocessing.get_context("spawn").Process(
        target=train_in, args=(tmp_path / "killed", 5)
    )
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    saved = torch.load(tmp_path / "killed" / engine.STATE_FILE, weights_only=True)
    assert saved["step"] == 3
    resumed = train_in(tmp_path / "killed")
    assert resumed.calls == 3
    assert resumed.seen == whole.seen[3:]
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name
    last = [
        json.loads((tmp_path / name / "metrics.jsonl").read_text().splitlines()[-1])
        for name in ("whole", "killed")
    ]
    assert last[0] == last[1] and last[0]["step"] == 6


@pytest.mark.parametrize("content", [b"", b"not a state", None])
def test_a_damaged_state_means_from_the_start(tmp_path, content, capsys):
    whole = train_in(tmp_path / "run")
    state = tmp_path / "run" / engine.STATE_FILE
    state.write_bytes(state.read_bytes()[:-100] if content is None else content)
    again = train_in(tmp_path / "run")
    assert again.calls == 6 and "cannot be read" in capsys.readouterr().out
    for name, value in whole.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def test_a_finished_training_is_not_repeated(tmp_path):
    train_in(tmp_path)
    assert train_in(tmp_path).calls == 0


def test_the_seed_matters(tmp_path):
    first = train_in(tmp_path / "a")
    torch.manual_seed(0)
    other = Small()
    job = job_in(tmp_path / "b")
    object.__setattr__(job, "run", job.run.model_copy(update={"seed": 4}))
    engine.fit(job, other, None, Noisy())
    assert other.seen != first.seen


def test_sampler_visits_every_sample_once_an_epoch_and_skips_at_once():
    sampler = engine.PositionSampler(7, seed=1)
    stream = iter(sampler)
    first = [next(stream) for _ in range(21)]
    assert [position for position, _ in first] == list(range(21))
    for epoch in range(3):
        assert sorted(i for _, i in first[7 * epoch : 7 * epoch + 7]) == list(range(7))
    assert [i for _, i in first[:7]] != [i for _, i in first[7:14]]
    later = engine.PositionSampler(7, seed=1)
    later.skip(10)
    stream = iter(later)
    assert [next(stream) for _ in range(11)] == first[10:]
    far = engine.PositionSampler(7, seed=1)
    far.skip(100_000 * 4096)
    assert next(iter(far))[0] == 100_000 * 4096


def test_cosine_schedule_against_the_published_formula():
    total, warmup, peak, floor = 50, 5, 2.0, 0.1
    for step in range(total):
        if step < warmup:
            expected = peak * step / warmup
        else:
            expected = floor + (peak - floor) * 0.5 * (
                1 + math.cos(math.pi * (step - warmup) / (total - warmup))
            )
        assert engine.cosine_lr(step, total, warmup, peak, floor) == pytest.approx(expected)
    assert engine.cosine_lr(0, total, warmup, peak) == 0.0


def test_lr_follows_the_batch():
    assert engine.scaled_lr(1.5e-4, 4096) == pytest.approx(2.4e-3)


def test_lr_and_layer_scale_reach_the_optimizer(tmp_path):
    seen = []

    class Spy(torch.optim.SGD):
        def step(self, closure=None):
            seen.append([group["lr"] for group in self.param_groups])

    model = Small()
    first, last = model.net[0].parameters(), model.net[2].parameters()
    groups = [
        {"params": list(first), "lr": 1.0, "lr_scale": 0.5},
        {"params": list(last), "lr": 1.0, "lr_scale": 1.0},
    ]
    engine.train(
        job_in(tmp_path),
        model,
        Noisy(),
        groups,
        iterations=3,
        batch_size=4,
        schedule=lambda step: 10.0 * (step + 1),
        optimizer=Spy,
        collate=engine.stack,
    )
    assert seen == [[5.0, 10.0], [10.0, 20.0], [15.0, 30.0]]


def test_loss_that_is_not_finite_stops_the_run(tmp_path):
    model = Small(bad_at=5)
    with pytest.raises(FloatingPointError, match=r"loss became nan at step 5 .* last good state"):
        engine.fit(job_in(tmp_path), model, None, Noisy())
    assert torch.load(tmp_path / engine.STATE_FILE, weights_only=True)["step"] == 3


@pytest.mark.parametrize(
    ("solver", "message"),
    [
        ({"batch_size": 11}, "batch of 11 is larger than the training set of 10 images"),
        ({"base_lr": float("nan")}, "learning rate is not a finite number"),
        ({"optimizer": "adan"}, "unknown optimizer 'adan'"),
    ],
)
def test_bad_solver_is_refused_before_training(tmp_path, solver, message):
    model = Small()
    with pytest.raises(UserError, match=message):
        engine.fit(job_in(tmp_path, **solver), model, None, Noisy())
    assert model.calls == 0


def test_top1_counts_every_sample_once(tmp_path):
    class Echo(BaseModel):
        def forward(self, images, labels, mode):
            wrong = labels % 3 == 0
            return {"logits": torch.eye(11)[labels + wrong.long()]}

    assert engine.top1(Echo(), Noisy(), job_in(tmp_path), batch_size=4) == pytest.approx(60.0)
