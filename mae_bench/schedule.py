"""The order of runs: what may start, and what a failure takes along."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping

from mae_bench.plan import PlannedRun
from mae_bench.records import Run


class Schedule:
    """Which run starts next: of those whose needs are met, the one with the longest way behind it.

    Args:
        runs: dependencies before what needs them.
        done: ids of runs that are finished already.
        seconds: run id -> expected seconds; 1 if unknown.
        failed: ids of runs that failed and are not to be repeated.
    """

    def __init__(
        self,
        runs: Iterable[PlannedRun],
        done: Iterable[str],
        seconds: Mapping[str, float],
        failed: Iterable[str] = (),
    ):
        finished = set(done)
        self._todo = {run.run.id: run for run in runs if run.run.id not in finished}
        self._needs = {
            run_id: set(run.dependencies) - finished for run_id, run in self._todo.items()
        }
        self._users: dict[str, list[str]] = {run_id: [] for run_id in self._todo}
        for run_id, needs in self._needs.items():
            for need in needs:
                self._users[need].append(run_id)
        self._chain: dict[str, float] = {}
        for run_id in reversed(self._todo):
            after = max((self._chain[user] for user in self._users[run_id]), default=0.0)
            self._chain[run_id] = after + seconds.get(run_id, 1.0)
        self._order = {run_id: index for index, run_id in enumerate(self._todo)}
        self._lost = set(failed)
        self._ready: list[tuple[float, int, str]] = []
        for run_id, needs in self._needs.items():
            if not needs and run_id not in self._lost:
                self._push(run_id)

    def _push(self, run_id: str) -> None:
        heapq.heappush(self._ready, (-self._chain[run_id], self._order[run_id], run_id))

    @property
    def is_empty(self) -> bool:
        """Whether nothing can start now."""
        return not self._ready

    def pop(self) -> PlannedRun | None:
        """Return the run to start now, None if none can."""
        return self._todo[heapq.heappop(self._ready)[2]] if self._ready else None

    def put_back(self, planned: PlannedRun) -> None:
        """Take back a run that could not start now."""
        self._push(planned.run.id)

    def succeed(self, run_id: str) -> None:
        """Free what waited for this run only."""
        for user in self._users[run_id]:
            self._needs[user].discard(run_id)
            if not self._needs[user] and user not in self._lost:
                self._push(user)

    def fail(self, run_id: str) -> list[Run]:
        """Return the runs that this one takes along, each once over all calls."""
        lost = []
        for user in self._users[run_id]:
            if user not in self._lost:
                self._lost.add(user)
                lost += [self._todo[user].run, *self.fail(user)]
        return lost
