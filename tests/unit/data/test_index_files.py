"""Lists of training images, as people save them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fusionrun.data.errors import SplitError
from fusionrun.data.index_files import read_indices

TOTAL = 50
CHOSEN = np.arange(3, 43, 4)
MASK = np.isin(np.arange(TOTAL), CHOSEN)


@pytest.mark.parametrize(
    "saved",
    [CHOSEN, CHOSEN[::-1], CHOSEN.astype("u2"), CHOSEN.astype(">i8"), CHOSEN.astype("i4")],
    ids=["as they are", "unsorted", "uint16", "big-endian", "int32"],
)
def test_any_integers_in_any_order(tmp_path: Path, saved: np.ndarray) -> None:
    np.save(tmp_path / "x.npy", saved)
    assert np.array_equal(np.sort(read_indices(tmp_path / "x.npy", TOTAL)), CHOSEN)


RAGGED = np.empty(2, object)
RAGGED[:] = [CHOSEN[:3], CHOSEN[3:]]
# what was saved: what has to stand in the message
ARRAYS: dict[str, tuple[Any, str]] = {
    "mask": (MASK, "np.flatnonzero(mask)"),
    "mask in a column": (MASK[:, None], "np.flatnonzero(mask.ravel())"),
    "floats": (CHOSEN.astype(float), "indices.astype(np.int64)"),
    "text": (CHOSEN.astype(str), "indices.astype(np.int64)"),
    "column": (CHOSEN[:, None], "indices.ravel()"),
    "lists per expert": (CHOSEN.reshape(2, -1), "indices.ravel()"),
    "one number": (np.array(5), "indices.ravel()"),
    "objects": (CHOSEN.astype(object), "never unpickled"),
    "ragged": (RAGGED, "never unpickled"),
    "dict": (np.array({"holdout": CHOSEN}, dtype=object), "never unpickled"),
    "from 1 on": (np.array([*CHOSEN, TOTAL]), "indices - 1"),
    "out of range": (CHOSEN + 20, "0..49"),
    "negative": (CHOSEN - 5, "0..49"),
    "repeated": (np.array([*CHOSEN, CHOSEN[0]]), "repeated indices is 1"),
    "empty": (CHOSEN[:0], "at least 1"),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_other_arrays_are_refused_with_what_makes_indices_of_them(
    tmp_path: Path, name: str
) -> None:
    array, message = ARRAYS[name]
    path = tmp_path / "x.npy"
    np.save(path, array)
    require_refusal(path, message)


def require_refusal(path: Path, message: str) -> None:
    before = path.read_bytes()
    with pytest.raises(SplitError) as error:
        read_indices(path, TOTAL)
    assert str(path) in str(error.value) and message in str(error.value)
    assert "elete" not in str(error.value) and "pickle_module" not in str(error.value)
    assert path.read_bytes() == before


def test_other_files_are_refused_with_what_makes_indices_of_them(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    with path.open("wb") as file:
        np.savez(file, holdout=CHOSEN)
    require_refusal(path, "np.load(...)['holdout']")
    torch.save(torch.from_numpy(CHOSEN), path)
    require_refusal(path, "torch.load(...).numpy()")
    path.write_text("\n".join(map(str, CHOSEN)))
    require_refusal(path, "np.loadtxt")
    path.write_text(json.dumps(CHOSEN.tolist()))
    require_refusal(path, "json.load")
    path.write_text("")
    require_refusal(path, "an .npy file of indices")
    path.write_bytes(b"\x93NUMPY\x01")
    require_refusal(path, "an .npy file of indices")
    path.unlink()
    with pytest.raises(SplitError, match="No such file"):
        read_indices(path, TOTAL)
