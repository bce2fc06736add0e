"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009), read, checked and fetched by torchvision."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fusionrun.common.locks import locked
from fusionrun.common.text import one_line, size
from fusionrun.common.wheels import installed_wheel, pip_line
from fusionrun.data.datasets.cache import (
    Arrays,
    Triple,
    content_fingerprint,
    load_or_build,
    ready_arrays,
)
from fusionrun.data.datasets.request import Request
from fusionrun.data.datasets.survey import Survey, image_bytes, require_disk, require_memory
from fusionrun.data.errors import DataError

# mean and standard deviation of the training pixels in 0..1, as published everywhere
NORMALISATION: dict[str, tuple[Triple, Triple]] = {
    "cifar100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
}
FOLDERS = {"cifar100": "cifar-100-python", "cifar10": "cifar-10-batches-py"}  # of the archives
SOURCE_KEY = "official archive"  # of the cache


def load_cifar100(request: Request) -> Arrays:
    """50,000 + 10,000 images of 100 classes. Raises DataError; see `Request`."""
    return _load("cifar100", request)


def load_cifar10(request: Request) -> Arrays:
    """50,000 + 10,000 images of 10 classes. Raises DataError; see `Request`."""
    return _load("cifar10", request)


def survey_cifar100(request: Request) -> Survey:
    """Of the prepared images, or of the archive. Raises DataError as loading it does."""
    return _survey("cifar100", request)


def survey_cifar10(request: Request) -> Survey:
    """Of the prepared images, or of the archive. Raises DataError as loading it does."""
    return _survey("cifar10", request)


def _survey(name: str, request: Request) -> Survey:
    _check_size(name, request)
    ready = ready_arrays(request.cache_dir / name, SOURCE_KEY)
    notes: tuple[str, ...] = ()
    need = image_bytes(60_000, 32)
    if ready is None:
        source = _source(name)
        problem = _missing(name, source, request.root)
        if problem and not request.download:
            raise DataError(problem)
        if problem:
            notes = (f"{source.filename} will be fetched from {source.url}",)
        require_disk(name, need, request.cache_dir)
    require_memory(name, 60_000, 32)
    return Survey(
        name,
        50_000,
        10_000,
        image_size=32,
        ready=ready is not None,
        class_count=100 if name == "cifar100" else 10,
        fingerprint=None if ready is None else ready.fingerprint,
        cache_bytes=0 if ready else need,
        notes=notes,
    )


def _source(name: str) -> Any:
    """torchvision's reader: 2.7 s to import, and only needed while there is no cache."""
    try:
        from torchvision import datasets
    except Exception as error:  # one of another build than torch breaks in its own ways
        raise DataError(
            f"torchvision can't be imported ({one_line(error)}). It must be of the same build as "
            f"torch: {pip_line(installed_wheel())}"
        ) from error
    return datasets.CIFAR100 if name == "cifar100" else datasets.CIFAR10


def _check_size(name: str, request: Request) -> None:
    if request.image_size != 32:
        raise DataError(
            f"{name}: image_size is {request.image_size}, but its images are 32x32. "
            "Set data.image_size to 32, or use data set image_folder for other sizes."
        )


def _load(name: str, request: Request) -> Arrays:
    _check_size(name, request)

    def build(_: Path) -> Arrays:
        source = _source(name)
        _ensure_files(name, source, request.root, request.download, request.progress)
        try:
            train, test = (source(request.root, train=part) for part in (True, False))
            train_images, train_labels = _arrays(train)
            test_images, test_labels = _arrays(test)
            classes = tuple(train.classes)
            if max(train_labels.max(), test_labels.max()) >= len(classes):
                raise ValueError(f"a label is above the {len(classes)} class names")
        except Exception as error:  # unpickling a file of another tool can raise anything
            raise DataError(
                f"{request.root / source.base_folder}: cannot be read as {name} ({error}). Move "
                f"this folder away and put {source.filename} into {request.root}, or set "
                "data.download=true."
            ) from error
        arrays = (train_images, train_labels, test_images, test_labels)
        fingerprint = content_fingerprint(train_labels, train_images, test_labels, test_images)
        return Arrays(*arrays, classes, *NORMALISATION[name], fingerprint)

    folder = request.cache_dir / name
    return load_or_build(folder, SOURCE_KEY, build, name=name, progress=request.progress)


def _arrays(part: Any) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    images = np.ascontiguousarray(part.data.transpose(0, 3, 1, 2))  # torchvision holds NHWC
    return images, np.asarray(part.targets, dtype=np.int64)


def _missing(name: str, source: Any, root: Path) -> str:
    """What is wrong with the files of `root`, and what to do; "" where they can be read."""
    from torchvision.datasets.utils import check_integrity

    problem = _problem(source, root)
    archive = root / source.filename
    if not problem or check_integrity(str(archive), source.tgz_md5):
        return ""
    if archive.is_file():
        found = f"found with {size(archive.stat().st_size)}"
        problem = f"{archive}: {found}, but its checksum is wrong (a partial download?)"
    return (
        f"{problem}. Expected the sub-folder {source.base_folder} of {name}, or its archive "
        f"{source.filename}, in {root}. {_instead(source, root)}Set data.download=true to fetch "
        f"it, or put the archive from {source.url} into {root}, or set data.root to the folder "
        "that holds it."
    )


def _instead(source: Any, root: Path) -> str:
    """What lies in and around `root` instead, and what would read it; "" where nothing does."""
    places = [root, *list(root.absolute().parents)[:2]]
    with contextlib.suppress(OSError):
        places += sorted(path for path in root.iterdir() if path.is_dir())[:100]
    for place in places[1:]:
        if (place / source.base_folder).is_dir() or (place / source.filename).is_file():
            return f"{place} holds it: did you mean `data.root={place}`? "
    for other, folder in FOLDERS.items():
        if folder != source.base_folder and (root / folder).is_dir():
            return f"Found {folder}, which is {other}: did you mean `data.name={other}`? "
    if (root / "train").is_dir():
        return "Found a folder train: for images in folders set `data.name=image_folder`. "
    for kind in ("binary", "matlab"):
        for path in sorted(root.glob(f"cifar*{kind}*")):
            return f"Found {path.name}, but the version for Python is needed. "
    return ""


def _ensure_files(
    name: str, source: Any, root: Path, download: bool, progress: Callable[[str], None]
) -> None:
    """Make `root` hold the extracted, checksum-verified files, or raise DataError."""
    from torchvision.datasets.utils import check_integrity

    if not _problem(source, root):
        return
    archive = root / source.filename
    problem = _missing(name, source, root)
    if problem and not download:
        raise DataError(problem)
    try:
        root.mkdir(parents=True, exist_ok=True)
        # a lock of its own: machines with separate caches may share this folder
        with locked(
            root / f".{source.filename}.lock",
            waiting=lambda: progress(f"{name}: waiting for another process to fetch the data"),
        ):
            if not _problem(source, root):
                return
            present = check_integrity(str(archive), source.tgz_md5)
            progress(f"{name}: {'extracting' if present else 'downloading'} {archive}")
            source(root, download=True)  # without network where the archive is present
    except Exception as error:  # urllib, tarfile, checksum and disk errors have no common base
        raise DataError(
            f"{root}: fetching {name} from {source.url} failed ({error}). Check the network and "
            f"the free space and start again, or put {source.filename} there by hand."
        ) from error


def _problem(source: Any, root: Path) -> str:
    """What is wrong with the extracted files; empty if nothing is."""
    from torchvision.datasets.utils import check_integrity

    folder = root / source.base_folder
    if not folder.is_dir():
        return f"{folder}: not found"
    expected = [*source.train_list, *source.test_list]
    expected.append([source.meta["filename"], source.meta["md5"]])
    for file, md5 in expected:
        if not check_integrity(str(folder / file), md5):
            state = "wrong checksum" if (folder / file).is_file() else "missing"
            return f"{folder / file}: {state}"
    return ""
