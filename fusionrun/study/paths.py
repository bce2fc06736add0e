"""Where everything of a study lies: the one place that spells its file names."""

import os.path
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# beside a model's experts, which several studies may share: held by the launch that trains some
EXPERTS_LOCK = ".experts.lock"

# names of experts' files below experts.checkpoint_dir, without their ending: ours first, then
# GMF's (github.com/hanjidani/GMF, the system before this one)
EXPERT_NAMES = ("{model}/expert_{k}_best", "best_{split}_{model}_expert_{k}")
ENDINGS = (".pth", ".safetensors", ".pt")
GMF_MODELS = {
    "densenet": "densenet121",
    "resnet": "resnet18",
    "improved_wide_resnet": "wideresnet28_10",
    "resnext": "preact_resnext29_8x64d",
}
GMF_SPLITS = {"iid": ("iid", "noniid"), "non_iid": ("noniid", "iid")}  # the recipe's one first


def label_of(model: str) -> str:
    """An architecture as files, tasks and logs are called: timm:resnet18 is timm-resnet18.

    Letters of any language stay: a plug-in may be called so, and two of them mustn't become one.
    """
    return re.sub(r"[^\w.-]", "-", model)


@dataclass(frozen=True)
class RowFiles:
    """The files of one row: components, their manifest, resume state, table of epochs."""

    directory: Path  # <output_dir>/<model>_fusions/<fusion>
    csv: Path

    def expert(self, k: int) -> Path:
        return self.directory / "experts" / f"expert_{k}_best.pth"

    @property
    def fusion_module(self) -> Path:
        return self.directory / "fusion" / "fusion_module_best.pth"

    @property
    def adapters(self) -> Path:
        """Of features of different sizes to one; where they are of one, there is no such file."""
        return self.directory / "fusion" / "adapters_best.pth"

    @property
    def global_head(self) -> Path:
        return self.directory / "global" / "global_head_best.pth"

    @property
    def network(self) -> Path:
        """Of a row that is a single network, in place of all the above."""
        return self.directory / "network_best.pth"

    @property
    def manifest(self) -> Path:
        return self.directory / "manifest.json"

    @property
    def checkpoint(self) -> Path:
        return self.directory / "checkpoint.pth"


@dataclass(frozen=True)
class Layout:
    """The file tree below one output directory.

    Several launches may work there at once, on other rows: the first keeps its status where people
    look for it; `launch` names one of the others, which keep theirs apart.
    """

    output_dir: Path
    launch: str = ""
    elsewhere: Path | None = None  # where what is measured goes; None: to the study

    @property
    def measured(self) -> Path:
        """The folder of what is measured of the study, and of nothing that it is."""
        return self.elsewhere or self.output_dir

    @property
    def recipe(self) -> Path:
        return self.output_dir / "recipe.yaml"

    @property
    def splits(self) -> Path:
        return self.output_dir / "splits"

    @property
    def expert_checkpoints(self) -> Path:
        return self.output_dir / "expert_checkpoints"

    @property
    def status(self) -> Path:
        return (self._launch_state if self.launch else self.output_dir) / "status.json"

    @property
    def state(self) -> Path:
        """Bookkeeping for fusionrun alone: heartbeats, outcomes, experts' resume state."""
        return self.output_dir / ".fusionrun"

    @property
    def launches(self) -> Path:
        """Of launches beside the first."""
        return self.state / "launches"

    @property
    def _launch_state(self) -> Path:
        return self.launches / self.launch if self.launch else self.state

    def lock(self, name: str = "") -> Path:
        """Held by a launch: its row's called `name`, the "status", or without one the folder's.

        The folder's is shared by all launches, and was 0.1's only one.
        """
        return self.state / "locks" / f"{name}.lock" if name else self.state / "lock"

    @property
    def recipe_lock(self) -> Path:
        """Held by whoever adds rows to the study, or writes the tables of all of them."""
        return self.state / "recipe.lock"

    def selection(self, task: str) -> Path:
        """The rows that `--rerun failed` found among those of a launch that begins with `task`.

        For the launch's restarts.
        """
        return self.state / "selections" / f"{task}.json"

    def heartbeat(self, rank: int) -> Path:
        return self._launch_state / "ranks" / f"{rank}.json"

    def rank_device(self, rank: int) -> Path:
        """What a rank computes on, and how often that broke its process."""
        return self._launch_state / "devices" / f"{rank}.json"

    @property
    def outcomes(self) -> Path:
        return self.state / "outcomes"

    def outcome(self, task: str) -> Path:
        return self.outcomes / f"{task}.json"

    def crashes(self, task: str) -> Path:
        return self.state / "crashes" / f"{task}.json"

    def wandb_run(self, model: str, name: str) -> Path:
        """Which Weights & Biases run a row's (its variant) or an expert's numbers go to."""
        return self.state / "wandb" / label_of(model) / f"{name}.json"

    def row(self, model: str, variant: str) -> RowFiles:
        """`variant` is the fusion type; -seed<n>, ... follow where the recipe varies them."""
        label = label_of(model)
        family = f"{label}_fusions"
        csv = self.output_dir / "csv_logs" / family / f"{label}_{variant}_training_log.csv"
        return RowFiles(self.output_dir / family / variant, csv)

    def expert_csv(self, model: str, k: int, seed: int | None = None) -> Path:
        label = label_of(model)
        folder = self.output_dir / "csv_logs" / f"{label}_experts" / seed_folder(seed)
        return folder / f"{label}_expert_{k}_training_log.csv"

    def expert_resume(self, model: str, k: int, seed: int | None = None) -> Path:
        folder = self.state / "experts" / label_of(model) / seed_folder(seed)
        return folder / f"expert_{k}_checkpoint.pth"

    def task_log(self, task: str) -> Path:
        return self.output_dir / "logs" / f"{task}.log"

    def rank_log(self, rank: int) -> Path:
        """What ranks other than the first print, who owns the terminal; empty ones are removed."""
        beside = f"-{self.launch}" if self.launch else ""
        return self.output_dir / "logs" / f"rank-{rank}{beside}.log"

    def tensorboard(self, task: str) -> Path:
        return self.output_dir / "tensorboard" / task

    def measured_row(self, model: str, variant: str) -> Path:
        """The folder of a row's answers, and of its manifest with what is measured today."""
        return self.measured / f"{label_of(model)}_fusions" / variant

    def predictions(self, model: str, variant: str) -> Path:
        """A row's answers on the test and validation images, for `evaluate`."""
        return self.measured_row(model, variant) / "predictions.npz"

    def results(self, suffix: str) -> Path:
        return self.measured / f"results.{suffix}"

    def evaluation(self, suffix: str) -> Path:
        return self.measured / f"evaluation.{suffix}"

    def robustness(self, suffix: str) -> Path:
        return self.measured / f"robustness.{suffix}"

    def preview(self, suffix: str) -> Path:
        return self.measured / f"preview.{suffix}"

    def report(self, suffix: str) -> Path:
        return self.measured / f"report.{suffix}"


def seed_folder(seed: int | None) -> str:
    """Below their model's folder, where experts lie that were trained with a seed of their own."""
    return "" if seed is None else f"seed-{seed}"


def expert_file(checkpoint_dir: Path, model: str, k: int, seed: int | None = None) -> Path:
    """Where expert `k` is written before fusion: <checkpoint_dir>/<model>/expert_<k>_best.pth."""
    return checkpoint_dir / label_of(model) / seed_folder(seed) / f"expert_{k}_best.pth"


@dataclass(frozen=True)
class ExpertFiles:
    """The experts' files of one architecture that are there: numbered, of one name."""

    paths: dict[int, Path]  # by the number in their name
    count: int  # of the study's experts
    is_ours: bool  # where the study itself writes such files too
    is_given: bool = False  # experts.pattern names them: used as they are, whatever trained them

    @property
    def first(self) -> int:
        """The number of expert 0."""
        last = self.count in self.paths
        # the study, or another that shares the folder, may just not have trained expert 0 yet
        whole = all(number in self.paths for number in range(1, self.count + 1))
        return 1 if 0 not in self.paths and (whole if self.is_ours else last) else 0

    @property
    def is_certain(self) -> bool:
        """Whether the numbers that are there tell which one is expert 0."""
        return self.is_ours or 0 in self.paths or self.count in self.paths

    def expert(self, k: int) -> Path | None:
        """The file of expert `k`."""
        return self.paths.get(k + self.first)


def expert_sets(
    checkpoint_dir: Path,
    model: str,
    seed: int | None,
    *,
    count: int,
    pattern: str | None,
    split: str,
) -> Iterator[ExpertFiles]:
    """All that may be `model`'s experts before fusion, what is to be taken first.

    In our layout, then by `pattern`, a text with {model} and {k} below `checkpoint_dir`, else under
    GMF's names. Those of a `seed` that isn't the recipe's are in our layout alone.
    """
    ours, gmf = EXPERT_NAMES
    models = [label_of(model), *([GMF_MODELS[model]] if model in GMF_MODELS else [])]
    names = [ours + ending for ending in ENDINGS]
    if seed is not None:
        names = [name.replace("/", f"/{seed_folder(seed)}/") for name in names]
    elif pattern is not None:
        names.append(pattern)
    else:
        for each in GMF_SPLITS[split]:
            names += [gmf.replace("{split}", each) + ending for ending in ENDINGS]
    for name in names:
        for called in models:
            paths = {k: checkpoint_dir / name.format(model=called, k=k) for k in range(count + 1)}
            # a link to nothing is somebody's expert too, whose disk isn't mounted
            there = {number: path for number, path in paths.items() if os.path.lexists(path)}
            if there:
                is_ours = expert_file(checkpoint_dir, model, 0, seed) == paths[0]
                given = pattern if pattern is not None and seed is None else ""
                is_given = checkpoint_dir / given.format(model=called, k=0) == paths[0]
                yield ExpertFiles(there, count, is_ours, is_given)
