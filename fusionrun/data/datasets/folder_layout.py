"""Where a person's images lie, when it's not where they were looked for: what to write instead."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from fusionrun.common.text import printable_path

LAYOUT = "<root>/train/<class>/<image files> and <root>/test/<class>/<image files>"
# what people call the sides, in the order of preference
TRAIN_NAMES = ("train", "training", "trainset", "train_set", "train_images")
TEST_NAMES = (
    *("test", "testing", "testset", "test_set", "test_images"),
    *("val", "valid", "validation", "eval", "dev", "holdout"),
)
ARCHIVES = (".zip", ".tar", ".tgz", ".tar.gz", ".7z", ".rar", ".tar.bz2", ".tar.xz")
LOOKED_AT = 100  # folders, when looking for the right one


def where_else(root: Path, train: str, test: str) -> str:
    """What lies in and around `root` instead of `train` and `test`, and what would read it."""
    advice = f"Set data.root to the folder that holds {train} and {test}."
    if not root.is_dir():
        return f"There is no folder {printable_path(root)}. {advice}"
    for place in _candidates(root):
        folders = _folders(place)
        sides = {
            "train": _side(folders, (train, *TRAIN_NAMES)),
            "test": _side(folders, (test, *TEST_NAMES)),
        }
        if not (sides["train"] and sides["test"]):
            continue
        wanted = {"train": train, "test": test}
        overrides = [f"data.root={printable_path(place)}"] if place != root else []
        overrides += [f"data.{k}_folder={v}" for k, v in sides.items() if v != wanted[k]]
        if not overrides:
            break
        found = f"{printable_path(place)} holds {sides['train']} and {sides['test']}"
        if place == root:
            found = f"Found {sides['train']} and {sides['test']}"
        return f"{found}: did you mean `{' '.join(overrides)}`?"
    here = _folders(root)
    archives = sorted(e.name for e in _entries(root) if e.name.lower().endswith(ARCHIVES))
    if archives:
        return f"Found {_some(archives)}: unpack it here."
    if _side(here, (train, *TRAIN_NAMES)):
        missing = f"Found {_some(here)}: put images that were not trained on into {test}"
        return f"{missing}, or name their folder with data.test_folder."
    if here:
        return (
            f"Found the folders {_some(here)}: sort their images into {train} and {test}, or set "
            "data.root to the folder that holds both."
        )
    return advice


def _candidates(root: Path) -> Iterator[Path]:
    """The folder itself, those above it, those up to two levels below."""
    yield root
    absolute = root.absolute()
    yield from list(absolute.parents)[:2]
    below = [root / name for name in _folders(root)[:LOOKED_AT]]
    yield from below
    for folder in below:
        yield from (folder / name for name in _folders(folder)[:LOOKED_AT])


def _side(folders: list[str], names: tuple[str, ...]) -> str:
    """The folder that has one of the names, whatever its capitals; "" if none has."""
    if names[0] in folders:
        return names[0]
    by_folded_name = {folder.casefold(): folder for folder in reversed(folders)}
    return next((by_folded_name[name] for name in names if name in by_folded_name), "")


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        return list(entries)
    return []


def _folders(folder: Path) -> list[str]:
    names = []
    for entry in _entries(folder):
        with contextlib.suppress(OSError):  # a link that leads in circles
            if entry.is_dir() and not entry.name.startswith((".", "__")):
                names.append(entry.name)
    return sorted(names)


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(map(printable_path, names[:5])) + more
