"""What a file that was handed in as a checkpoint is, by what stands in it, not by its name."""

import zipfile
from pathlib import Path
from typing import Literal

FileKind = Literal[
    "archive", "torchscript", "legacy", "safetensors"
]  # that hold tensors and can be read

LEGACY = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # torch.save before 1.6 begins with it, as a pickle
ZIP = b"PK\x03\x04"
HEAD = 4096  # bytes that are looked at
OTHER_DOWNLOAD = "the download went wrong: fetch the file itself"
ONLY_TORCH = "expected PyTorch weights: convert it with the tool that made it"
UNPACK = "unpack it and hand in the checkpoint inside"

# how other files begin, what they are and what to do with them
BEGINNINGS: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs", "is a Git LFS pointer, not the file: run `git lfs pull` there"),
    (b"\x89HDF\r\n\x1a\n", f"is an HDF5 file, as Keras writes them; {ONLY_TORCH}"),
    (
        b"\x93NUMPY",
        "is a NumPy array; expected a state dict: torch.save({name: tensor, ...}, FILE)",
    ),
    (b"\x1f\x8b", f"is gzip-compressed; {UNPACK}"),
    (b"BZh", f"is bzip2-compressed; {UNPACK}"),
    (b"\xfd7zXZ\x00", f"is xz-compressed; {UNPACK}"),
    (b"\x28\xb5\x2f\xfd", f"is zstd-compressed; {UNPACK}"),
    (b"7z\xbc\xaf\x27\x1c", f"is a 7z archive; {UNPACK}"),
    (b"Rar!", f"is a RAR archive; {UNPACK}"),
    (b"\x89PNG", "is an image; expected a checkpoint"),
    (b"\xff\xd8\xff", "is an image; expected a checkpoint"),
)
# what only archives of a kind have among their records
RECORDS: tuple[tuple[str, str], ...] = (
    (
        "models/model.json",
        "is a program of torch.export; expected its weights: "
        "torch.save(torch.export.load(FILE).state_dict, NEW)",
    ),
    ("model.weights.h5", f"is a Keras model; {ONLY_TORCH}"),
    (
        ".npy",
        "is a NumPy archive; expected a state dict: "
        "torch.save({k: torch.from_numpy(v) for k, v in np.load(FILE).items()}, NEW)",
    ),
)


def file_kind(path: Path) -> FileKind:
    """How the tensors in the file are stored.

    Raises ValueError, saying what it is and what to do, for a file that holds none or is cut
    short; OSError when it can't be read.
    """
    with path.open("rb") as file:
        head = file.read(HEAD)
    if head.startswith(b"\x80") and LEGACY in head[:32]:
        return "legacy"
    if head.startswith(ZIP):
        return _archive_kind(path)
    if _begins_safetensors(head, path.stat().st_size):
        return "safetensors"
    raise ValueError(_other(head))


def _archive_kind(path: Path) -> FileKind:
    """Raises ValueError for a zip archive that torch didn't write."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile:
        raise ValueError(
            f"is damaged: its end is missing, only {path.stat().st_size:,} bytes are there. Copy "
            f"or download it again"
        ) from None
    for ending, words in RECORDS:
        if any(name.endswith(ending) for name in names):
            raise ValueError(words)
    if not any(name.endswith("data.pkl") for name in names):
        raise ValueError(f"is a zip archive of {', '.join(names[:3]) or 'nothing'}; {UNPACK}")
    return "torchscript" if any(name.endswith("/constants.pkl") for name in names) else "archive"


def _begins_safetensors(head: bytes, size: int) -> bool:
    """Eight bytes with the length of a JSON header, then the header."""
    length = int.from_bytes(head[:8], "little")
    return head[8:9] == b"{" and 2 <= length < size and head[8:].lstrip(b"{ \n").startswith(b'"')


def _other(head: bytes) -> str:
    if not head.strip(b"\0"):
        found = "is empty" if not head else "holds nothing but zeros"
        return f"{found}: writing or copying it never finished. Copy or save it again"
    for beginning, words in BEGINNINGS:
        if head.startswith(beginning):
            return words
    if head[257:262] == b"ustar":
        return f"is a tar archive; {UNPACK}"
    if head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05":
        return (
            "is a pickle that torch.save didn't write. Where you trust it, save the weights alone: "
            "torch.save({k: torch.as_tensor(v) for k, v in pickle.load(open(FILE, 'rb')).items()}, "
            "NEW)"
        )
    if head[:1] == b"\x08" and (b"pytorch" in head[:64] or b"onnx" in head[:64]):
        return f"is an ONNX program; {ONLY_TORCH}"
    if head.lstrip()[:64].lower().startswith((b"<!doctype html", b"<html", b"<head")):
        return f"is a web page; {OTHER_DOWNLOAD}"
    length = int.from_bytes(head[:8], "little")
    if 8 <= len(head) < 8 + length < 2**32 and head[8:9] in (b"", b"{"):
        size = f"{len(head):,} bytes are there"
        return f"is a safetensors file, of which only {size}. Copy or download it again"
    text = _text(head)
    if text:
        return f"is a text file that begins {text!r}; expected a checkpoint"
    return "is no checkpoint of PyTorch, or its beginning is damaged"


def _text(head: bytes) -> str:
    """The beginning of a text's first line; nothing where it isn't text."""
    line = head.strip().partition(b"\n")[0].decode("utf-8", errors="replace").strip()
    return line[:60] if line.isprintable() and "\ufffd" not in line else ""
