"""Recipes: YAML -> frozen dataclasses, strictly checked, with errors a person can act on.

The runner reads a recipe once; everything below it takes plain arguments.
"""

import contextlib
import dataclasses
import difflib
import itertools
import math
import signal
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import yaml

MAX_VALUES = 10_000  # values in a recipe; hundreds of rows need a few thousand
SINGLE = "single"  # in place of a fusion type: one network on all that experts and fusion see


class RecipeError(Exception):
    """The recipe or an override is wrong; the message says where, what was found and expected."""


class _FieldError(Exception):
    """Raised while building one dataclass; `path` grows as it travels up to the file's name."""

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(problem)
        self.path = path
        self.problem = problem


def _require(holds: bool, name: str, found: object, expected: str) -> None:
    if not holds:
        raise _FieldError(name, f"found {_shown(found)}, expected {expected}")


def _require_positive(config: object, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        _require(value is None or value > 0, name, value, "a number above 0")


def _require_not_negative(config: object, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        _require(value is None or value >= 0, name, value, "0 or more")


@dataclass(frozen=True)
class RowConfig:
    """One row of the assignment table."""

    model: str  # densenet, resnet, improved_wide_resnet, resnext
    fusion: str  # multiplicative, multiplicativeAddition, TransformerBase, ..., or single
    seed: int | None = None  # of the fusion training; null: the recipe's seed
    alpha: float | None = None  # null: fusion.alpha
    # frozen: the experts stay as they are; detached: they learn without gradients of the fusion
    control: Literal["frozen", "detached"] | None = None

    def __post_init__(self) -> None:
        _require_not_negative(self, "seed", "alpha")
        if self.fusion == SINGLE:
            for name in ("alpha", "control"):
                value = getattr(self, name)
                _require(value is None, name, value, f"null: {SINGLE} has no experts")


@dataclass(frozen=True)
class GridConfig:
    """Rows as a product: every model with every fusion, seed and alpha."""

    models: tuple[str, ...]
    fusions: tuple[str, ...]
    seeds: tuple[int, ...] = ()  # none: the recipe's seed
    alphas: tuple[float, ...] = ()  # none: fusion.alpha

    def __post_init__(self) -> None:
        for name in ("models", "fusions", "seeds", "alphas"):
            values = getattr(self, name)
            for index, value in enumerate(values):
                _require(value not in values[:index], f"{name}.{index}", value, "each one once")
        for name in ("models", "fusions"):
            _require(len(getattr(self, name)) > 0, name, [], "at least one")
        for name in ("seeds", "alphas"):
            for index, value in enumerate(getattr(self, name)):
                _require(value >= 0, f"{name}.{index}", value, "0 or more")

    def rows(self) -> list[RowConfig]:
        """The product, models first: neighbours differ in their model, as ranks begin best."""
        seeds: tuple[int | None, ...] = self.seeds or (None,)
        alphas: tuple[float | None, ...] = self.alphas or (None,)
        return [
            RowConfig(model, fusion, seed, alpha)
            for seed, alpha, fusion, model in itertools.product(
                seeds, alphas, self.fusions, self.models
            )
        ]


@dataclass(frozen=True)
class DataConfig:
    """What is trained on, and how it is divided between experts, fusion and validation."""

    name: str = "cifar100"  # cifar100, cifar10, image_folder, synthetic
    root: str = "data"  # folder that holds the published archive or train/ and test/
    cache_dir: str | None = None  # null: <root>/.fusionrun_cache
    splits_dir: str | None = None  # null: <output_dir>/splits
    download: bool = False  # fetch a CIFAR archive that is missing
    image_size: int = 32  # side in pixels (image_folder resizes once; synthetic draws)
    train_images: int | None = None  # null: all; else a seeded subset, even over the classes
    test_images: int | None = None  # as train_images
    num_classes: int = 20  # synthetic only; files bring their own classes
    seed: int = 42  # of the splits, of subsets and of synthetic images
    holdout_fraction: float = 0.2  # part of the training set that only fusion sees
    val_fraction: float = 0.1  # part of the holdout that selects, even over the classes
    split: Literal["iid", "non_iid"] = "iid"  # non_iid: each expert its own classes
    shared_fraction: float = 0.4  # iid: part of the expert pool that every expert sees
    unique_fraction: float = 0.15  # iid: part of the pool that one expert alone sees

    def __post_init__(self) -> None:
        _require_positive(self, "image_size", "train_images", "test_images")
        _require(self.image_size >= 8, "image_size", self.image_size, "8 or more")
        _require(self.num_classes >= 2, "num_classes", self.num_classes, "2 or more")
        _require_not_negative(self, "seed")
        for name in ("holdout_fraction", "val_fraction"):
            value = getattr(self, name)
            _require(0 < value < 1, name, value, "a fraction between 0 and 1")
        for name in ("shared_fraction", "unique_fraction"):
            value = getattr(self, name)
            _require(0 <= value <= 1, name, value, "a fraction from 0 to 1")
        both = self.shared_fraction + self.unique_fraction
        _require(both > 0, "unique_fraction", self.unique_fraction, "above 0 if nothing is shared")


@dataclass(frozen=True)
class ExpertsConfig:
    """Training of the experts, before fusion."""

    count: int = 4  # experts per row
    checkpoint_dir: str | None = None  # null: <output_dir>/expert_checkpoints
    epochs: int = 250
    batch_size: int | None = None  # null: as published for the architecture (128, DenseNet 64)
    lr: float | None = None  # null: 0.1 (SGD, Nesterov momentum 0.9, cosine to 0)
    weight_decay: float | None = None  # null: by architecture (5e-4 or 1e-4)
    augmentation: str = "auto"  # auto: by architecture
    mixing: Literal["cutmix", "mixup", "none"] = "cutmix"  # of two images into one
    mixing_alpha: float | None = None  # null: 1.0 for cutmix, by architecture for mixup
    label_smoothing: float | None = None  # null: by architecture (0.05 or 0.1)

    def __post_init__(self) -> None:
        _require(self.count >= 2, "count", self.count, "2 or more experts")
        _require_positive(self, "epochs", "batch_size", "lr", "mixing_alpha")
        _require_not_negative(self, "weight_decay")
        _check_smoothing(self.label_smoothing)


@dataclass(frozen=True)
class FusionConfig:
    """Training of a row: its experts, fusion module and global head together."""

    epochs: int = 100
    batch_size: int = 128
    # images that pass through the model at a time, gradients adding up to batch_size; null: all;
    # auto: all, halved whenever memory runs out. Batch statistics are the micro-batch's own
    micro_batch: Literal["auto"] | int | None = None
    alpha: float = 1.0  # weight of the sum of the experts' own losses
    experts_lr: float | None = None  # null: adapted to fusion type and feature size
    fusion_lr: float | None = None  # null: likewise
    global_head_lr: float | None = None  # null: as fusion_lr
    weight_decay: float | None = None  # null: by fusion type (1e-4, TransformerBase 5e-4)
    augmentation: str = "auto"  # auto: by fusion type
    mixing: Literal["cutmix", "mixup", "none"] = "cutmix"
    mixing_alpha: float | None = None  # null: 1.0 for cutmix, by fusion type for mixup
    label_smoothing: float | None = None  # null: by fusion type (0.05, 0.08 or 0.1)

    def __post_init__(self) -> None:
        _require_positive(self, "epochs", "experts_lr", "fusion_lr", "global_head_lr")
        micro = self.micro_batch
        _require(
            not isinstance(micro, int) or micro >= 2,
            "micro_batch",
            micro,
            "2 or more (batch normalisation can't learn from one image), auto or null",
        )
        _require_positive(self, "mixing_alpha")
        _require(self.batch_size >= 2, "batch_size", self.batch_size, "2 or more")
        _require_not_negative(self, "alpha", "weight_decay")
        _check_smoothing(self.label_smoothing)


def _check_smoothing(value: float | None) -> None:
    _require(value is None or 0 <= value < 1, "label_smoothing", value, "from 0 to below 1")


@dataclass(frozen=True)
class RuntimeConfig:
    """How the hardware is used."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int | None = None  # CPU threads of a rank; null: the cores divided by the ranks
    amp: Literal["auto", "off"] = "auto"  # auto: bfloat16 autocast on a GPU that has it
    channels_last: bool = True
    deterministic: bool = False  # GPU: bit-identical reruns, slower (a CPU always is)
    # a rank that gets one of these saves at its next step and leaves; Slurm's warning among them
    stop_signals: tuple[str, ...] = ("SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2")
    hang_minutes: float | None = None  # stop the launch when a rank stands still for so long

    def __post_init__(self) -> None:
        _require_positive(self, "threads", "hang_minutes")
        for index, name in enumerate(self.stop_signals):
            known = name in signal.Signals.__members__ and name not in ("SIGKILL", "SIGSTOP")
            _require(known, f"stop_signals.{index}", name, "a signal's name, such as SIGUSR1")


@dataclass(frozen=True)
class CheckpointConfig:
    """When a task writes its resume state; it is always written on a stop signal."""

    every_epochs: int = 10
    every_minutes: float = 5.0

    def __post_init__(self) -> None:
        _require_positive(self, "every_epochs", "every_minutes")


@dataclass(frozen=True)
class LogsConfig:
    """What is written beside CSV files and text logs."""

    tensorboard: bool = True
    wandb: Literal["off", "offline", "online"] = "off"


@dataclass(frozen=True)
class StatusConfig:
    """The live table."""

    every_seconds: float = 1.0  # cadence of the gather, the table and status.json
    summary_minutes: float = 5.0  # off a terminal: a short summary this often

    def __post_init__(self) -> None:
        _require_positive(self, "every_seconds", "summary_minutes")


@dataclass(frozen=True)
class Recipe:
    """A study: what to train, on what, how."""

    output_dir: str
    rows: tuple[RowConfig, ...] = ()
    grid: GridConfig | None = None  # more rows, after those: all combinations not listed there
    # more rows: these controls of every row so far, see RowConfig
    controls: tuple[Literal["frozen", "detached", "single"], ...] = ()
    seed: int = 42  # of initialisation, order of batches, augmentation and dropout
    data: DataConfig = field(default_factory=DataConfig)
    models: dict[str, dict[str, Any]] = field(default_factory=dict)  # architecture: arguments
    # name: FILE.py:NAME; an architecture, fusion or data set of the user's own, called so here
    plugins: dict[str, str] = field(default_factory=dict)
    experts: ExpertsConfig = field(default_factory=ExpertsConfig)
    fusion: FusionConfig = field(default_factory=FusionConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    logs: LogsConfig = field(default_factory=LogsConfig)
    status: StatusConfig = field(default_factory=StatusConfig)

    def __post_init__(self) -> None:
        _require(bool(self.output_dir.strip()), "output_dir", self.output_dir, "a folder")
        _require(
            bool(self.rows or self.grid),
            "rows",
            [],
            "at least one {model: ..., fusion: ...}, or a grid",
        )
        _require_not_negative(self, "seed")
        seen: dict[tuple[object, ...], int] = {}
        for index, row in enumerate(self.rows):
            first = seen.setdefault(self._identity(row), index)
            if first != index:
                problem = f"is the same experiment as rows.{first}; give it another seed or alpha"
                raise _FieldError(f"rows.{index}", problem)
        for row in self.all_rows():
            found = f"alpha 0 in the detached {row.model}/{row.fusion}"
            needed = row.control != "detached" or self._alpha(row) > 0
            _require(needed, "controls", found, "more: nothing else would train its experts")

    def all_rows(self) -> tuple[RowConfig, ...]:
        """The rows that are listed, those that the grid adds, then the controls of all these."""
        rows = self._rows_without_controls()
        return self._each_once([*rows, *self._control_rows(rows)])

    def _rows_without_controls(self) -> tuple[RowConfig, ...]:
        return self._each_once([*self.rows, *(self.grid.rows() if self.grid else [])])

    def _control_rows(self, rows: Iterable[RowConfig]) -> Iterator[RowConfig]:
        for row, control in itertools.product(rows, self.controls):
            if control == "single":
                yield RowConfig(row.model, SINGLE, row.seed)
            elif row.fusion != SINGLE and row.control is None:
                yield dataclasses.replace(row, control=control)

    def _each_once(self, rows: Iterable[RowConfig]) -> tuple[RowConfig, ...]:
        found: dict[tuple[object, ...], RowConfig] = {}
        for row in rows:
            found.setdefault(self._identity(row), row)
        return tuple(found.values())

    def _identity(self, row: RowConfig) -> tuple[object, ...]:
        seed = self.seed if row.seed is None else row.seed
        return row.model, row.fusion, row.control, seed, self._alpha(row)

    def _alpha(self, row: RowConfig) -> float:
        return self.fusion.alpha if row.alpha is None else row.alpha


def nearest(name: str, valid: Iterable[str]) -> str:
    """What to tell a person who wrote `name` where one of `valid` was expected."""
    names = sorted(valid)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}expected one of: {', '.join(names)}"


def load_recipe(
    path: Path, overrides: Iterable[str] = (), preset: Mapping[str, Any] | None = None
) -> Recipe:
    """Read a recipe, then apply `preset` (dotted path -> value) and `key=value` overrides.

    Raises RecipeError, whose message names the file or override, the dotted path, what was found
    and what was expected.
    """
    tree = _read_yaml(path)
    sources: dict[str, str] = {}
    for key, value in (preset or {}).items():
        _assign(tree, key, value, sources, source="command line")
    for text in overrides:
        key, value = _parse_override(text)
        _assign(tree, key, value, sources, source=f"override {text!r}")
    try:
        return cast(Recipe, _build(Recipe, tree, ""))
    except _FieldError as error:
        source = _source_of(error.path, sources) or str(path)
        where = f"{error.path}: " if error.path else ""
        raise RecipeError(f"{source}: {where}{error.problem}") from None


def dump_recipe(recipe: Recipe) -> str:
    """The resolved recipe as YAML that `load_recipe` reads back to the same value."""
    tree = _plain(dataclasses.asdict(recipe))
    return yaml.safe_dump(tree, sort_keys=False, default_flow_style=False, allow_unicode=True)


def flatten(value: object, prefix: str = "") -> dict[str, Any]:
    """Nested dataclasses or mappings as {dotted path: plain value}."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if not isinstance(value, Mapping):
        return {prefix: _plain(value)}
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        flat.update(flatten(inner, f"{prefix}.{key}" if prefix else str(key)))
    return flat


class _StrictLoader(yaml.SafeLoader):
    """The safe loader, which refuses keys written twice and aliases that multiply."""

    def get_single_node(self) -> yaml.Node | None:
        node = super().get_single_node()
        if node is not None:
            _count_nodes(node, {})
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        # here and not where mappings are constructed: by then `<<` has merged others into them
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key.value!r} is written twice", key.start_mark
                    )
                seen.add(key.value)
        return node


def _count_nodes(node: yaml.Node, counts: dict[int, int]) -> int:
    """Nodes below `node` with every alias written out; ValueError above MAX_VALUES.

    A few lines of aliases of aliases can stand for billions of values, which whatever copies or
    prints the tree would meet one by one.
    """
    if id(node) not in counts:
        counts[id(node)] = MAX_VALUES  # what an alias of itself finds
        parts = node.value if isinstance(node, yaml.CollectionNode) else ()
        if isinstance(node, yaml.MappingNode):
            parts = [part for pair in node.value for part in pair]
        counts[id(node)] = 1 + sum(_count_nodes(part, counts) for part in parts)
    if counts[id(node)] > MAX_VALUES:
        raise ValueError(f"found more than {MAX_VALUES} values, or an alias inside itself")
    return counts[id(node)]


def _parse_yaml(text: str, source: str) -> Any:
    """`text` as plain values, of which no two share a part: an override changes one place only."""
    try:
        tree = _plain(yaml.load(text, Loader=_StrictLoader))
        repr(tree)  # ValueError for a number of thousands of digits, which no message could show
        return tree
    except yaml.YAMLError as error:
        raise RecipeError(f"{source}: is not valid YAML: {_one_line(error)}") from None
    # PyYAML lets Python's own errors through, e.g. for `!!bool perhaps` and the date 2026-13-01
    except (RecursionError, ValueError, LookupError, TypeError, AttributeError) as error:
        problem = f"{type(error).__name__}: {_one_line(error)}"
        raise RecipeError(f"{source}: is not valid YAML: {problem}") from None


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such recipe; see configs/ for the ones shipped") from None
    except IsADirectoryError:
        raise RecipeError(f"{path}: is a folder, expected a YAML recipe") from None
    except UnicodeDecodeError:
        raise RecipeError(f"{path}: is not text in UTF-8, expected a YAML recipe") from None
    except OSError as error:
        raise RecipeError(f"{path}: can't be read: {error.strerror}") from None
    tree = _parse_yaml(text, str(path))
    if not isinstance(tree, dict):
        raise RecipeError(f"{path}: found {_kind(tree)}, expected keys such as output_dir and rows")
    return tree


def _parse_override(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise RecipeError(f"override {text!r}: expected key=value, e.g. fusion.epochs=3")
    return key.strip(), _parse_yaml(value, f"override {text!r}")


def _assign(
    tree: dict[str, Any], key: str, value: Any, sources: dict[str, str], *, source: str
) -> None:
    """Set the dotted path `key` in `tree`; numbers index into lists."""
    *parents, last = key.split(".")
    place: Any = tree
    for depth, name in enumerate(parents):
        place = _enter(place, name, ".".join(parents[: depth + 1]), source)
    if isinstance(place, list):
        place[_list_index(place, last, key, source)] = value
    elif isinstance(place, dict):
        place[last] = value
    else:
        problem = f"{'.'.join(parents)} is {_kind(place)}, which has no fields"
        raise RecipeError(f"{source}: {problem}")
    sources.pop(key, None)  # the last one set stands last
    sources[key] = source


def _enter(place: Any, name: str, path: str, source: str) -> Any:
    if isinstance(place, list):
        return place[_list_index(place, name, path, source)]
    if not isinstance(place, dict):
        raise RecipeError(f"{source}: {path}: found {_kind(place)} above it, which has no fields")
    if place.get(name) is None:
        place[name] = {}
    return place[name]


def _list_index(place: list[Any], name: str, path: str, source: str) -> int:
    valid = [str(index) for index in range(len(place))]
    if name not in valid:
        limits = f"an index from 0 to {len(place) - 1}" if place else "nothing: the list is empty"
        raise RecipeError(f"{source}: {path}: found {name!r}, expected {limits}")
    return valid.index(name)


def _source_of(path: str, sources: dict[str, str]) -> str | None:
    """The last override that set `path`, something above it or something below it."""
    for key, source in reversed(sources.items()):
        if key == path or path.startswith(f"{key}.") or key.startswith(f"{path}."):
            return source
    return None


def _build(kind: type, tree: Any, path: str) -> object:
    """One dataclass from a mapping, every key known and every value of the declared type."""
    if not isinstance(tree, dict):
        names = ", ".join(spec.name for spec in dataclasses.fields(kind))
        raise _FieldError(path, f"found {_kind(tree)}, expected fields of: {names}")
    specs = {spec.name: spec for spec in dataclasses.fields(kind)}
    hints = typing.get_type_hints(kind)
    for key in tree:
        if key not in specs:
            problem = f"unknown key {_shown(key)}; {nearest(str(key), specs)}"
            raise _FieldError(_join(path, str(key)), problem)
    values: dict[str, object] = {}
    for name, spec in specs.items():
        if name in tree:
            values[name] = _convert(hints[name], tree[name], _join(path, name))
        elif spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING:
            raise _FieldError(_join(path, name), "found nothing, expected a value")
    try:
        return kind(**values)
    except _FieldError as error:
        raise _FieldError(_join(path, error.path), error.problem) from None


def _convert(hint: Any, value: Any, path: str) -> object:
    """`value` as the type `hint` says; raises _FieldError when it is something else."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None:
            return None
        *others, hint = (part for part in typing.get_args(hint) if part is not type(None))
        for other in others:
            with contextlib.suppress(_FieldError):
                return _convert(other, value, path)
        return _convert(hint, value, path)
    if origin is Literal:
        options = typing.get_args(hint)
        # YAML reads a bare `off` as the boolean false
        value = "off" if value is False and "off" in options else value
        if value not in options:
            raise _FieldError(path, f"found {_shown(value)}; {nearest(str(value), options)}")
        return cast(object, value)
    if origin is tuple:
        if not isinstance(value, list):
            raise _FieldError(path, f"found {_kind(value)}, expected a list")
        inner = typing.get_args(hint)[0]
        return tuple(_convert(inner, item, f"{path}.{i}") for i, item in enumerate(value))
    if origin is dict:
        return _convert_mapping(typing.get_args(hint)[1], value, path)
    if dataclasses.is_dataclass(hint):
        # `data:` with nothing below it is an empty section
        return _build(cast(type, hint), {} if value is None else value, path)
    return value if hint is Any else _convert_scalar(hint, value, path)


def _convert_mapping(inner: Any, value: Any, path: str) -> dict[str, object]:
    value = {} if value is None else value
    if not isinstance(value, dict):
        raise _FieldError(path, f"found {_kind(value)}, expected a mapping")
    return {str(key): _convert(inner, item, _join(path, str(key))) for key, item in value.items()}


def _convert_scalar(hint: type, value: Any, path: str) -> object:
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    problem = f"found {_shown(value)} ({_kind(value)}), expected {names[hint]}"
    if hint is float and isinstance(value, (int, str)) and not isinstance(value, bool):
        # YAML 1.1 reads 1e-4 (no dot) as text; everybody means the number
        try:
            value = float(value)
        except (ValueError, OverflowError):
            raise _FieldError(path, problem) from None
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise _FieldError(path, problem)
    if isinstance(value, float) and not math.isfinite(value):
        raise _FieldError(path, f"found {value!r}, expected a finite number")
    if isinstance(value, int) and abs(value) >= 2**63:
        raise _FieldError(path, f"found {_shown(value)}, expected a whole number of 64 bits")
    if isinstance(value, str) and any(c < " " or "\ud800" <= c <= "\udfff" for c in value):
        # no path can hold the one and no UTF-8 file the other
        raise _FieldError(path, f"found {_shown(value)}, expected text of printable characters")
    return value


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return value


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path and name else path or name


def _kind(value: object) -> str:
    names = {dict: "a mapping", list: "a list", str: "text", bool: "true/false", int: "a number"}
    return "nothing" if value is None else names.get(type(value), type(value).__name__)


def _shown(value: object) -> str:
    """`value` as an error message shows it, never more than a line of it."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
