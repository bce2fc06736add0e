"""What a recipe can say: frozen dataclasses, each field with its meaning and its default.

A launch reads its recipe once (recipe_yaml.py); models, data and losses take plain arguments.
"""

import dataclasses
import itertools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from fusionrun.common.file_paths import FilePath
from fusionrun.common.typed_fields import (
    FieldError,
    require,
    require_not_negative,
    require_positive,
)
from fusionrun.study.members import Members, expanded_members, mixed_label
from fusionrun.study.runtime import RuntimeConfig

DATA = FilePath("data")
# in place of a fusion type: one network on all that experts and fusion see, or as many as a row has
# experts, each with a seed of its own
SINGLE, FULL_ENSEMBLE = "single", "full_ensemble"
WITHOUT_EXPERTS = (SINGLE, FULL_ENSEMBLE)
MEAN_LOGITS = "meanLogits"  # a fusion without weights


class RecipeError(Exception):
    """The recipe or an override is wrong; the message says where, what was found and expected."""


@dataclass(frozen=True)
class RowConfig:
    """One row of the assignment table."""

    # densenet, resnet, improved_wide_resnet, resnext; a list for different experts in one row:
    # [densenet, resnet] has expert 0 of the one and 1 of the other; {resnet: 2, densenet: 2}
    model: Members
    # multiplicative, multiplicativeAddition, TransformerBase, ..., or single, full_ensemble
    fusion: str
    seed: int | None = None  # of the fusion training; null: the recipe's seed
    alpha: float | None = None  # null: fusion.alpha
    # frozen: the experts stay as they are; detached: they learn without gradients of the fusion;
    # single, full_ensemble: as in the place of fusion
    control: Literal["frozen", "detached", "single", "full_ensemble"] | None = None
    # different experts are called mixed-<name>; null: as another row calls them, else by a hash
    name: str | None = None
    expert_seed: int | None = None  # that its experts are trained with; null: the recipe's seed

    def __post_init__(self) -> None:
        object.__setattr__(self, "model", expanded_members(self.model, "model"))
        require_not_negative(self, "seed", "alpha", "expert_seed")
        if self.name is not None:
            require(
                self.is_mixed, "name", self.name, "null: a row of one architecture has its name"
            )
            fits = re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}", self.name) is not None
            require(fits, "name", self.name, "letters, digits, _, - and ., at most 64")
        contrary = {*WITHOUT_EXPERTS} - {self.control}
        if self.control in WITHOUT_EXPERTS and self.fusion not in contrary:
            object.__setattr__(self, "fusion", self.control)
            object.__setattr__(self, "control", None)
        if self.fusion in WITHOUT_EXPERTS:
            what = "one network" if self.fusion == SINGLE else "networks of one architecture"
            one = f"one architecture: {self.fusion} is {what} on all the images"
            require(not self.is_mixed, "model", list(self.model), one)
            for name in ("alpha", "control", "expert_seed"):
                value = getattr(self, name)
                require(value is None, name, value, f"null: {self.fusion} has no experts")

    @property
    def is_mixed(self) -> bool:
        """Whether its experts are of different architectures."""
        return not isinstance(self.model, str)

    @property
    def label(self) -> str:
        """In paths, tables and logs: the architecture, or mixed-<name or hash>."""
        return self.model if isinstance(self.model, str) else mixed_label(self.model, self.name)


def named(rows: Iterable[RowConfig], others: Iterable[RowConfig]) -> list[RowConfig]:
    """`rows`, those without a name called as `others` call the same experts."""
    names = {row.model: row.name for row in others if row.name is not None}
    return [
        dataclasses.replace(row, name=names[row.model])
        if row.name is None and row.model in names
        else row
        for row in rows
    ]


@dataclass(frozen=True)
class GridConfig:
    """Rows as a product: every model with every fusion, seeds and alpha."""

    models: tuple[Members, ...]  # as a row's model
    fusions: tuple[str, ...]  # as a row's fusion
    seeds: tuple[int, ...] = ()  # none: the recipe's seed
    alphas: tuple[float, ...] = ()  # none: fusion.alpha
    # the experts are trained once more with each of these; none: with the recipe's seed
    expert_seeds: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        models = (expanded_members(model, f"models.{i}") for i, model in enumerate(self.models))
        object.__setattr__(self, "models", tuple(models))
        for name in ("models", "fusions", "seeds", "alphas", "expert_seeds"):
            values = getattr(self, name)
            for index, value in enumerate(values):
                require(value not in values[:index], f"{name}.{index}", value, "each one once")
        for name in ("models", "fusions"):
            require(len(getattr(self, name)) > 0, name, [], "at least one")
        for name in ("seeds", "alphas", "expert_seeds"):
            for index, value in enumerate(getattr(self, name)):
                require(value >= 0, f"{name}.{index}", value, "0 or more")

    def rows(self) -> list[RowConfig]:
        """The product, models first: neighbours differ in their model, as ranks begin best."""
        seeds: tuple[int | None, ...] = self.seeds or (None,)
        expert_seeds: tuple[int | None, ...] = self.expert_seeds or (None,)
        alphas: tuple[float | None, ...] = self.alphas or (None,)
        return [
            RowConfig(model, fusion, seed, alpha, expert_seed=expert_seed)
            for seed, expert_seed, alpha, fusion, model in itertools.product(
                seeds, expert_seeds, alphas, self.fusions, self.models
            )
        ]


@dataclass(frozen=True)
class DataConfig:
    """What is trained on, and how it is divided between experts, fusion and validation."""

    name: str = "cifar100"  # cifar100, cifar10, image_folder, synthetic
    root: FilePath = DATA  # folder that holds the published archive or train/ and test/
    cache_dir: FilePath | None = None  # null: <root>/.fusionrun_cache
    splits_dir: FilePath | None = None  # null: <output_dir>/splits
    download: bool = False  # fetch a CIFAR archive that is missing
    train_folder: str = "train"  # image_folder: below root
    test_folder: str = "test"  # image_folder: below root
    image_size: int = 32  # side in pixels (image_folder resizes once; synthetic draws)
    # image_folder: black and white of images deeper than 8 bits; null: 0..65535 of 16 bits
    range: tuple[float, float] | None = None
    train_images: int | None = None  # null: all; else a seeded subset, stratified by class
    test_images: int | None = None  # as train_images
    num_classes: int = 20  # synthetic only; files bring their own classes
    seed: int = 42  # of the splits, of subsets and of synthetic images
    holdout_fraction: float = 0.2  # part of the training set that only fusion sees
    val_fraction: float = 0.1  # part of the holdout that selects, stratified by class
    split: Literal["iid", "non_iid"] = "iid"  # non_iid: each expert its own classes
    shared_fraction: float = 0.4  # iid: part of the expert pool that every expert sees
    unique_fraction: float = 0.15  # iid: part of the pool that one expert alone sees

    def __post_init__(self) -> None:
        require_positive(self, "image_size", "train_images", "test_images")
        require(self.image_size >= 8, "image_size", self.image_size, "8 or more")
        require(self.num_classes >= 2, "num_classes", self.num_classes, "2 or more")
        require_not_negative(self, "seed")
        for name in ("holdout_fraction", "val_fraction"):
            value = getattr(self, name)
            require(0 < value < 1, name, value, "a fraction between 0 and 1")
        for name in ("shared_fraction", "unique_fraction"):
            value = getattr(self, name)
            require(0 <= value <= 1, name, value, "a fraction from 0 to 1")
        same = self.train_folder == self.test_folder
        require(not same, "test_folder", self.test_folder, "another folder than train_folder")
        if self.range is not None:
            low, high = self.range
            require(low < high, "range", list(self.range), "black, then a higher value for white")
        both = self.shared_fraction + self.unique_fraction
        require(both > 0, "unique_fraction", self.unique_fraction, "above 0 if nothing is shared")


@dataclass(frozen=True)
class ExpertsConfig:
    """Training of the experts, before fusion."""

    count: int = 4  # experts per row
    checkpoint_dir: FilePath | None = None  # null: <output_dir>/expert_checkpoints
    # their files below it, a name with {model} and {k}; null: as we or GMF name them
    pattern: str | None = None
    # own: outputs for their own classes of data.split non_iid alone, elsewhere a probability of 0
    classes: Literal["all", "own"] = "all"
    epochs: int = 250  # of each expert's own training
    # experts of one architecture that a rank trains side by side on its device, each as if alone;
    # auto: one on a CPU, up to four on a GPU, fewer where memory or the other ranks' work runs out
    together: Literal["auto"] | int = "auto"
    batch_size: int | None = None  # null: as published for the architecture (128, DenseNet 64)
    lr: float | None = None  # null: 0.1 (SGD, Nesterov momentum 0.9, cosine to 0)
    weight_decay: float | None = None  # null: by architecture (5e-4 or 1e-4)
    augmentation: str = "auto"  # auto: by architecture
    mixing: Literal["cutmix", "mixup", "none"] = "cutmix"  # of two images into one
    mixing_alpha: float | None = None  # null: 1.0 for cutmix, by architecture for mixup
    label_smoothing: float | None = None  # null: by architecture (0.05 or 0.1)

    def __post_init__(self) -> None:
        require(self.count >= 2, "count", self.count, "2 or more experts")
        pattern = "{k}" if self.pattern is None else self.pattern
        rest = re.sub(r"\{model\}|\{k(:0\dd)?\}", "", pattern)
        wanted = "a file's name with {k}, and {model} where rows have several"
        require("{k" in pattern and not {*"{}"} & {*rest}, "pattern", pattern, wanted)
        enough = self.together == "auto" or self.together >= 1
        require(enough, "together", self.together, "1 or more, or auto")
        require_positive(self, "epochs", "batch_size", "lr", "mixing_alpha")
        require_not_negative(self, "weight_decay")
        _check_smoothing(self.label_smoothing)

    @property
    def most_together(self) -> int:
        """On whatever device. By four an H100 trains 1.3 to 1.5 times as many as one by one."""
        return 4 if self.together == "auto" else min(self.together, self.count)


@dataclass(frozen=True)
class FusionConfig:
    """Training of a row: its experts, fusion module and global head together."""

    epochs: int = 100  # of a row's training
    batch_size: int = 128  # images of an optimizer step
    # images that pass through the model at a time, gradients adding up to batch_size; null: all;
    # auto: all, halved whenever memory runs out. Batch statistics are the micro-batch's own
    micro_batch: Literal["auto"] | int | None = "auto"
    alpha: float = 1.0  # weight of the sum of the experts' own losses
    # of the experts' rate in a row, between all of it and a tenth. restarts: the first period a
    # quarter of the epochs, each next one twice as long, cut off by the end (100 epochs end at
    # 0.88 of the rate); annealed: a third, then all the rest, so that the end is a cycle's end
    schedule: Literal["restarts", "annealed"] = "restarts"
    # what null and auto mean below. per_type: as published for the fusion type; shared: the same
    # for every type, with the same order of batches and augmentation, to compare types alike
    recipe: Literal["per_type", "shared"] = "per_type"
    # feature size that a row's experts meet in, by linear adapters where theirs is another; null:
    # the largest of theirs
    dim: int | None = None
    experts_lr: float | None = None  # null: adapted to fusion type and feature size
    fusion_lr: float | None = None  # null: likewise
    global_head_lr: float | None = None  # null: as fusion_lr
    weight_decay: float | None = None  # null: by fusion type (1e-4, TransformerBase 5e-4)
    augmentation: str = "auto"  # auto: by fusion type
    mixing: Literal["cutmix", "mixup", "none"] = "cutmix"  # of two images into one
    mixing_alpha: float | None = None  # null: 1.0 for cutmix, by fusion type for mixup
    label_smoothing: float | None = None  # null: by fusion type (0.05, 0.08 or 0.1)

    def __post_init__(self) -> None:
        require_positive(self, "epochs", "dim", "experts_lr", "fusion_lr", "global_head_lr")
        micro = self.micro_batch
        require(
            not isinstance(micro, int) or micro >= 2,
            "micro_batch",
            micro,
            "2 or more (batch normalisation can't learn from one image), auto or null",
        )
        require_positive(self, "mixing_alpha")
        require(self.batch_size >= 2, "batch_size", self.batch_size, "2 or more")
        require_not_negative(self, "alpha", "weight_decay")
        _check_smoothing(self.label_smoothing)


def _check_smoothing(value: float | None) -> None:
    require(value is None or 0 <= value < 1, "label_smoothing", value, "from 0 to below 1")


@dataclass(frozen=True)
class CheckpointConfig:
    """When a task writes its resume state; it is always written on a stop signal."""

    every_epochs: int = 10  # of a task
    every_minutes: float = 5.0  # since its last one

    def __post_init__(self) -> None:
        require_positive(self, "every_epochs", "every_minutes")


@dataclass(frozen=True)
class LogsConfig:
    """What is written beside CSV files and text logs."""

    tensorboard: bool = True  # event files in <output_dir>/tensorboard
    wandb: Literal["off", "offline", "online"] = "off"  # Weights & Biases, a project a model


@dataclass(frozen=True)
class StatusConfig:
    """The live table."""

    every_seconds: float = 1.0  # cadence of the gather, the table and status.json
    summary_minutes: float = 5.0  # off a terminal: a short summary this often

    def __post_init__(self) -> None:
        require_positive(self, "every_seconds", "summary_minutes")


@dataclass(frozen=True)
class Recipe:
    """A study: what to train, on what, how."""

    output_dir: FilePath  # folder of everything that the study produces
    rows: tuple[RowConfig, ...] = ()
    grid: GridConfig | None = None  # more rows, after those: all combinations not listed there
    # more rows: these controls of every row so far, see a row's control
    controls: tuple[Literal["frozen", "detached", "single", "full_ensemble"], ...] = ()
    seed: int = 42  # of initialisation, order of batches, augmentation and dropout
    data: DataConfig = field(default_factory=DataConfig)
    models: dict[str, dict[str, Any]] = field(default_factory=dict)  # architecture: arguments
    # name: FILE.py:NAME; an architecture, fusion or data set of the user's own, called so here
    plugins: dict[str, FilePath] = field(default_factory=dict)
    experts: ExpertsConfig = field(default_factory=ExpertsConfig)
    fusion: FusionConfig = field(default_factory=FusionConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    logs: LogsConfig = field(default_factory=LogsConfig)
    status: StatusConfig = field(default_factory=StatusConfig)

    def __post_init__(self) -> None:
        require(bool(self.output_dir.strip()), "output_dir", self.output_dir, "a folder")
        require(
            bool(self.rows or self.grid),
            "rows",
            [],
            "at least one {model: ..., fusion: ...}, or a grid",
        )
        require_not_negative(self, "seed")
        possible = self.experts.classes == "all" or self.data.split == "non_iid"
        expected = "all, or data.split=non_iid, where each expert has its own classes"
        require(possible, "experts.classes", "own", expected)
        seen: dict[tuple[object, ...], int] = {}
        for index, row in enumerate(self.rows):
            first = seen.setdefault(self._identity(row), index)
            if first != index:
                problem = f"is the same experiment as rows.{first}; give it another seed or alpha"
                raise FieldError(f"rows.{index}", problem)
        self._check_members()
        for row in self.all_rows():
            found = f"alpha 0 in the detached {row.label}/{row.fusion}"
            needed = row.control != "detached" or self._alpha(row) > 0
            require(needed, "controls", found, "more: nothing else would train its experts")

    def _check_members(self) -> None:
        """Mixed rows have no more experts than were trained; one name is of the same ones."""
        names: dict[object, tuple[str, object]] = {}
        for index, row in enumerate(self.rows):
            if row.name is not None:
                first, other = names.setdefault(row.model, (f"rows.{index}", row.name))
                needed = f"{other!r} as in {first}, whose experts are the same"
                require(row.name == other, f"rows.{index}.name", row.name, needed)
        for index, row in enumerate(self._rows_without_controls()):
            if row.is_mixed:
                listed = index < len(self.rows)
                most = f"at most {self.experts.count} (experts.count), each of other data"
                fits = len(row.model) <= self.experts.count
                field = f"rows.{index}.model" if listed else "grid.models"
                require(fits, field, list(row.model), most)
                first, members = names.setdefault(row.label, (f"rows.{index}", row.model))
                needed = f"another than that of {first}, whose experts are others"
                require(row.model == members, f"rows.{index}.name", row.name, needed)

    def all_rows(self) -> tuple[RowConfig, ...]:
        """The rows that are listed, those that the grid adds, then the controls of all these."""
        rows = self._rows_without_controls()
        return self._each_once([*rows, *self._control_rows(rows)])

    def _rows_without_controls(self) -> tuple[RowConfig, ...]:
        rows = [*self.rows, *(self.grid.rows() if self.grid else [])]
        return self._each_once(named(rows, rows))

    def _control_rows(self, rows: Iterable[RowConfig]) -> Iterator[RowConfig]:
        for row, control in itertools.product(rows, self.controls):
            if control in WITHOUT_EXPERTS:
                if not row.is_mixed:  # networks of which architecture would stand beside it?
                    yield RowConfig(row.model, control, row.seed)
            elif row.fusion not in WITHOUT_EXPERTS and row.control is None:
                own = MEAN_LOGITS in self.plugins
                if (row.fusion, control) == (MEAN_LOGITS, "frozen") and not own:
                    continue  # nothing would learn: it's the alternative before_mean_logits
                yield dataclasses.replace(row, control=control)

    def _each_once(self, rows: Iterable[RowConfig]) -> tuple[RowConfig, ...]:
        found: dict[tuple[object, ...], RowConfig] = {}
        for row in rows:
            found.setdefault(self._identity(row), row)
        return tuple(found.values())

    def _identity(self, row: RowConfig) -> tuple[object, ...]:
        seed = self.seed if row.seed is None else row.seed
        of_experts = self.seed if row.expert_seed is None else row.expert_seed
        return row.model, row.fusion, row.control, seed, of_experts, self._alpha(row)

    def _alpha(self, row: RowConfig) -> float:
        return self.fusion.alpha if row.alpha is None else row.alpha
