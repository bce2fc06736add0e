"""Caches of other libraries, as their downloads leave them."""

from pathlib import Path

URL_OF_RESNET18 = "https://download.pytorch.org/models/resnet18-f37072fd.pth"


def hub_file(cache: Path, repository: str, name: str) -> Path:
    """Where `name` of a repository of huggingface.co lies in its `cache`, for a test to write."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs/main").write_text("0123")
    (folder / "snapshots/0123").mkdir(parents=True)
    return folder / "snapshots/0123" / name
