"""k-NN and classifiers of a few images against naive loops, and the task that scores them."""

import pytest
import torch
from tiny_classification import run_on, write_set
from tiny_training import in_processes

from mae_bench.errors import UserError
from tasks.classification.features import PENALTIES, few, few_shot, nearest_neighbours, ridge


@pytest.fixture
def points():
    torch.manual_seed(0)
    centres = torch.randn(3, 5)
    labels = torch.arange(30) % 3
    return centres[labels] + 0.7 * torch.randn(30, 5), labels, centres


def test_nearest_neighbours_against_a_loop(points):
    features, labels, _ = points
    queries = torch.randn(7, 5)
    found = nearest_neighbours(features, labels, queries, 3, neighbours=4, temperature=0.07)
    for query, prediction in zip(queries, found, strict=True):
        cosines = [torch.cosine_similarity(query, f, dim=0).item() for f in features]
        nearest = sorted(range(30), key=lambda i: -cosines[i])[:4]
        votes = [0.0] * 3
        for i in nearest:
            votes[labels[i]] += torch.tensor(cosines[i] / 0.07).exp().item()
        assert prediction == votes.index(max(votes))


def test_more_neighbours_than_images(points):
    features, labels, queries = points
    with pytest.raises(UserError, match=r"neighbours=31 is more than the 30 training images"):
        nearest_neighbours(features, labels, queries, 3, neighbours=31)


def fit_ridge(features, targets, penalty):
    """Normal equations with an intercept: weights and offset."""
    mean, offset = features.mean(0), targets.mean(0)
    centred = features - mean
    gram = centred.T @ centred + penalty * features.shape[1] * torch.eye(features.shape[1])
    weights = torch.linalg.solve(gram, centred.T @ (targets - offset))
    return weights, offset - mean @ weights


def test_ridge_and_its_penalty_against_leaving_each_out(points):
    features = (points[0] - points[0].mean(0)).double()
    targets = torch.nn.functional.one_hot(points[1], 3).double()
    errors = []
    torch.set_default_dtype(torch.float64)
    try:
        for penalty in PENALTIES:
            error = 0.0
            for i in range(30):
                rest = torch.arange(30) != i
                weights, offset = fit_ridge(features[rest], targets[rest], penalty)
                error += float((features[i] @ weights + offset - targets[i]).square().mean())
            errors.append(error / 30)
        expected, _ = fit_ridge(features, targets, PENALTIES[errors.index(min(errors))])
    finally:
        torch.set_default_dtype(torch.float32)
    weights, penalty = ridge(features, targets)
    assert penalty == PENALTIES[errors.index(min(errors))]
    torch.testing.assert_close(weights, expected, atol=1e-9, rtol=1e-9)


def test_few_shot_learns_what_is_there(points):
    features, labels, centres = points
    assert few_shot(features, labels, centres, 3).tolist() == [0, 1, 2]


def test_few_draws_the_same_images_for_every_encoder():
    labels = torch.tensor([0] * 5 + [1] * 2 + [2] * 5)
    first, again, other = few(labels, 3, 0, 1), few(labels, 3, 0, 1), few(labels, 3, 0, 2)
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.bincount(labels[first]).tolist() == [3, 2, 3]
    assert len(set(first.tolist())) == 8


def score(images, folder):
    outcome = run_on(images, folder, "frozen/mini", model__neighbours=3, model__shots=[1, 2])
    (folder / "outcome.json").write_text(outcome.model_dump_json())
    return outcome


def test_the_task_scores_and_leaves_the_encoder_alone(tmp_path):
    images = write_set(tmp_path / "images", train=4, val=3)
    outcome = score(images, tmp_path / "run")
    assert set(outcome.metrics) == {
        *("knn_top1", "knn_mean_per_class", "low_shot_1_top1", "low_shot_2_top1")
    }
    facts = outcome.facts
    assert facts["fingerprint_after_scoring"] == facts["fingerprint_at_step_0"]
    assert len(facts["low_shot_2_draws"]) == 3
    assert outcome.metrics["knn_top1"].value > 50  # colours tell the classes apart
    assert score(images, tmp_path / "again").metrics == outcome.metrics


@pytest.mark.slow
def test_processes_share_the_images(tmp_path):
    """7 validation images over two processes."""
    images = write_set(tmp_path / "images", train=4, val=7, classes=1 + 1)
    alone = score(images, tmp_path / "alone")
    assert in_processes(2, score, images, tmp_path / "two") == [0, 0]
    assert (tmp_path / "two" / "outcome.json").read_text() == alone.model_dump_json()
