"""The engine of pretraining, classification and segmentation: mmengine's loop, made exact.

`fit` trains as a recipe's `solver` section says, `train` is the loop below it.
"""

from mae_bench.job import STATE_FILE
from tasks.engine.acceleration import autocast
from tasks.engine.averaging import WeightAverage
from tasks.engine.loop import Reporter
from tasks.engine.order import PositionSampler, PositionSeeded, batch_rand, seed_all
from tasks.engine.output import header, pretraining_facts
from tasks.engine.schedules import LearningRate, cosine_lr, duration, polynomial_lr, scaled_lr
from tasks.engine.scoring import Accuracy, accuracy, count
from tasks.engine.solver import OPTIONS, fit, stack
from tasks.engine.state import load_state, save_state
from tasks.engine.training import Trained, train

__all__ = [
    "OPTIONS",
    "STATE_FILE",
    "Accuracy",
    "LearningRate",
    "PositionSampler",
    "PositionSeeded",
    "Reporter",
    "Trained",
    "WeightAverage",
    "accuracy",
    "autocast",
    "batch_rand",
    "cosine_lr",
    "count",
    "duration",
    "fit",
    "header",
    "load_state",
    "polynomial_lr",
    "pretraining_facts",
    "save_state",
    "scaled_lr",
    "seed_all",
    "stack",
    "train",
]
