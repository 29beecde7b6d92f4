"""Killed and continued: bit-identical, and nothing good is lost to anything bad."""

import json
import os
import signal

import pytest
import torch
from tiny_training import Average, Noisy, Small, in_processes, job_in, train_in

from mae_bench.errors import UserError
from mae_bench.job import PREVIOUS_STATE_FILE, STATE_FILE, Stopped
from tasks import engine


def read(path):
    return torch.load(path, weights_only=True)


def assert_same(one, other):
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, list | tuple):
        for a, b in zip(one, other, strict=True):
            assert_same(a, b)
    else:
        assert one == other


def curve(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


SETTINGS = {
    "plain": {},
    "workers": {"num_workers": 2},
    "micro-batches in bf16": {"accumulation": 2, "amp": "bfloat16"},
}


@pytest.mark.parametrize("solver", SETTINGS.values(), ids=SETTINGS)
def test_ten_steps_equal_five_kill_and_five(tmp_path, solver):
    """Weights, optimizer, running average, order and curve, after a real kill -9 in step 7."""
    solver = {"iterations": 10, "save_every": 5, **solver}
    whole, average = train_in(tmp_path / "whole", **solver)
    per_step = solver.get("accumulation", 1)
    codes = in_processes(1, _train, tmp_path / "killed", 7 * per_step, solver)
    assert codes == [-signal.SIGKILL]
    assert read(tmp_path / "killed" / STATE_FILE)["step"] == 5
    resumed, resumed_average = train_in(tmp_path / "killed", **solver)
    assert resumed.calls == 5 * per_step
    assert resumed.seen == whole.seen[5 * per_step :]
    assert_same(resumed.state_dict(), whole.state_dict())
    assert_same(resumed_average.average, average.average)
    assert_same(*(read(tmp_path / name / STATE_FILE) for name in ("whole", "killed")))
    assert curve(tmp_path / "killed")[-1] == curve(tmp_path / "whole")[-1]


def _train(folder, die_at, solver):
    train_in(folder, die_at, **solver)


def test_the_worker_count_changes_nothing(tmp_path):
    alone, _ = train_in(tmp_path / "0")
    helped, _ = train_in(tmp_path / "2", num_workers=2, prefetch=4)
    assert_same(alone.state_dict(), helped.state_dict())


def damage_cut(content):
    return content[:-100]


def damage_bit(content):
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize(
    "damage", [damage_cut, damage_bit, lambda content: b"", lambda content: b"not a state"]
)
def test_behind_a_damaged_state_lies_the_one_before(tmp_path, damage, capsys):
    whole, _ = train_in(tmp_path, iterations=9)
    state = tmp_path / STATE_FILE
    assert read(state)["step"] == 9 and read(tmp_path / PREVIOUS_STATE_FILE)["step"] == 6
    state.write_bytes(damage(state.read_bytes()))
    again, _ = train_in(tmp_path, iterations=9)
    assert again.calls == 3
    assert f"{state} cannot be read" in capsys.readouterr().out
    assert_same(again.state_dict(), whole.state_dict())
    for name in (STATE_FILE, PREVIOUS_STATE_FILE):
        (tmp_path / name).write_bytes(b"")
    again, _ = train_in(tmp_path, iterations=9)
    assert again.calls == 9
    assert_same(again.state_dict(), whole.state_dict())


def test_killed_between_the_two_renames(tmp_path):
    whole, _ = train_in(tmp_path, iterations=9)
    (tmp_path / STATE_FILE).unlink()
    again, _ = train_in(tmp_path, iterations=9)
    assert again.calls == 3
    assert_same(again.state_dict(), whole.state_dict())


def test_no_space_for_a_state(tmp_path, monkeypatch):
    train_in(tmp_path, iterations=3)
    before = (tmp_path / STATE_FILE).read_bytes()

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"state of step 6 .*No space left on device; make room"):
        train_in(tmp_path, iterations=6)
    assert (tmp_path / STATE_FILE).read_bytes() == before


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    with pytest.raises(FloatingPointError, match=r"loss became nan at step 5 .*state\.pth"):
        engine.fit(job_in(tmp_path), Small(bad_at=5), None, Noisy())
    assert read(tmp_path / STATE_FILE)["step"] == 3
    with pytest.raises(FloatingPointError, match="none: nothing was saved yet"):
        engine.fit(job_in(tmp_path / "early"), Small(bad_at=2), None, Noisy())


class Overflowing(Small):
    """Finite loss, infinite gradients, from step 5 on."""

    def forward(self, images, labels, mode="loss"):
        loss = super().forward(images, labels, mode)["loss"]
        if self.calls >= 5:
            loss = loss + _InfiniteGradient.apply(self.net[2].bias.sum())
        return {"loss": loss}


class _InfiniteGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 0

    @staticmethod
    def backward(ctx, grad):
        return grad * float("inf")


def test_a_state_with_numbers_that_are_not_finite_is_never_saved(tmp_path):
    with pytest.raises(FloatingPointError, match=r"at step \d .*last good state is .*state\.pth"):
        engine.fit(job_in(tmp_path, iterations=5, save_every=4), Overflowing(), None, Noisy())
    assert read(tmp_path / STATE_FILE)["step"] == 4


def test_asked_to_stop_it_saves_and_stops(tmp_path):
    model, job = Small(), job_in(tmp_path)
    job.should_stop = lambda: model.calls == 2
    with pytest.raises(Stopped):
        engine.fit(job, model, None, Noisy(), hooks=[Average(model)])
    assert read(tmp_path / STATE_FILE)["step"] == 2
    model, _ = train_in(tmp_path)
    assert model.calls == 4
