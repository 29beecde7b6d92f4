"""The order of runs, and what a failure takes along."""

from fake_tasks import fake_run

from mae_bench.plan import PlannedRun
from mae_bench.schedule import Schedule


def chain(name: str, length: int) -> list[PlannedRun]:
    runs: list[PlannedRun] = []
    for index in range(length):
        runs.append(fake_run(f"{name}{index}", needs=tuple(runs[-1:])))
    return runs


def pop_all(schedule: Schedule) -> list[str]:
    found = []
    while planned := schedule.pop():
        found.append(planned.run.init)
    return found


def test_longest_way_first() -> None:
    runs = [*chain("short", 1), *chain("long", 3), *chain("middle", 2)]
    assert pop_all(Schedule(runs, [], {})) == ["long0", "middle0", "short0"]


def test_measured_seconds_decide() -> None:
    runs = [*chain("a", 3), *chain("b", 1)]
    assert pop_all(Schedule(runs, [], {runs[-1].run.id: 10.0})) == ["b0", "a0"]


def test_nothing_starts_before_what_it_needs() -> None:
    runs = chain("a", 3)
    schedule = Schedule(runs, [], {})
    for planned in runs:
        assert schedule.pop() == planned
        assert schedule.pop() is None
        schedule.succeed(planned.run.id)


def test_two_needs_must_both_be_met() -> None:
    first, second = fake_run("first"), fake_run("second")
    both = fake_run("both", needs=(first, second))
    schedule = Schedule([first, second, both], [], {})
    pop_all(schedule)
    schedule.succeed(first.run.id)
    assert schedule.pop() is None
    schedule.succeed(second.run.id)
    assert schedule.pop() == both


def test_what_is_done_is_neither_run_nor_waited_for() -> None:
    first, second = chain("a", 2)
    assert pop_all(Schedule([first, second], [first.run.id], {})) == ["a1"]


def test_failure_takes_all_that_follows_once_and_for_good() -> None:
    first, second = fake_run("first"), fake_run("second")
    both = fake_run("both", needs=(first, second))
    last = fake_run("last", needs=(both,))
    schedule = Schedule([first, second, both, last], [], {})
    pop_all(schedule)
    assert [run.init for run in schedule.fail(first.run.id)] == ["both", "last"]
    assert schedule.fail(second.run.id) == []
    schedule.succeed(second.run.id)
    assert schedule.pop() is None


def test_what_failed_before_is_not_started_but_blocks(tmp_path) -> None:
    first, second, third = chain("a", 3)
    schedule = Schedule([first, second, third], [], {}, failed=[first.run.id])
    assert schedule.pop() is None
    assert [run.init for run in schedule.fail(first.run.id)] == ["a1", "a2"]


def test_what_failed_before_is_not_started_by_a_need_that_is_met() -> None:
    first, second, third = chain("a", 3)
    schedule = Schedule([first, second, third], [], {}, failed=[second.run.id])
    assert [run.init for run in schedule.fail(second.run.id)] == ["a2"]
    assert schedule.pop() == first
    schedule.succeed(first.run.id)
    assert schedule.pop() is None


def test_a_run_that_could_not_start_comes_again() -> None:
    first, second = chain("a", 1) + chain("b", 1)
    schedule = Schedule([first, second], [], {})
    schedule.put_back(schedule.pop())
    assert pop_all(schedule) == ["a0", "b0"]
