"""LARS as linear probing wants it: timm's, told what to adapt."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from timm.optim import Lars
from torch import nn

TRUST = 0.001


def lars(groups: Iterable[dict[str, Any]], momentum: float) -> Lars:
    """LARS on every tensor of two or more dimensions, plain SGD on norms and biases.

    Left to itself, timm's adapts nothing where there is no weight decay, and everything where there
    is. Differs: with weight decay, its trust ratio divides by |gradient| + decay x |weights|, as in
    arXiv:1708.03888 Algorithm 1; facebookresearch/mae takes the length of their sum. A probe has no
    weight decay, and both are then the same.

    Args:
        groups: optimizer groups (`backbones.groups.parameter_groups`), each with its lr.

    Source: arXiv:2111.06377 Table 10; facebookresearch/mae util/lars.py.
    """
    split = []
    for group in groups:
        kinds: dict[bool, list[nn.Parameter]] = {True: [], False: []}
        for parameter in group["params"]:
            kinds[parameter.dim() > 1].append(parameter)
        split += [
            {**group, "params": parameters, "always_adapt": adapt}
            for adapt, parameters in kinds.items()
            if parameters
        ]
    return Lars(split, momentum=momentum, trust_coeff=TRUST, eps=0.0)
