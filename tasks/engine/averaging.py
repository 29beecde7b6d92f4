"""Moving average of the weights, continued exactly after an interruption."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.device import get_device
from mmengine.hooks import Hook
from mmengine.model import BaseModel, is_model_wrapper
from mmengine.runner import Runner
from timm.utils import ModelEmaV3

from mae_bench.errors import UserError


class WeightAverage(Hook):
    """Keeps average = decay * average + (1 - decay) * weights after every step, from step 0 on.

    Pass it to `train` as a hook; its state is saved with the training's.

    Args:
        decay: per step; 0.9999 in arXiv:2111.06377 Table 11.

    Raises:
        UserError: a decay that averages nothing or does not converge.

    Attributes:
        model: the model with the averaged weights, in eval mode.
    """

    def __init__(self, model: BaseModel, decay: float):
        if not 0 < decay < 1:
            raise UserError(
                f"model.ema_decay={decay}: a number between 0 and 1 is needed, such as 0.9999, or "
                "none for no average"
            )
        self._average = ModelEmaV3(model, decay=decay, device=torch.device(get_device()))
        self.model: BaseModel = self._average.module

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        self._average.update(model)

    def state_dict(self) -> dict[str, Any]:
        """What continues: the averaged weights."""
        return self._average.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore them."""
        self._average.load_state_dict(state_dict)
