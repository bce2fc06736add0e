"""Trained weights of other libraries' networks: where they lie, and how they come there.

The libraries' own caches are used, at their own places. Asking for `cached` and `problem` downloads
nothing; only `download` does.
"""

import importlib
import re
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from .backbone import import_library
from .base import Normalisation

WAIT = 10.0  # seconds for a server's answer


class Weights(Protocol):
    """Of one network, as its library publishes them."""

    @property
    def origin(self) -> str:
        """For people."""

    @property
    def normalisation(self) -> Normalisation | None:
        """Of the images that they learned from, where the library says."""

    def cached(self) -> Path | None:
        """The file, where it's here already."""

    def problem(self) -> str:
        """Why they can't be downloaded; "" where nothing speaks against it."""

    def download(self) -> Path:
        """The file, after bringing it into the library's cache. Raises OSError or ValueError."""


@dataclass(frozen=True)
class HubWeights:
    """On the Hugging Face hub, as timm's are."""

    repository: str
    revision: str | None
    files: tuple[str, ...]  # the first that is there
    normalisation: Normalisation | None

    @property
    def origin(self) -> str:
        return f"{self.repository} of huggingface.co"

    def cached(self) -> Path | None:
        for file in self.files:
            found = _hub().try_to_load_from_cache(self.repository, file, revision=self.revision)
            if isinstance(found, str):
                return Path(found)
        return None

    def problem(self) -> str:
        hub, reason = _hub(), ""
        for file in self.files:
            url = hub.hf_hub_url(self.repository, file, revision=self.revision)
            try:
                hub.get_hf_file_metadata(url, timeout=WAIT)
                return ""
            except Exception as error:  # of several HTTP libraries, by its version
                reason = reason or _reason(error)
        return reason

    def download(self) -> Path:
        reason = ""
        for file in self.files:
            try:
                return Path(_hub().hf_hub_download(self.repository, file, revision=self.revision))
            except Exception as error:
                reason = reason or _reason(error)
        raise ValueError(reason)


@dataclass(frozen=True)
class UrlWeights:
    """At an address, kept in torch.hub's cache, as torchvision's are."""

    url: str
    normalisation: Normalisation | None

    @property
    def origin(self) -> str:
        return self.url

    @property
    def _file(self) -> Path:
        hub = importlib.import_module("torch.hub")
        return Path(hub.get_dir()) / "checkpoints" / self.url.rpartition("/")[2]

    def cached(self) -> Path | None:
        return self._file if self._file.is_file() else None

    def problem(self) -> str:
        try:
            request = urllib.request.Request(self.url, method="HEAD")
            with urllib.request.urlopen(request, timeout=WAIT):
                return ""
        except (OSError, ValueError) as error:
            return _reason(error)

    def download(self) -> Path:
        hub = importlib.import_module("torch.hub")
        self._file.parent.mkdir(parents=True, exist_ok=True)
        # their names end in the first digits of the files' hashes
        digits = self._file.stem.rpartition("-")[2]
        try:
            hub.download_url_to_file(self.url, str(self._file), hash_prefix=digits or None)
        except RuntimeError as error:
            raise ValueError(_reason(error)) from None
        return self._file


def library_weights(name: str) -> Weights:
    """Those that timm:NAME or torchvision:NAME stands for.

    Raises ValueError where the library has none.
    """
    library, _, network = name.partition(":")
    found = _of_timm(network) if library == "timm" else _of_torchvision(network)
    if found is None:
        raise ValueError(f"{library} has no trained weights of {network}")
    return found


def _of_timm(name: str) -> Weights | None:
    found = import_library("timm").models.get_pretrained_cfg(name)
    if found is None:
        return None
    normalisation = tuple(found.mean), tuple(found.std)
    if found.hf_hub_id:
        repository, _, revision = found.hf_hub_id.partition("@")
        own = found.hf_hub_filename or "pytorch_model.bin"
        files = (own.replace("pytorch_model.bin", "model.safetensors"), own)
        if repository.endswith("/"):
            repository += f"{found.architecture}.{found.tag}" if found.tag else found.architecture
        return HubWeights(repository, revision or None, files, normalisation)
    return UrlWeights(found.url, normalisation) if found.url else None


def _of_torchvision(name: str) -> Weights | None:
    best: Any = import_library("torchvision").models.get_model_weights(name).DEFAULT
    transform = best.transforms()
    return UrlWeights(best.url, (tuple(transform.mean), tuple(transform.std)))


def _hub() -> Any:
    return import_library("huggingface_hub")


def _reason(error: BaseException) -> str:
    lines = re.sub(r"<urlopen error |\[Errno -?\d+\] |>$", "", str(error)).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
