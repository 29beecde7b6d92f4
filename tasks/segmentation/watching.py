"""Hooks that watch a training: which precision it computes in, and where its score stands.

Both end in facts for the run's record.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor, nn

from mae_bench.errors import UserError
from mae_bench.job import Job, Stopped
from tasks import distributed, engine

DTYPES = {None: torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class PrecisionProbe(Hook):
    """Refuses a training that does not compute in the precision its recipe names.

    A config that says "amp" and trains in fp32 loses nothing but time and memory, so nobody
    notices. Here linear layers and convolutions of the first step tell what they computed in.

    Args:
        modules: name -> part of the model that is asked.
        amp: as `solver.amp`.

    Attributes:
        found: name -> precision of its layers, after the first step.
    """

    def __init__(self, modules: Mapping[str, nn.Module], amp: str | None):
        # Of a precision that does not exist the engine tells.
        self.modules, self.expected = modules, DTYPES.get(amp, torch.float32)
        self.found: dict[str, str] = {}
        self._seen: dict[str, set[torch.dtype]] = {name: set() for name in modules}
        self._handles: list[Any] = []

    def before_train(self, runner: Runner) -> None:
        for name, part in self.modules.items():
            for layer in part.modules():
                if isinstance(layer, nn.Linear | nn.Conv2d):
                    self._handles.append(layer.register_forward_hook(self._noting(name)))

    def _noting(self, name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def note(layer: nn.Module, inputs: Any, output: Tensor) -> None:
            self._seen[name].add(output.dtype)

        return note

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        while self._handles:
            self._handles.pop().remove()
        if not self.found:
            self.found = {name: _words(dtypes) for name, dtypes in self._seen.items()}
            wrong = {name: found for name, found in self.found.items() if found != self._word}
            if wrong:
                raise RuntimeError(
                    f"solver.amp asks for {self._word}, but layers computed in {wrong}: something "
                    "switches mixed precision off (or on) around them"
                )

    @property
    def _word(self) -> str:
        return _words({self.expected})


def _words(dtypes: set[torch.dtype]) -> str:
    return " and ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))


class Curve:
    """A published or earlier learning curve that a run is held against.

    Args:
        points: (iteration, score), ascending; the last is the end of that training.
        band: how far below a score may be, in its unit.
        total: iterations of this run. A schedule of another length has another curve: then nothing
            is compared.

    Raises:
        UserError: no such pairs, or out of order.
    """

    def __init__(self, points: list[list[float]], band: float, total: int):
        try:
            steps = [int(step) for step, score in points if math.isfinite(score)]
        except (TypeError, ValueError):
            steps = []
        if steps != sorted(set(steps)) or not steps or len(steps) != len(points):
            raise UserError(
                f"reference.curve {points!r} must be pairs [iteration, score] in ascending order"
            )
        self.scores = {int(step): score for step, score in points}
        self.band, self.comparable = band, total == steps[-1]

    def warning(self, step: int, score: float) -> str | None:
        """What to say of a score; None if it is in the band, or there is nothing to compare."""
        expected = self.scores.get(step) if self.comparable else None
        if expected is None or score >= expected - self.band:
            return None
        return (
            f"mIoU {score:.2f} at iteration {step} is {expected - score:.2f} below the reference "
            f"curve ({expected:.2f}, {self.band:g} are allowed). Look at load_report.json (were "
            "weights loaded?), parameters.csv (layer decay, weight decay) and the effective batch"
        )


class Validation(Hook):
    """Scores the validation set every so many steps, and warns early when it falls behind.

    Nothing of it can change the training: scoring draws no random numbers, and the model goes on as
    it was.

    Args:
        score: () -> mIoU.
        every: steps.
        curve: to compare with; None for no comparison.

    Attributes:
        scores: step -> mIoU; goes on after an interruption.
        warnings: what was said.
    """

    def __init__(self, job: Job, score: Callable[[], float], every: int, curve: Curve | None):
        self.job, self.score, self.every, self.curve = job, score, every, curve
        self.scores: dict[int, float] = {}
        self.warnings: list[str] = []

    def before_train(self, runner: Runner) -> None:
        # What was due when the run was asked to stop.
        if runner.iter:
            self._validate(runner.iter)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        # The end is scored anyway, from the weights that are saved.
        if runner.iter + 1 < runner.max_iters:
            self._validate(runner.iter + 1)

    def _validate(self, step: int) -> None:
        if step % self.every or step in self.scores:
            return
        try:
            self.scores[step] = self.score()
        except Stopped:
            return  # the step's state is saved next, and this done on return
        self.hold(step, self.scores[step])

    def hold(self, step: int, score: float) -> None:
        """Log a score and compare it."""
        if distributed.is_main():
            self.job.log_metrics(step, miou=score)
        warning = self.curve.warning(step, score) if self.curve else None
        if warning:
            self.warnings.append(warning)
            if distributed.is_main():
                print(f"WARNING: {warning}", flush=True)

    def state_dict(self) -> dict[str, Any]:
        """What continues."""
        return {"scores": self.scores, "warnings": self.warnings}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore it."""
        self.scores, self.warnings = dict(state["scores"]), list(state["warnings"])


class Watch:
    """What is watched in a run, as its recipe says.

    Args:
        score: (report=...) -> (scores, examples), of the validation set.
        images: in the training set.

    Attributes:
        hooks: for the training.
    """

    def __init__(self, job: Job, model: nn.Module, score: Callable[..., Any], images: int):
        solver = job.recipe["solver"]
        parts = {"encoder": model.backbone.encoder, "decode_head": model.decode_head}
        self.probe = PrecisionProbe(parts, solver["amp"])
        self.iterations, _ = engine.duration(solver, images)
        reference = job.recipe.get("reference") or {}
        curve = None
        if reference.get("curve"):
            curve = Curve(reference["curve"], reference["band"], self.iterations)
        report = partial(job.report, "validate") if distributed.world_size() == 1 else _silent
        every = job.recipe["test"].get("validate_every") or self.iterations
        self.validation = Validation(job, lambda: score(report=report)[0].miou, every, curve)
        # A compiled model calls no hooks of its parts.
        self.hooks = [self.validation] if solver.get("compile") else [self.probe, self.validation]

    def facts(self, miou: float) -> dict[str, object]:
        """For the record, once the end is scored."""
        self.validation.hold(self.iterations, miou)
        curve = {str(step): score for step, score in self.validation.scores.items()}
        found = {
            "computed_in": self.probe.found,
            "validation_miou": curve,
            "warnings": self.validation.warnings,
        }
        return {name: fact for name, fact in found.items() if fact}


def _silent(done: int, total: int) -> None:
    """In the place of a report that may stop one process while the others wait for it."""
