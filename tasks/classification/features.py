"""Scores of features as they are: nearest neighbours, and linear classifiers of a few images.

Letters: N training features, M queries, D width, C classes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mae_bench.errors import UserError
from tasks import engine

# Cosines in memory at once: 1 GB in fp32.
MOST_COSINES = 2**28
# Penalties to choose from, relative to the mean square of a feature.
PENALTIES = tuple(10.0**power for power in range(-4, 5))


def nearest_neighbours(
    features: Tensor,
    labels: Tensor,
    queries: Tensor,
    num_classes: int,
    neighbours: int = 20,
    temperature: float = 0.07,
) -> Tensor:
    """Classify by the nearest training features, each voting with exp(cosine / temperature).

    Args:
        features: (N, D), with labels (N,); queries: (M, D).

    Returns:
        (M,) classes.

    Raises:
        UserError: more neighbours than there are training images.

    Source: arXiv:1805.01978 Sec. 3.4; facebookresearch/dino eval_knn.py (20 neighbours, 0.07).
    """
    if neighbours > len(features):
        raise UserError(
            f"model.neighbours={neighbours} is more than the {len(features)} training images; give "
            f"at most {len(features)}"
        )
    features = torch.nn.functional.normalize(features)
    found = []
    chunk_size = max(1, MOST_COSINES // len(features))
    for chunk in torch.nn.functional.normalize(queries).split(chunk_size):
        cosines, nearest = (chunk @ features.T).topk(neighbours)
        votes = cosines.new_zeros(len(chunk), num_classes)
        votes.scatter_add_(1, labels[nearest], (cosines / temperature).exp())
        found.append(votes.argmax(dim=1))
    return torch.cat(found)


def few(labels: Tensor, shots: int, *seed: int) -> Tensor:
    """Indices of `shots` training images of each class (all of a class that has fewer)."""
    engine.seed_all(*seed)
    order = torch.randperm(len(labels))
    chosen = [order[labels[order] == label][:shots] for label in labels.unique()]
    return torch.cat(chosen)


def few_shot(features: Tensor, labels: Tensor, queries: Tensor, num_classes: int) -> Tensor:
    """Classify by a linear classifier of a few images: ridge regression on one-hot labels.

    Its penalty is chosen by the few images themselves, each predicted from the others; no query
    is looked at. Features are scaled by their means and deviations, as by the probe's BatchNorm.

    Args:
        features: (N, D), with labels (N,); queries: (M, D).

    Returns:
        (M,) classes.

    Source: google-research/big_vision evaluators/fewshot_lsr.py has the regression; there, the
    penalty is chosen on the queries.
    """
    features, queries = features.double(), queries.double()
    mean, deviation = features.mean(0), features.var(0, unbiased=False).add(1e-6).sqrt()
    features, queries = (features - mean) / deviation, (queries - mean) / deviation
    targets = torch.nn.functional.one_hot(labels, num_classes).double()
    weights, _ = ridge(features, targets)
    return (queries @ weights + targets.mean(0)).argmax(dim=1)


def ridge(features: Tensor, targets: Tensor) -> tuple[Tensor, float]:
    """Ridge regression with an intercept, the mean of the targets, and the penalty for it.

    Args:
        features: (N, D), each column of mean 0; targets: (N, C).

    Returns:
        Weights (D, C), and the penalty of `PENALTIES` with the least leave-one-out error: that of a
        sample is its residual / (1 - its leverage), so nothing is fitted again.
    """
    targets = targets - targets.mean(0)
    left, scale, right = torch.linalg.svd(features, full_matrices=False)
    along = left.T @ targets
    errors = {}
    for penalty in PENALTIES:
        kept = scale**2 / (scale**2 + penalty * features.shape[1])
        leverage = left.square() @ kept + 1 / len(features)
        residuals = targets - left @ (kept[:, None] * along)
        errors[penalty] = float((residuals / (1 - leverage)[:, None]).square().mean())
    best = min(errors, key=errors.__getitem__)
    inverse = scale / (scale**2 + best * features.shape[1])
    return right.T @ (inverse[:, None] * along), best
