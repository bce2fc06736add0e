"""What decoding a folder's images left out, changed or found: for whoever reads the results."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fusionrun.common.text import plural, printable_path
from fusionrun.data.datasets.bit_depth import Range
from fusionrun.data.datasets.decode import Decoded
from fusionrun.data.datasets.folder_listing import NAMED, Listing


def decoding_notes(
    listing: Listing, found: Sequence[Decoded], value_range: Range | None
) -> tuple[str, ...]:
    """One text for each kind of thing, with counts; `found` has the training files first."""
    parts = (listing.train, listing.test)
    paths = [f"{part.folder.name}/{path}" for part in parts for path in part.paths]
    notes = []
    skipped = [
        f"{printable_path(path)} ({each.skipped})"
        for path, each in zip(paths, found, strict=True)
        if each.skipped
    ]
    if skipped:
        more = f", and {len(skipped) - NAMED} more" if len(skipped) > NAMED else ""
        notes.append(f"{plural(len(skipped), 'file')} skipped: {', '.join(skipped[:NAMED])}{more}")
    changes = Counter(change for each in found for change in each.changes)
    notes += [f"{plural(count, 'image')} {change}" for change, count in changes.most_common()]
    if value_range is not None and not any("read as black" in change for change in changes):
        notes.append("data.range is set, but no image is deeper than 8 bits")
    digests = np.array([each.digest for each in found], dtype=np.uint64)
    labels = np.concatenate([part.labels for part in parts])
    usable = np.array([not each.skipped for each in found])
    return (*notes, *_twins(digests, labels, usable, paths, len(listing.train.paths)))


def _twins(
    digests: npt.NDArray[np.uint64],
    labels: npt.NDArray[np.int64],
    usable: npt.NDArray[np.bool_],
    paths: Sequence[str],
    split: int,
) -> list[str]:
    """Images whose pixels, once resized, are those of another; those from `split` on are test."""
    notes = []
    is_train = (np.arange(len(digests)) < split) & usable
    train, test = np.flatnonzero(is_train), np.flatnonzero(~is_train & usable)
    known, places = np.unique(digests[train], return_index=True)
    first = train[places]  # of each group of equal ones

    def twin(image: int) -> int:
        return int(first[np.searchsorted(known, digests[image])])

    def pair(image: int) -> str:
        return f"{printable_path(paths[image])} to {printable_path(paths[twin(image)])}"

    leaked = test[np.isin(digests[test], known)]
    if len(leaked):
        count = plural(len(leaked), "test image")
        notes.append(f"{count} equal to a training image, such as {pair(leaked[0])}")
    repeated = np.setdiff1d(train, first)
    if len(repeated):
        count = plural(len(repeated), "training image")
        notes.append(f"{count} equal to another one, such as {pair(repeated[0])}")
    contrary = [image for image in repeated if labels[image] != labels[twin(image)]]
    if contrary:
        count = plural(len(contrary), "training image")
        notes.append(f"{count} equal to one of another class, such as {pair(contrary[0])}")
    return notes
