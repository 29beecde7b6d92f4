"""What is going on: a live view on a terminal, plain lines elsewhere, and the time left."""

from __future__ import annotations

import time
from collections.abc import Iterable
from statistics import fmean
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table as Grid
from rich.text import Text

from mae_bench.cost import Estimates
from mae_bench.plan import Plan
from mae_bench.records import Record, Run
from mae_bench.workspace import Workspace, state_of

SECONDS_BETWEEN_LINES = 60
STOPPING = "stopping as soon as the runs have saved their states; once more (Ctrl-C): now"


def make_console() -> Console:
    """Return the console for stdout; a file or a pipe gets wide lines instead of wrapped ones."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=160)


def seconds_text(seconds: float | None) -> str:
    """Return "45 s", "3 min 20 s", "2 h 05 min", or "?" if unknown."""
    if seconds is None:
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes_rest = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes_rest:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def headline(record: Record) -> str:
    """Return the scores (or the error) of a record in a few words."""
    if record.outcome is None:
        return state_of(record)
    metrics = list(record.outcome.metrics.items())[:2]
    return ", ".join(f"{name} {metric.value:.2f}" for name, metric in metrics)


class Board:
    """Counts and clocks behind both views. A context manager; see `crew.Monitor`."""

    def __init__(self, plan: Plan, workspace: Workspace, done: Iterable[str], workers: int):
        self.workspace, self.workers = workspace, workers
        self.estimates = Estimates(workspace.records().values())
        self.total = len(plan.runs)
        self.done = set(done)
        self.failed: set[str] = set()
        self.interrupted: set[str] = set()
        self.active: dict[str, tuple[Run, float]] = {}
        self.waiting = {run.run.id: run.run for run in plan.runs if run.run.id not in self.done}
        self.begun = time.time()
        self.dataset: str | None = None

    def preparing(self, dataset: str) -> None:
        """See `crew.Monitor`."""
        self.dataset = dataset

    def started(self, run: Run) -> None:
        """See `crew.Monitor`."""
        self.dataset = None
        self.active[run.id] = (self.waiting.pop(run.id, run), time.time())

    def finished(self, run: Run, record: Record) -> None:
        """See `crew.Monitor`."""
        del self.active[run.id]
        (self.done if record.status == "ok" else self.failed).add(run.id)
        self.estimates.learn(record)

    def blocked(self, run: Run) -> None:
        """See `crew.Monitor`."""
        del self.waiting[run.id]
        self.failed.add(run.id)

    def stopped(self, run: Run) -> None:
        """See `crew.Monitor`."""
        del self.active[run.id]
        self.interrupted.add(run.id)

    def kept(self, run: Run, record: Record) -> None:
        """See `crew.Monitor`."""
        del self.waiting[run.id]
        self.failed.add(run.id)

    def stopping(self) -> None:
        """See `crew.Monitor`."""

    def tick(self) -> None:
        """See `crew.Monitor`."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Nothing to close."""

    def left(self, run: Run, started: float) -> float | None:
        """Seconds that a running run still needs, None if unknown."""
        progress = self.progress(run, started)
        return self.estimates.left(run, time.time() - started, progress)

    def progress(self, run: Run, started: float) -> dict[str, Any]:
        """Last report of a run; that of an earlier, interrupted attempt does not count."""
        found = self.workspace.progress(run.id)
        return found if found.get("time", 0) >= started else {}

    def eta(self) -> float | None:
        """Seconds until all is done, None if nothing is known yet."""
        running = [self.left(run, started) for run, started in self.active.values()]
        to_come = [self.estimates.of(run) for run in self.waiting.values()]
        known = [seconds for seconds in running + to_come if seconds is not None]
        if not known:
            return None
        work = sum(known) + fmean(known) * (len(running) + len(to_come) - len(known))
        return max(work / self.workers, max(known))

    def summary(self) -> str:
        """Counts, time spent and time left in one line."""
        if self.dataset:
            return f"preparing dataset {self.dataset}; {self.total - len(self.done)} runs to do"
        parts = [f"{len(self.done)}/{self.total} runs done", f"{len(self.active)} going"]
        parts.append(f"{len(self.waiting)} left")
        if self.failed:
            parts.append(f"{len(self.failed)} failed or blocked")
        if self.interrupted:
            parts.append(f"{len(self.interrupted)} stopped")
        elapsed = seconds_text(time.time() - self.begun)
        return f"{', '.join(parts)}; {elapsed}, about {seconds_text(self.eta())} left"


class PlainBoard(Board):
    """One line when a run starts and when it ends, and one a minute in between."""

    def __init__(self, *arguments: Any, console: Console):
        super().__init__(*arguments)
        self.console = console
        self._last_line = time.monotonic()

    def _print(self, text: str) -> None:
        self._last_line = time.monotonic()
        self.console.print(f"{time.strftime('%H:%M:%S')} {text}", markup=False, soft_wrap=True)

    def preparing(self, dataset: str) -> None:
        super().preparing(dataset)
        self._print(f"data    {dataset}")

    def started(self, run: Run) -> None:
        super().started(run)
        self._print(f"start   {run.label} ({run.id})")

    def finished(self, run: Run, record: Record) -> None:
        super().finished(run, record)
        self._print(finish_line(run, record) + f"  [{len(self.done)}/{self.total}]")

    def blocked(self, run: Run) -> None:
        super().blocked(run)
        self._print(f"blocked {run.label}")

    def stopped(self, run: Run) -> None:
        super().stopped(run)
        self._print(f"stopped {run.label}; the same command continues it")

    def kept(self, run: Run, record: Record) -> None:
        super().kept(run, record)
        self._print(kept_line(run))

    def stopping(self) -> None:
        self._print(STOPPING)

    def tick(self) -> None:
        if time.monotonic() - self._last_line < SECONDS_BETWEEN_LINES:
            return
        going = []
        for run, started in self.active.values():
            report = self.progress(run, started)
            going.append(f"{run.label} {step_text(report)} {loss_text(report)}".rstrip())
        self._print("; ".join([self.summary(), *going]))


class LiveBoard(Board):
    """Finished runs scroll away above a header and one line per worker that stay in place."""

    def __init__(self, *arguments: Any, console: Console):
        super().__init__(*arguments)
        self.console = console
        self._live = Live(self.view(), console=console, auto_refresh=False, transient=True)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *reason: Any) -> None:
        self._live.stop()

    def preparing(self, dataset: str) -> None:
        super().preparing(dataset)
        self.tick()

    def finished(self, run: Run, record: Record) -> None:
        super().finished(run, record)
        style = "green" if record.status == "ok" else "red"
        self.console.print(Text(finish_line(run, record), style=style))

    def blocked(self, run: Run) -> None:
        super().blocked(run)
        self.console.print(Text(f"blocked {run.label}", style="yellow"))

    def stopped(self, run: Run) -> None:
        super().stopped(run)
        text = f"stopped {run.label}; the same command continues it"
        self.console.print(Text(text, style="yellow"))

    def kept(self, run: Run, record: Record) -> None:
        super().kept(run, record)
        self.console.print(Text(kept_line(run), style="red"))

    def stopping(self) -> None:
        self.console.print(Text(STOPPING, style="yellow"))

    def tick(self) -> None:
        self._live.update(self.view(), refresh=True)

    def view(self) -> Group:
        """The header and the workers' lines, always of the same height."""
        grid = Grid.grid(padding=(0, 2))
        # The only column that gives way on a narrow terminal, for which it must be one that wraps;
        # the label in it does not.
        grid.add_column(ratio=1)
        for _ in range(4):
            grid.add_column(no_wrap=True)
        for run, started in self.active.values():
            report = self.progress(run, started)
            step, total = report.get("step", 0), report.get("total", 0) or 1
            grid.add_row(
                Text(run.label, no_wrap=True, overflow="ellipsis"),
                ProgressBar(total=total, completed=step, width=12),
                Text(step_text(report)),
                Text(loss_text(report)),
                f"{seconds_text(self.left(run, started))} left",
            )
        for _ in range(self.workers - len(self.active)):
            grid.add_row("", "", "", "", "")
        return Group(Text(self.summary(), style="bold"), grid)


def finish_line(run: Run, record: Record) -> str:
    """Return what is printed when a run ends."""
    word = "done   " if record.status == "ok" else "FAILED "
    took = seconds_text(record.provenance.seconds)
    return f"{word} {run.label} ({run.id})  {headline(record)}  {took}"


def kept_line(run: Run) -> str:
    """Return what is printed of a run that failed under an earlier command."""
    return f"failed  {run.label} ({run.id}) before; --retry-failed tries again"


def step_text(report: dict[str, Any]) -> str:
    """Return "train 120/300", or "starting" before the first report."""
    return f"{report['phase']} {report['step']}/{report['total']}" if report else "starting"


def loss_text(report: dict[str, Any]) -> str:
    """Return "loss 1.234" if the task told one."""
    return f"loss {report['loss']:.3f}" if isinstance(report.get("loss"), float) else ""


def make_board(
    plan: Plan, workspace: Workspace, done: Iterable[str], workers: int, console: Console
) -> Board:
    """Return the view that suits the console."""
    view = LiveBoard if console.is_terminal else PlainBoard
    return view(plan, workspace, done, workers, console=console)
