"""The live table's part on the experts: a line a model while they train, one for all when done."""

from collections import Counter
from collections.abc import Mapping, Sequence

from rich.text import Text

from fusionrun.monitor.cells import MARGIN, bar, flow, indented, state_cell, unbroken, wrapped
from fusionrun.monitor.snapshot import Snapshot, TaskStatus
from fusionrun.monitor.words import LOOK, accuracy, clock, failures, percent

_CELL = (7, 20)  # narrowest and widest cell of an expert, in columns
_MANY_EXPERTS = 16  # from here on models whose experts are all done share a line


def expert_lines(snapshot: Snapshot, width: int, *, folded: bool = False) -> list[Text]:
    """One line a model and seed with a cell an expert, or `folded` to one; then why any failed."""
    by_model: dict[str, list[TaskStatus]] = {}
    for task in snapshot.tasks:
        if task.kind == "expert":
            of_seed = "" if task.expert_seed is None else f" seed {task.expert_seed}"
            by_model.setdefault(f"{task.model}{of_seed}", []).append(task)
    done = {
        model: tasks
        for model, tasks in by_model.items()
        if all(task.state == "done" for task in tasks)
    }
    detailed = {}
    if not folded and len(done) < len(by_model):
        few = sum(map(len, by_model.values())) < _MANY_EXPERTS
        detailed = {m: tasks for m, tasks in by_model.items() if few or m not in done}
    lines = _model_lines(detailed, width)
    if not lines:  # not wanted or no room
        detailed = {}
        states = Counter[str](
            task.state for model in by_model if model not in done for task in by_model[model]
        )
        each = [state_cell(state).append(f" {states[state]}") for state in LOOK if states[state]]
        lines = flow([Text("experts", "dim"), *each], width, "  ") if each else []
    parts = [Text("experts done, mean %:", "dim")]
    for model, tasks in done.items():
        if model not in detailed:
            values = [task.val_accuracy for task in tasks if task.val_accuracy is not None]
            mean = f" {sum(values) / len(values):.1f}" if values else ""
            parts.append(Text.assemble(("✓ ", "green")).append(f"{len(tasks)} {model}{mean}"))
    if len(parts) > 1:
        lines += flow(parts, width, "  ")
    others: dict[str, Counter[str]] = {}  # of another recipe, or of somebody else: by what they are
    for task in (task for each in by_model.values() for task in each):
        if task.state == "done" and task.note:
            others.setdefault(task.note, Counter())[task.model] += 1
    for note, models in others.items():
        which = ", ".join(f"{count} {model}" for model, count in models.items())
        lines += wrapped(f"! experts: {which}: {note}", width, "yellow")
    told = failures([task for task in snapshot.tasks if task.kind != "expert"])
    for reason, failed in failures([t for each in by_model.values() for t in each]).items():
        more = f" and {len(failed) - 1} more" if len(failed) > 1 else ""
        reason = "for the same reason" if reason in told else reason
        lines += wrapped(f"✗ {failed[0].name}{more}: {reason}", width, "red")
    return lines


def _model_lines(by_model: Mapping[str, Sequence[TaskStatus]], width: int) -> list[Text]:
    """A title and a line a model; none where there are none, or no room for their cells."""
    count = max(map(len, by_model.values()), default=1)
    name_width = max(map(len, [*by_model, "experts"]))
    size = min((width - 2 * MARGIN - name_width - 16) // count - 2, _CELL[1])
    if not by_model or size < _CELL[0]:
        return []
    titles = "".join(f"  {k:<{size}}" for k in range(count)).rstrip()
    lines = [indented(Text(f"{'experts':{name_width}}   done     ETA{titles}", "dim"))]
    for model, tasks in by_model.items():
        done = f"{sum(task.state == 'done' for task in tasks)}/{len(tasks)}"
        etas = [task.eta_seconds for task in tasks if task.eta_seconds is not None]
        line = Text(f"{model:{name_width}}  {done:>5}  {clock(max(etas, default=None)):>6}")
        for task in tasks:  # symbol, bar while there's room and something to show, accuracy
            symbol, style = LOOK[task.state]
            shown = Text.assemble((f"{symbol} ", style))
            bar_size = size - len("● ") - len(" 61.5")
            if task.state in ("queued", "waiting", "failed", "saving"):
                shown.append(task.state, style)
            elif task.state == "done":
                shown.append(accuracy(task.val_accuracy, task, at_most=1))
            elif bar_size < 3:
                shown.append(percent(task.progress).replace(" ", ""))
            else:
                shown.append_text(bar(task.progress, bar_size, style))
                shown.append(f" {accuracy(task.val_accuracy, task, at_most=1):>4}")
            line.append("  ").append_text(shown).append(" " * (size - shown.cell_len))
        line.rstrip()
        lines.append(unbroken(indented(line)))
    return lines
