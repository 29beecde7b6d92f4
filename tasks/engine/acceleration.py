"""Faster or smaller steps: mixed precision, compilation, activations that are computed twice."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from typing import Any

import torch
from mmengine.optim import OptimWrapper
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mae_bench.errors import UserError, unknown
from tasks import distributed
from tasks.engine.order import keep_out_of_graphs

PRECISIONS = {"bfloat16": torch.bfloat16, "float16": torch.float16}

# Bytes of gradients that wait for their update. In a ViT-B they would be 0.4 GB, and the peak of a
# step of few images; an update by itself of each weight would take longer than one of many.
WAITING = 2**26


class MixedPrecision(OptimWrapper):
    """Forward passes under autocast; weights, gradients and optimizer stay in fp32.

    mmengine's own refuses to work on a CPU. In fp16 the loss is scaled, and a step whose gradients
    overflow is left out while the scale is halved, until it fits. In bf16 on a CPU a weight is
    updated while the backward pass still goes on, and its gradient freed, where nothing is done to
    gradients in between: no accumulation, clipping or other processes. The numbers are the same.

    Attributes:
        skipped: steps left out in this process; `skipped_in_a_row`: since the last good one.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, dtype: torch.dtype, device: str, **options: Any
    ):
        super().__init__(optimizer, **options)
        self._autocast = partial(torch.autocast, device, dtype)
        self.scaler = torch.amp.GradScaler(device, enabled=dtype == torch.float16)
        self.skipped = self.skipped_in_a_row = 0
        self._waiting: int | None = None  # bytes; None outside of `backward`
        final = self._accumulative_counts == 1 and not self.clip_grad_kwargs
        if final and device == "cpu" and not self.scaler.is_enabled():
            for weight in chain.from_iterable(group["params"] for group in optimizer.param_groups):
                if weight.requires_grad:
                    weight.register_post_accumulate_grad_hook(self._update_early)

    def backward(self, loss: Tensor, **options: Any) -> None:
        """Differentiate the scaled loss; may update weights whose gradients are complete."""
        self._waiting = None if distributed.world_size() > 1 else 0
        try:
            self.scaler.scale(loss).backward(**options)
        finally:
            self._waiting = None
        self._inner_count += 1

    def _update_early(self, weight: Tensor) -> None:
        if self._waiting is None:
            return
        self._waiting += weight.grad.nbytes
        if self._waiting >= WAITING:
            self.optimizer.step()
            self.optimizer.zero_grad()
            self._waiting = 0

    def step(self, **options: Any) -> None:
        """Update the parameters unless their gradients overflowed."""
        if self.clip_grad_kwargs:
            self.scaler.unscale_(self.optimizer)
            self._clip_grad()
        scale = self.scaler.get_scale()
        self.scaler.step(self.optimizer, **options)
        self.scaler.update()
        left_out = self.scaler.get_scale() < scale
        self.skipped += left_out
        self.skipped_in_a_row = (self.skipped_in_a_row + 1) * left_out

    def state_dict(self) -> dict[str, Any]:
        """Of the optimizer and the scaler."""
        return {**super().state_dict(), "scaler": self.scaler.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.scaler.load_state_dict(state_dict["scaler"])
        super().load_state_dict({k: v for k, v in state_dict.items() if k != "scaler"})

    @contextlib.contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Autocast, and no synchronisation between processes before the last micro-batch."""
        with super().optim_context(model), self._autocast():
            yield


def autocast(amp: str | None, device: str) -> contextlib.AbstractContextManager[Any]:
    """Context of forward passes outside of training, in the precision of the training."""
    return torch.autocast(device, PRECISIONS[amp]) if amp else contextlib.nullcontext()


def optim_wrapper(
    optimizer: torch.optim.Optimizer, amp: str | None, device: str, accumulation: int
) -> OptimWrapper:
    """Wrap an optimizer for mmengine's loop.

    Args:
        amp: None for fp32, else "bfloat16" or "float16".
        device: "cpu" or "cuda".
        accumulation: backward passes per step.

    Raises:
        UserError: unknown precision, or one that the device lacks.
    """
    dtype = precision(amp, device)
    if dtype is None:
        return OptimWrapper(optimizer, accumulative_counts=accumulation)
    return MixedPrecision(optimizer, dtype, device, accumulative_counts=accumulation)


def precision(amp: str | None, device: str) -> torch.dtype | None:
    """torch's type for a forward pass in mixed precision; None for fp32.

    Args:
        amp: None, "bfloat16" or "float16".
        device: "cpu" or "cuda".

    Raises:
        UserError: unknown precision, or one that the device lacks.
    """
    if amp is None:
        return None
    if amp not in PRECISIONS:
        raise unknown("precision in solver.amp", amp, [*PRECISIONS, "none"])
    if amp == "float16" and device == "cpu":
        raise UserError(
            "solver.amp=float16 needs a GPU; on a CPU give solver.amp=bfloat16 or none (fp32)"
        )
    if amp == "bfloat16" and device == "cuda" and not torch.cuda.is_bf16_supported():
        raise UserError("this GPU has no bfloat16; give solver.amp=float16 or none (fp32)")
    return PRECISIONS[amp]


def checkpoint_activations(model: nn.Module) -> None:
    """Keep only the input of each transformer block, and compute the rest again when needed.

    Less memory for about a third more time, at equal numbers: random draws are repeated too.

    Raises:
        UserError: the model has no blocks.
    """
    blocks = [block for module in model.modules() for block in _blocks(module)]
    if not blocks:
        raise UserError(
            f"solver.activation_checkpointing: {type(model).__name__} has no transformer blocks; "
            "leave it off"
        )
    for block in blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)


def _blocks(module: nn.Module) -> list[nn.Module]:
    # The name that timm, and with it this project, gives to them.
    blocks = getattr(module, "blocks", None)
    return list(blocks) if isinstance(blocks, nn.ModuleList | nn.Sequential) else []


def compile_forward(model: nn.Module, device: str) -> str | None:
    """Compile a model's forward pass in place, where this machine has a compiler for it.

    Returns:
        Why it was not compiled; None if it was.
    """
    try:
        torch.compile(_nothing_much)(torch.ones(2, device=device))
    except Exception as error:  # each backend has errors of its own
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return f"torch.compile does not work here ({lines[0]}); training goes on without it"
    keep_out_of_graphs()
    model.compile()
    return None


_nothing_much: Callable[[Tensor], Tensor] = lambda x: x * 2 + 1  # noqa: E731
