"""`report OUTPUT_DIR...`: one page and its tables from what `evaluate` left."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from fusionrun.common.atomic_files import write_text
from fusionrun.evaluation.row_names import members_of
from fusionrun.report.blocks import Block, Chapter, Document, Section, Text, named_in
from fusionrun.report.html import as_html
from fusionrun.report.load import ReportError, StudyResults, read_study
from fusionrun.report.render import as_csv, as_latex, as_markdown
from fusionrun.report.sections import SECTIONS, comparison
from fusionrun.study.paths import Layout

QUESTION = "Does learned fusion beat the cheap alternatives?"
COMPARISON = "comparison.html"  # of several studies, in the current folder
T = TypeVar("T")

WRITERS = {"html": as_html, "md": as_markdown, "csv": as_csv, "tex": as_latex}


def write_report(
    folders: Sequence[Path], output: Path | None = None, overrides: Sequence[str] = ()
) -> list[Path]:
    """The page and beside it .md, .csv and .tex; returns where they are.

    The page is report.html in the study's folder, of several studies comparison.html in the
    current one. `output` is another name of it, or another folder, where measurements of these
    studies may lie too. `overrides` say where things lie by now. Raises ReportError.
    """
    page = choose_page(folders, output)
    studies = [
        read_study(folder, label, page.parent, overrides)
        for folder, label in zip(folders, _labels(folders), strict=True)
    ]
    document = compose(studies)
    written = []
    for suffix, write in WRITERS.items():
        path = page.with_suffix(f".{suffix}")
        try:
            write_text(path, write(document))
        except OSError as error:
            raise ReportError(f"{path}: can't be written: {error.strerror}") from None
        written.append(path)
    return written


def choose_page(folders: Sequence[Path], output: Path | None) -> Path:
    """Never a study's own report where several are compared. Raises ReportError."""
    own = [Layout(folder).report("html") for folder in folders]
    default = own[0] if len(folders) == 1 else Path(COMPARISON)
    if output is None:
        return default
    page = output / default.name if output.is_dir() or not output.suffix else output
    if page.suffix != ".html":
        found = f"found {str(output)!r}, expected a folder or a name that ends in .html"
        raise ReportError(f"--output: {found}")
    if len(folders) > 1 and page.resolve() in [path.resolve() for path in own]:
        raise ReportError(
            f"--output: {page} is the report of one of these studies; give their comparison "
            "another name"
        )
    return page


def compose(studies: Sequence[StudyResults]) -> Document:
    """A chapter a study, before them one that compares several; empty sections are left out."""
    chapters = []
    if len(studies) > 1:
        subtitle = f"{len(studies)} studies"
        chapters.append(chapter("Side by side", subtitle, comparison.SECTIONS, studies, {}))
    for study in studies:
        of = study.evaluation
        members = members_of(of.entries)
        chapters.append(chapter(study.label, of.subtitle, SECTIONS, study, members))
    return Document(QUESTION, chapters)


def chapter(
    title: str,
    subtitle: str,
    sections: Sequence[tuple[str, Callable[[T], Sequence[Block]]]],
    of: T,
    members: Mapping[str, str],
) -> Chapter:
    """What `sections` say of it; where one first names a mixed row, its members stand below."""
    found = []
    for name, say in sections:
        blocks: list[Block] = []
        said: set[str] = set()
        for block in say(of):
            notes = [note for note in named_in(block, members) if note not in said]
            blocks += [block, *([Text(" ".join(notes), note=True)] if notes else [])]
            said.update(notes)
        if blocks:
            found.append(Section(name, blocks))
    return Chapter(title, subtitle, found, members)


def _labels(folders: Sequence[Path]) -> list[str]:
    """The folders' names where those tell them apart, else the paths as they were given."""
    places = [folder.resolve() for folder in folders]
    for folder, place in zip(folders, places, strict=True):
        if places.count(place) > 1:
            raise ReportError(f"{folder}: found it twice, expected each directory once")
    names = [place.name for place in places]
    return names if len(set(names)) == len(names) else [str(folder) for folder in folders]
