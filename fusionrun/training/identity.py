"""What a result and a resume state must agree in with the task that would use them."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fusionrun.common.text import shown
from fusionrun.common.typed_fields import plain
from fusionrun.training.errors import TaskError

# facts that a result may not know, because an older version made it: compared where both know
FINGERPRINT, SPLIT, WEIGHTS = "data.fingerprint", "data.split_hash", "experts.weights"
EVIDENCE = (FINGERPRINT, SPLIT, WEIGHTS)
HASH_DIGITS = 12  # of the weights' hash, where people read it
THREADS = "runtime.threads"  # recorded: they decide the order of sums on a CPU

# what `starting experts` say of one, behind its path
_SOURCE = re.compile(
    r" \((?:epoch \d+, validation [\d.]+ %(?:, )?|(?=not saved by fusionrun))"
    r"(.*?)(?:, )?weights \w+\)$"
)


class IdentityError(TaskError):
    """A result stands there that another experiment made."""


@dataclass(frozen=True)
class Identity:
    """The fields that decide a task's numbers.

    They are stored whole and compared as differences to the defaults: a field that one side lacks
    has its default, so that a field added later orphans no result.
    """

    fields: Mapping[str, Any]
    defaults: Mapping[str, Any]
    uncompared: Collection[str] = ()  # paths and hardware knobs, which older versions stored

    def differences(self, found: Mapping[str, Any]) -> list[str]:
        """What a result with the stored fields `found` was made with otherwise, a text a field."""
        here, there = self._compared(self.fields), self._compared(upgraded(found))
        missing = object()
        names = [
            name
            for name in sorted({*here, *there})
            if here.get(name, missing) != there.get(name, missing)
            and not (name in EVIDENCE and (name not in here or name not in there))
            and not (_is_file(name) and _same_file(here.get(name), there.get(name)))
        ]
        return [
            f"{name}: {shown(there.get(name, self.defaults.get(name)))} there, "
            f"{shown(here.get(name, self.defaults.get(name)))} in this recipe"
            for name in names
        ]

    def require_same(
        self,
        source: object,
        found: Mapping[str, Any],
        advice: str = "Set them back, or choose another output_dir",
    ) -> None:
        """Raise IdentityError, naming every field, when `source` was made with others."""
        differing = self.differences(found)
        if not differing:
            return
        if any(text.split(":")[0].endswith(".epochs") for text in differing):
            advice = (
                f"The learning rates of a task are scheduled over all its epochs, so it can't be "
                f"trained for more or fewer. {advice}"
            )
        raise IdentityError(
            f"{source}: was made with other settings ({'; '.join(differing)}). {advice}"
        )

    @property
    def of_data(self) -> "Identity":
        """What it says of the data and their split alone."""
        return replace(self, fields=of_data(self.fields))

    def _compared(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        missing = object()
        return {
            name: plain(value)
            for name, value in fields.items()
            if name not in self.uncompared and plain(value) != self.defaults.get(name, missing)
        }


def of_data(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that say which data, and which of them for whom."""
    return {name: value for name, value in fields.items() if name.startswith("data.")}


def others_in(members: str, sources: Sequence[str]) -> tuple[str, ...]:
    """Which of a row's `members`, by their `starting experts`, its recipe didn't train.

    By what they are instead, a text for each: "resnet 0, resnet 1: not saved by fusionrun".
    """
    found: dict[str, list[str]] = {}
    for member, text in zip(members.split(", "), sources, strict=False):
        if (said := _SOURCE.search(text)) and said[1]:
            found.setdefault(said[1], []).append(member)
    return tuple(f"{', '.join(each)}: {other}" for other, each in found.items())


def weights_in(sources: Sequence[str]) -> list[str]:
    """The hashes in `starting experts` as manifests list them: path (..., weights <hash>)."""
    return [found[-1] for text in sources if (found := re.findall(r"weights (\w+)\)", text))]


def upgraded(found: Mapping[str, Any]) -> dict[str, Any]:
    """Stored fields in today's form: resume states of 0.1 list their experts as texts."""
    fields = dict(found)
    sources = fields.pop("experts", None)
    if sources:
        fields.setdefault(WEIGHTS, weights_in(sources))
    return fields


def _is_file(name: str) -> bool:
    """Whether the field `name` describes a file, by its name and its content."""
    return name.startswith("plugins.") or name.endswith(".pretrained")


def _same_file(here: object, there: object) -> bool:
    """The content is compared where both know it.

    A file of weights may be gone by now; versions before 0.2 stored a plug-in's FILE.py:NAME.
    """
    if not isinstance(here, str) or not isinstance(there, str):
        return False
    if "(source " in here and "(source " in there:
        return here == there
    first, second = (text.split(" (source ")[0].rpartition(":")[2] for text in (here, there))
    return first == second
