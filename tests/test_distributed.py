"""Two processes on a CPU equal one: loss, masks, scores; and so do micro-batches."""

import json
import os
import signal

import numpy as np
import pytest
import torch
from PIL import Image
from test_engine_resume import assert_same, read
from tiny_training import Noisy, Small, in_processes, job_in

from backbones import create_backbone
from mae_bench.job import STATE_FILE
from tasks import distributed, engine
from tasks.pretraining.mae import MaskedAutoencoder
from tasks.pretraining.targets import NormPixel

STEPS = {"iterations": 5, "batch_size": 8, "base_lr": 0.1, "warmup_iterations": 1, "save_every": 2}


class Pictures(torch.utils.data.Dataset):
    """Random pictures, differing in every epoch."""

    def __len__(self):
        return 12

    def __getitem__(self, index):
        return {"images": torch.randn(3, 16, 16) + index, "labels": index}


class Watched(MaskedAutoencoder):
    """A tiny MAE that remembers the noise behind its masks."""

    def __init__(self):
        encoder = create_backbone("vit_mini_patch8", img_size=16, embed_dim=16, num_heads=2)
        super().__init__(
            encoder, NormPixel(8, None), decoder_width=16, decoder_depth=1, decoder_heads=2
        )
        self.noise, self.losses = [], []

    def forward(self, *inputs, **options):
        loss = super().forward(*inputs, **options)
        self.losses.append(loss["loss"].item())
        return loss

    def predict(self, images, noise, *more):
        self.noise.append(noise)
        return super().predict(images, noise, *more)


def pretrain(folder, accumulation=1, die_at=None):
    """Train the tiny MAE; leave what every process saw in its own file."""
    torch.manual_seed(distributed.rank())  # the main process's weights must reach the others
    model = Watched()
    if die_at is not None:
        count = iter(range(10**6))
        model.register_forward_pre_hook(
            lambda *_: os.kill(os.getpid(), signal.SIGKILL) if next(count) == die_at else None
        )
    job = job_in(folder, **STEPS, accumulation=accumulation)
    trained = engine.fit(job, model, model.encoder, Pictures())
    seen = {"noise": model.noise, "losses": torch.tensor(model.losses)}
    seen |= {"weights": model.state_dict(), "facts": trained.facts}
    torch.save(seen, folder / f"rank{distributed.rank()}.pth")


def losses(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def assert_near(weights, expected):
    for name, value in expected.items():
        # The bias of keys has no effect: its gradient is rounding, and Adam makes a step of that.
        if not name.endswith("qkv.bias"):
            torch.testing.assert_close(weights[name], value, atol=1e-5, rtol=1e-5)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone") / "run"
    assert in_processes(1, pretrain, folder) == [0]
    return folder


def test_two_processes_equal_one(tmp_path, alone):
    assert in_processes(2, pretrain, tmp_path) == [0, 0]
    whole = torch.load(alone / "rank0.pth")
    parts = [torch.load(tmp_path / f"rank{rank}.pth") for rank in range(2)]
    for step, noise in enumerate(whole["noise"]):
        assert torch.equal(torch.cat([part["noise"][step] for part in parts]), noise)
    assert len(losses(tmp_path)) == 1, "only the main process writes the curve"
    assert losses(tmp_path) == pytest.approx(losses(alone), abs=1e-5)
    per_step = torch.stack([part["losses"] for part in parts]).mean(0)
    torch.testing.assert_close(per_step, whole["losses"], atol=1e-5, rtol=0)
    assert_near(parts[0]["weights"], whole["weights"])
    assert_same(parts[0]["weights"], parts[1]["weights"])
    assert parts[0]["facts"]["processes"] == 2


def test_micro_batches_equal_one_batch(tmp_path, alone):
    assert in_processes(1, pretrain, tmp_path, 4) == [0]
    whole, parts = (torch.load(folder / "rank0.pth") for folder in (alone, tmp_path))
    for step, noise in enumerate(whole["noise"]):
        assert torch.equal(torch.cat(parts["noise"][4 * step : 4 * step + 4]), noise)
    assert losses(tmp_path) == pytest.approx(losses(alone), abs=1e-5)
    per_step = parts["losses"].view(5, 4).mean(1)
    torch.testing.assert_close(per_step, whole["losses"], atol=1e-5, rtol=0)
    assert_near(parts["weights"], whole["weights"])


@pytest.mark.slow
def test_two_processes_with_micro_batches_killed_and_continued(tmp_path):
    """Bit-identical at equal world size; and a state goes on with another number of processes."""
    assert in_processes(2, pretrain, tmp_path / "whole", 2) == [0, 0]
    codes = in_processes(2, pretrain, tmp_path / "killed", 2, 7)
    assert codes == [-signal.SIGKILL] * 2
    assert read(tmp_path / "killed" / STATE_FILE)["step"] == 2
    assert in_processes(2, pretrain, tmp_path / "killed", 2) == [0, 0]
    states = [read(tmp_path / name / STATE_FILE) for name in ("whole", "killed")]
    assert_same(*states)
    in_processes(2, pretrain, tmp_path / "other", 2, 7)
    assert in_processes(1, pretrain, tmp_path / "other") == [0]
    assert_near(read(tmp_path / "other" / STATE_FILE)["model"], states[0]["model"])


def whole_task(folder, images):
    """The pretraining task as the runner calls it; the outcome of every process in its own file."""
    from mae_bench.recipes import load_recipe
    from tasks.pretraining.training import run

    changes = {"solver.batch_size": 16, "solver.base_lr": 1e-3, "data.val_images": 8}
    recipe = load_recipe("pretraining/mini_mae", changes, smoke=True)
    job = job_in(folder)
    about = {"recipe_values": recipe, "backbone": "vit_mini_patch8", "dataset": images}
    job.run = job.run.model_copy(update=about)
    outcome = run(job)
    (folder / f"{distributed.rank()}.json").write_text(outcome.model_dump_json())


@pytest.mark.slow
def test_the_pretraining_task_over_two_processes(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for number in range(40):
        pixels = rng.integers(0, 255, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((64, 64)).save(tmp_path / "images" / f"{number}.png")
    scores = {}
    for count in (1, 2):
        folder = tmp_path / str(count)
        codes = in_processes(count, whole_task, folder, f"imagefolder:{tmp_path / 'images'}")
        assert codes == [0] * count
        told = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(count)]
        scores[count] = [outcome["metrics"]["val_loss"]["value"] for outcome in told]
        assert (folder / "backbone.safetensors").is_file()
        assert (folder / "reconstructions.png").is_file()
    assert scores[2][0] == scores[2][1] == pytest.approx(scores[1][0], abs=1e-5)


class Echo(Small):
    def forward(self, images, labels, mode):
        return {"logits": torch.eye(11)[labels + (labels % 3 == 0).long()]}


def score(folder):
    distributed.start()
    top1 = engine.accuracy(Echo(), Noisy(), job_in(folder), batch_size=4).top1
    everyone = distributed.gather([distributed.rank()])
    said = distributed.from_main("main" if distributed.is_main() else "other")
    told = [top1, everyone, said, distributed.mean({"rank": float(distributed.rank())})]
    (folder / f"{distributed.rank()}.json").write_text(json.dumps(told))


def test_every_sample_is_scored_once(tmp_path):
    """Ten samples over three processes: no padding, no sample twice."""
    assert in_processes(3, score, tmp_path) == [0, 0, 0]
    told = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(3)]
    assert told == [[pytest.approx(60.0), [0, 1, 2], "main", {"rank": 1.0}]] * 3


def test_alone_nothing_is_sent():
    distributed.start()
    distributed.barrier()
    assert (distributed.rank(), distributed.world_size(), distributed.is_main()) == (0, 1, True)
    assert distributed.gather([1, 2]) == [1, 2] and distributed.from_main("x") == "x"
    assert distributed.mean({"a": 0.1}) == {"a": 0.1}


def test_no_more_loading_processes_than_processors(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert [distributed.loading_processes(asked) for asked in (0, 3, 8, 16)] == [0, 3, 8, 8]
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert distributed.loading_processes(16) == 2
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "16")
    assert distributed.loading_processes(16) == 1
