"""Two collections of results against each other: what changed, what is new, what is gone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from mae_bench.collection import Score, same


@dataclass(frozen=True)
class Change:
    """A score that is another one now; `same_run` if its run has the same id still."""

    old: Score
    new: Score

    @property
    def same_run(self) -> bool:
        return self.old.run_id == self.new.run_id

    def __str__(self) -> str:
        """ "detection ... box_ap 47.90 -> 48.10 (+0.20 AP), same run"."""
        difference = self.new.value - self.old.value
        why = "same run" if self.same_run else f"{self.old.run_id} -> {self.new.run_id}"
        return (
            f"{self.new.label} {self.old.value:.4g} -> {self.new.value:.4g} "
            f"({difference:+.3g} {self.new.unit}), {why}"
        )


@dataclass(frozen=True)
class Comparison:
    """What became of the scores."""

    changed: tuple[Change, ...]
    added: tuple[Score, ...]
    removed: tuple[Score, ...]
    num_equal: int


def compare(old: Iterable[Score], new: Iterable[Score]) -> Comparison:
    """Match scores by run, then those left over by what was measured.

    A run has another id when its settings, its data or the task's version changed: then it is the
    same place (task, dataset, backbone, init, recipe, seed, metric) that counts, where it is the
    only one on either side.
    """
    before = {(score.run_id, score.metric): score for score in old}
    after = {(score.run_id, score.metric): score for score in new}
    pairs = [(before.pop(key), after.pop(key)) for key in list(before) if key in after]
    num_before = Counter(score.place for score in before.values())
    num_after = Counter(score.place for score in after.values())
    places = {score.place: key for key, score in after.items()}
    for key, score in list(before.items()):
        if num_before[score.place] == 1 == num_after[score.place]:
            pairs.append((before.pop(key), after.pop(places[score.place])))
    changes = [Change(one, two) for one, two in pairs if not same(one.value, two.value)]
    return Comparison(
        tuple(changes), tuple(after.values()), tuple(before.values()), len(pairs) - len(changes)
    )
