"""The training loop: order, schedules against their formulas, settings, bad input."""

import itertools
import json
import math
import time

import pytest
import torch
from mmengine.model import BaseModel
from tiny_training import Noisy, Small, job_in, train_in

from mae_bench.errors import UserError
from tasks import engine


def test_a_finished_training_is_not_repeated(tmp_path):
    train_in(tmp_path)
    model, _ = train_in(tmp_path)
    assert model.calls == 0


def test_the_seed_matters(tmp_path):
    first, _ = train_in(tmp_path / "a")
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


def test_step_100_000_is_found_at_once():
    """At ImageNet's size and the paper's batch; a replay of the batches would take days."""
    sampler = engine.PositionSampler(1_281_167, seed=1, batch_size=4096)
    sampler.skip(100_000 * 4096)
    started = time.perf_counter()
    position, _ = next(iter(sampler))
    assert position == 100_000 * 4096 and time.perf_counter() - started < 1.0


@pytest.mark.parametrize("world_size", [2, 4])
def test_processes_share_out_each_batch(world_size):
    def stream(batches, **share):
        sampler = engine.PositionSampler(10, seed=1, batch_size=8, **share)
        return list(itertools.islice(iter(sampler), batches * sampler.share))

    whole = stream(5)
    parts = [stream(5, rank=rank, world_size=world_size) for rank in range(world_size)]
    share = 8 // world_size
    joined = [pair for step in range(5) for part in parts for pair in part[step * share :][:share]]
    assert joined == whole
    later = engine.PositionSampler(10, seed=1, batch_size=8, rank=1, world_size=world_size)
    later.skip(3 * share)
    assert next(iter(later)) == parts[1][3 * share]


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


@pytest.mark.parametrize(
    ("solver", "message"),
    [
        ({"batch_size": 11}, "batch of 11 is larger than the training set of 10 images"),
        ({"base_lr": float("nan")}, "learning rate is not a finite number"),
        ({"optimizer": "adan"}, "unknown optimizer 'adan'"),
        ({"amp": "fp8"}, r"unknown precision in solver.amp 'fp8'.*bfloat16, float16, none"),
        ({"accumulation": 3}, r"batch_size 4 cannot be divided over 1 processes x 3 micro-batches"),
        ({"activation_checkpointing": True}, "Small has no transformer blocks"),
    ],
)
def test_bad_solver_is_refused_before_training(tmp_path, solver, message):
    model = Small()
    with pytest.raises(UserError, match=message):
        engine.fit(job_in(tmp_path, **solver), model, None, Noisy())
    assert model.calls == 0


@pytest.mark.parametrize(("warmup", "said"), [(5, False), (6, True), (60, True)])
def test_a_warm_up_without_an_end_is_said(warmup, said, tmp_path, capsys):
    engine.fit(job_in(tmp_path, warmup_iterations=warmup), Small(), None, Noisy())
    assert ("leaves nothing of a training of 6 iterations" in capsys.readouterr().out) == said


def test_top1_counts_every_sample_once(tmp_path):
    class Echo(BaseModel):
        def forward(self, images, labels, mode):
            wrong = labels % 3 == 0
            return {"logits": torch.eye(11)[labels + wrong.long()]}

    scored = engine.accuracy(Echo(), Noisy(), job_in(tmp_path), batch_size=4)
    assert scored.top1 == pytest.approx(60.0)


def test_fp16_needs_a_gpu(tmp_path, monkeypatch):
    monkeypatch.setattr("tasks.engine.training.get_device", lambda: "cpu")
    with pytest.raises(UserError, match=r"amp=float16 needs a GPU; on a CPU give .*bfloat16"):
        engine.fit(job_in(tmp_path, amp="float16"), Small(), None, Noisy())


def test_logs_and_events_lie_in_the_runs_folder(tmp_path):
    train_in(tmp_path, iterations=50, save_every=50)
    assert list(tmp_path.rglob("events.out.tfevents.*"))
    scalars = [
        json.loads(line)
        for path in tmp_path.rglob("scalars.json")
        for line in path.read_text().splitlines()
    ]
    assert all(
        scalars[-1][name] > 0 for name in ("images_per_second", "data_time_share", "peak_memory_mb")
    )


class SlowToLoad(Noisy):
    def __getitem__(self, index):
        time.sleep(0.02)
        return super().__getitem__(index)


def test_slow_loading_is_said(tmp_path, capsys):
    slow = engine.fit(job_in(tmp_path / "slow"), Small(), None, SlowToLoad())
    assert 0.5 < slow.data_time_share <= 1
    assert "Raise solver.num_workers" in slow.facts["hint"]
    assert slow.facts["hint"] in capsys.readouterr().out
    assert slow.images_per_second < 60
