"""What a launch says when it has ended: its results, what went wrong, what comes next."""

import shlex
import sys
from collections.abc import Iterator, Sequence

from rich.console import Console

from fusionrun.common.distributed import RankInfo
from fusionrun.common.exit_status import ExitStatus
from fusionrun.common.invocation import command, same_command
from fusionrun.common.text import plural
from fusionrun.evaluation.results import Result
from fusionrun.evaluation.results_tables import results_tables
from fusionrun.monitor.heartbeat import read_heartbeat
from fusionrun.monitor.record import Record, read_outcome
from fusionrun.monitor.words import short_reason
from fusionrun.study.study import Study

SHOWN = 5  # logs of failed tasks; status.json has all


def print_last_words(
    study: Study,
    results: Sequence[Result],
    code: ExitStatus,
    record: Record,
    console: Console,
    rank_info: RankInfo,
    *,
    lost_peers: bool,
) -> None:
    """On the terminal or in the job's output."""
    layout = study.layout
    beats = {path.stem: read_heartbeat(path) for path in layout.heartbeat(0).parent.glob("*.json")}
    notes = {rank: b.note for rank, b in sorted(beats.items()) if b and b.state == "failed"}
    if code == ExitStatus.NOT_STARTED:
        why = [record.note, *notes.values(), "no rank could start"]
        print(f"fusionrun: {next(filter(None, why))}", file=sys.stderr)
        return
    if code != ExitStatus.STOPPED:
        console.print(results_tables(results, console.width))
        for rank, note in notes.items():
            print(f"fusionrun: rank {rank} gave up: {note}", file=sys.stderr)
    if code == ExitStatus.DONE:
        lines = [f"{_done(study, results)}. Results: {layout.results('md')}"]
        lines += _next(study, console.width)
    elif code == ExitStatus.STOPPED and lost_peers:
        lines = ["another rank has died; if torchrun doesn't start all again, run the same command"]
    elif code == ExitStatus.STOPPED:
        lines = ["stopped before the end; the same command resumes from here"]
    else:
        lines = list(_logs(study))
        lines.append(
            "some tasks failed; the same command runs them again, and only them. "
            f"Results: {layout.results('md')}"
        )
    again = "" if rank_info.job_id else same_command()  # a job is submitted in words of its own
    if code != ExitStatus.DONE and again and not lost_peers:
        lines.append(f"  {again}")
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _done(study: Study, results: Sequence[Result]) -> str:
    """How much of the study is done when all that this launch was asked for is."""
    missing = sum(result.fused is None for result in results)
    if not missing:
        return "all rows done"
    asked = plural(len(study.row_tasks), "row")
    return f"{asked} of this launch done, {plural(missing, 'other')} of the study not yet"


def _next(study: Study, width: int) -> Iterator[str]:
    """The commands that one runs on a finished study; what for, where there is room."""
    out = shlex.quote(str(study.layout.output_dir))
    commands = {
        f"{command()} evaluate {out}": "against the alternatives, with intervals",
        f"{command()} report {out}": "all of it on one page",
    }
    logs = study.layout.output_dir / "tensorboard"
    if logs.is_dir():
        commands[f"tensorboard --logdir {shlex.quote(str(logs))}"] = "the curves"
    longest = max(map(len, commands))
    lines = [f"  {text:{longest}}  # {purpose}" for text, purpose in commands.items()]
    yield "next:"
    yield from lines if max(map(len, lines)) < width else (f"  {text}" for text in commands)


def _logs(study: Study) -> Iterator[str]:
    """Where to read why tasks failed: a log for each reason (the table has said them)."""
    reasons: dict[str, list[str]] = {}
    for task in study.tasks:
        outcome = read_outcome(study.layout.outcome(task.name))
        if outcome is not None and outcome.state == "failed":
            reasons.setdefault(short_reason(outcome.note), []).append(task.name)
    for first, *others in list(reasons.values())[:SHOWN]:
        more = f" and {len(others)} more for the same reason" if others else ""
        yield f"failed: {first}{more}; log: {study.layout.task_log(first)}"
    if len(reasons) > SHOWN:
        yield f"{plural(len(reasons) - SHOWN, 'more reason')} in {study.layout.status}"
