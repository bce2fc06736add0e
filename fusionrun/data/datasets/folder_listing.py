"""Which image files lie in folders of classes, and what else lies there: nothing is decoded."""

import errno
import hashlib
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fusionrun.common.text import plural, printable_path, utf8_name
from fusionrun.data.datasets.folder_layout import LAYOUT, where_else
from fusionrun.data.errors import DataError

# what systems put into everybody's folders; those that begin with a dot are known by it
SYSTEM_FOLDERS = frozenset(
    {"__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found"}
)
NAMED = 5  # files that a note or a message names


@dataclass(frozen=True)
class Part:
    """The files of one side, train or test: class by class, in the order of their names."""

    folder: Path
    paths: list[str]  # below `folder`
    labels: npt.NDArray[np.int64]  # (N,)


@dataclass(frozen=True)
class Listing:
    classes: tuple[str, ...]  # as text that any file can hold
    train: Part
    test: Part
    key: str  # sha256 of the files' names, sizes and times, 64 hex digits
    notes: tuple[str, ...]  # what was left out


class _LeftOut:
    """What lies in the folders and isn't read: how many of each kind, and one of them."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, str] = {}

    def add(self, kind: str, path: str) -> None:
        self.counts[kind] += 1
        self.examples.setdefault(kind, path)

    def notes(self) -> list[str]:
        return [
            f"left out: {plural(count, kind)}, such as {printable_path(self.examples[kind])}"
            for kind, count in sorted(self.counts.items())
        ]


def list_folders(root: Path, train: str, test: str, size: int) -> Listing:
    """The images in `<root>/<train>/<class>/` and `<root>/<test>/<class>/`, and folders below.

    Links are followed, but not in circles. Names that begin with a dot, broken links, what isn't a
    file and system folders are left out and counted in the notes. The key depends on the image
    size that the files are wanted in, too.

    Raises DataError for folders that are missing or can't be listed, for differing classes and
    for those without a file.
    """
    left_out = _LeftOut()
    names = _class_folders(root, train, test, left_out)
    key = hashlib.sha256(f"{size}".encode())
    parts, nested = [], 0
    for folder in (root / train, root / test):
        paths: list[str] = []
        counts = []
        for name in names:
            before = len(paths)
            for file, status in _walk(folder, name, left_out):
                row = f"{folder.name}/{file}\0{status.st_size}\0{status.st_mtime_ns}\n"
                key.update(row.encode("utf-8", "surrogateescape"))
                nested += file.count("/") > 1
                paths.append(file)
            counts.append(len(paths) - before)
        empty = [printable_path(names[k]) for k in np.flatnonzero(np.array(counts) == 0)]
        if empty:
            raise DataError(
                f"{printable_path(folder / empty[0])}: holds no usable image, nor any other file "
                f"({len(empty)} of {len(names)} classes of {folder.name} are empty). Expected "
                f"{LAYOUT}. Add images or remove the class from {train} and {test}."
            )
        labels = np.repeat(np.arange(len(names), dtype=np.int64), counts)
        parts.append(Part(folder, paths, labels))
    notes = left_out.notes()
    if nested:
        notes.append(f"{plural(nested, 'file')} in folders below those of their classes: read, too")
    odd = [name for name in names if utf8_name(name) != name]
    if odd:
        shown = ", ".join(printable_path(name) for name in odd[:NAMED])
        notes.append(
            f"{plural(len(odd), 'class folder')} with a name that isn't UTF-8, shown as {shown}"
        )
    classes = tuple(utf8_name(name) for name in names)
    return Listing(classes, parts[0], parts[1], key.hexdigest(), tuple(notes))


def _class_folders(root: Path, train: str, test: str, left_out: _LeftOut) -> list[str]:
    found: dict[str, set[str]] = {}
    for part in (train, test):
        folders, others = set(), []
        try:
            for entry in _entries(root / part):
                if entry.is_dir() and not entry.name.startswith("."):
                    folders.add(entry.name)
                else:
                    others.append(entry.name)
        except OSError as error:
            raise DataError(
                f"{printable_path(root / part)}: cannot be listed ({error.strerror}). "
                f"Expected {LAYOUT}. {where_else(root, train, test)}"
            ) from error
        system = folders & SYSTEM_FOLDERS
        found[part] = folders - system
        for kind, names in (("system folder", sorted(system)), ("stray file", others)):
            for name in names:
                is_hidden = kind != "system folder" and name.startswith(".")
                left_out.add("hidden file" if is_hidden else kind, f"{part}/{name}")
    if found[train] != found[test]:
        only = {part: found[part] - (found[train] & found[test]) for part in found}
        shown = {
            part: [printable_path(name) for name in sorted(names)[:NAMED]]
            for part, names in only.items()
        }
        raise DataError(
            f"{printable_path(root)}: {train} and {test} hold different class folders (only in "
            f"{train}: {shown[train]}; only in {test}: {shown[test]}). Expected {LAYOUT} with the "
            f"same classes; add or remove the folders named.{_lists(root / test)}"
        )
    if len(found[train]) < 2:
        raise DataError(
            f"{printable_path(root / train)}: found {len(found[train])} class folder(s), expected "
            f"at least 2. Sort the images as {LAYOUT}. {where_else(root, train, test)}"
        )
    return sorted(found[train])


def _lists(folder: Path) -> str:
    """A word on files that may say which image is of which class, as Tiny ImageNet's do."""
    found = [e.name for e in _entries(folder) if e.name.endswith((".txt", ".csv")) and e.is_file()]
    if not found:
        return ""
    return f" {printable_path(folder / found[0])} may say of which class each image is."


def _entries(folder: str | Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: entry.name)


def _walk(part: Path, name: str, left_out: _LeftOut) -> Iterator[tuple[str, os.stat_result]]:
    """(path below `part`, status) of the files of a class, those of a folder before its folders.

    The order is torchvision's. Each file is asked for its status once: that is what takes long on
    the disks of a network.
    """
    resolved = part.resolve()
    above = frozenset(_identity(place.stat()) for place in (resolved, *resolved.parents))
    todo = [(name, above)]
    while todo:
        place, above = todo.pop()
        try:
            own = _identity((part / place).stat())
            entries = _entries(part / place)
        except OSError as error:
            raise _unreadable(part / place, "listed", error) from error
        within = above | {own}
        folders = []
        for entry in entries:
            path = f"{place}/{entry.name}"
            kind, status = _kind_of(entry, part / path)
            if kind == "file" and status is not None:
                yield path, status
            elif kind == "folder" and status is not None:
                if _identity(status) in within:
                    left_out.add("circular link", f"{part.name}/{path}")
                else:
                    folders.append((path, within))
            else:
                left_out.add(kind, f"{part.name}/{path}")
        todo += reversed(folders)


def _kind_of(entry: os.DirEntry[str], path: Path) -> tuple[str, os.stat_result | None]:
    """("file" or "folder", its status), links followed; else (why it's left out, None)."""
    if entry.name.startswith("."):
        return "hidden file", None
    if entry.name in SYSTEM_FOLDERS:
        return "system folder", None
    try:
        is_folder, is_file = entry.is_dir(), entry.is_file()
        if is_folder or is_file:
            return ("folder" if is_folder else "file"), entry.stat()
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ELOOP):
            raise _unreadable(path, "looked at", error) from error
    return ("broken link" if entry.is_symlink() else "special file"), None


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _unreadable(path: Path, done: str, error: OSError) -> DataError:
    reason = f"cannot be {done} ({error.strerror}). Check its permissions."
    return DataError(f"{printable_path(path)}: {reason}")
