"""Where runs are executed: the options of the command line that say so, and what they lead to.

None of them changes a number, so none is part of a run's id.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from functools import wraps
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from mae_bench import ranks
from mae_bench.errors import UserError, unknown
from mae_bench.plan import Plan

if TYPE_CHECKING:
    from mae_bench.crew import Monitor
    from mae_bench.devices import Devices
    from mae_bench.runner import Site
    from mae_bench.slurm import Resources

LAUNCHERS = ("local", "slurm")
# Lines of a live view; more runs than that may be going on a cluster.
VISIBLE_JOBS = 8


@dataclass(frozen=True)
class Launch:
    """The options; each is one of the command line's under its own name."""

    launcher: Annotated[str, typer.Option(help="local or slurm.")] = "local"
    workers: Annotated[
        int | None, typer.Option(min=1, help="Runs at a time  [default: as many as cores allow]")
    ] = None
    gpus_per_run: Annotated[
        int | None, typer.Option(min=0, help="Processes of one run, with a GPU each.")
    ] = None
    processes_per_run: Annotated[
        int | None, typer.Option(min=1, help="Processes of one run, on CPUs.")
    ] = None
    nodes: Annotated[int, typer.Option(min=1, help="Machines that share one run (slurm).")] = 1
    partition: Annotated[str | None, typer.Option(help="Of the cluster (slurm).")] = None
    time: Annotated[
        str | None,
        typer.Option(help="Limit of a job, e.g. 8:00:00; longer runs are requeued (slurm)."),
    ] = None
    constraint: Annotated[str | None, typer.Option(help="What nodes must have (slurm).")] = None
    account: Annotated[str | None, typer.Option(help="Who is charged (slurm).")] = None
    qos: Annotated[str | None, typer.Option(help="Quality of service (slurm).")] = None
    array_parallelism: Annotated[
        int, typer.Option(min=1, help="Jobs of an array at a time (slurm).")
    ] = 64
    sbatch: Annotated[
        list[str] | None,
        typer.Option(metavar="OPTION[=VALUE]", help="Any other option of sbatch (slurm)."),
    ] = None
    detach: Annotated[
        bool, typer.Option("--detach", help="Submit and return; call again to watch (slurm).")
    ] = False

    def check(self) -> None:
        """Refuse what does not go together.

        Raises:
            UserError: an unknown launcher, options of another one, counts that do not fit.
        """
        if self.launcher not in LAUNCHERS:
            raise unknown("launcher", self.launcher, LAUNCHERS)
        if self.launcher == "slurm":
            if self.workers is not None:
                raise UserError("--workers is for --launcher local; give --array-parallelism")
            return
        for option in fields(self)[4:]:
            if getattr(self, option.name) != option.default:
                name = option.name.replace("_", "-")
                raise UserError(f"--{name} goes with --launcher slurm only")
        if self.gpus_per_run and self.processes_per_run not in {None, self.gpus_per_run}:
            raise UserError("give --gpus-per-run or --processes-per-run, a process has one GPU")

    def require(self) -> None:
        """Make sure that runs can be executed here; to be called before anything is touched.

        Raises:
            UserError: no such GPUs, no SLURM, or no such partition, here.
        """
        if self.launcher == "slurm":
            self._resources().parameters()
        else:
            self._devices()

    def width(self) -> int:
        """How many runs are shown, and expected, at a time."""
        if self.launcher == "slurm":
            return min(self.array_parallelism, VISIBLE_JOBS)
        return self.workers or max(len(os.sched_getaffinity(0)) // self._processes(), 1)

    def execute(
        self,
        plan: Plan,
        site: Site,
        monitor: Monitor,
        done: Iterable[str],
        seconds: Mapping[str, float],
        memory: Mapping[str, float],
    ) -> list[str]:
        """Execute the runs of a plan that have no record; see `launchers.local`.

        Returns:
            what there is to say beside the records.

        Raises:
            UserError, KeyboardInterrupt: see `launchers.local` and `slurm_watch.launch`.
        """
        if self.launcher == "slurm":
            from mae_bench import slurm_watch

            return slurm_watch.launch(
                plan, site, self._resources(), monitor, done, detach=self.detach
            )
        from mae_bench import launchers
        from mae_bench.processes import Processes

        if self.gpus_per_run == 0:
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        work = Processes(self._processes(), launchers.execute_if_free)
        gpus = self._devices()
        launchers.local(plan, site, self.width(), monitor, done, seconds, work, memory, gpus)
        return []

    def _processes(self) -> int:
        return self.gpus_per_run or self.processes_per_run or 1

    def _devices(self) -> Devices:
        from mae_bench import devices

        found = devices.find() if self.gpus_per_run != 0 else []
        if self.gpus_per_run and not found:
            raise UserError(
                f"--gpus-per-run {self.gpus_per_run}: no GPU can be used on this machine; for "
                "several processes on CPUs give --processes-per-run"
            )
        return devices.Devices(found, self._processes())

    def _resources(self) -> Resources:
        from mae_bench.slurm import Resources

        options = dict(_sbatch_option(text) for text in self.sbatch or ())
        return Resources(
            partition=self.partition,
            time=self.time,
            nodes=self.nodes,
            gpus_per_run=self.gpus_per_run,
            processes_per_run=self.processes_per_run,
            constraint=self.constraint,
            account=self.account,
            qos=self.qos,
            array_parallelism=self.array_parallelism,
            options=options,
        )


def _sbatch_option(text: str) -> tuple[str, str | bool]:
    """Return "mem=32G" as name and value, a name alone as a flag."""
    name, equals, value = text.removeprefix("--").partition("=")
    if not name or (equals and not value):
        raise UserError(f"--sbatch {text!r} is not of the form OPTION=VALUE or OPTION")
    return name, value if equals else True


def _instead_of_torchrun(launch: Launch) -> Launch:
    """Give every run as many processes as torchrun has started of this command.

    A command has many runs and starts their processes itself: the first of torchrun's does, the
    others have nothing to do.

    Raises:
        typer.Exit: for the others.
        UserError: processes on several machines.
    """
    if ranks.rank() > 0:
        raise typer.Exit
    number = int(os.environ["LOCAL_WORLD_SIZE"])
    if ranks.world_size() > number:
        raise UserError(
            "torchrun over several machines: a run shares them with --launcher slurm --nodes N; "
            "on one machine give torchrun's --nproc-per-node alone"
        )
    if launch.launcher != "local" or launch.gpus_per_run or launch.processes_per_run:
        return launch
    from mae_bench import devices

    if launch.gpus_per_run is None and devices.find():
        return replace(launch, gpus_per_run=number)
    return replace(launch, processes_per_run=number)


def launching(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command of the command line all options of `Launch`, as one argument `launch`."""
    own = inspect.signature(command, eval_str=True).parameters
    hints = get_type_hints(Launch, include_extras=True)
    options = [
        inspect.Parameter(
            option.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=option.default,
            annotation=hints[option.name],
        )
        for option in fields(Launch)
    ]

    @wraps(command)
    def with_options(**given: Any) -> None:
        launch = Launch(**{option.name: given.pop(option.name) for option in options})
        if ranks.are_torchruns():
            launch = _instead_of_torchrun(launch)
        launch.check()
        command(**given, launch=launch)

    kept = [parameter for name, parameter in own.items() if name != "launch"]
    parameters = [*kept, *options]
    with_options.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    with_options.__annotations__ = {one.name: one.annotation for one in parameters}
    return with_options
