"""No step waits for the card: every architecture, fusion and precision, on a card that isn't there.

A host that waits once a step leaves the card idle for as long as it takes to ask for the next one.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
)
from torch.utils._python_dispatch import TorchDispatchMode

from fusionrun.api.open_study import process_as_found
from fusionrun.data.augmentation.policies import AUGMENTATIONS
from fusionrun.experts import BUILDERS
from fusionrun.fusions import FUSIONS, FusionModel
from fusionrun.launch.trainers import expert_trainer, row_trainer
from fusionrun.study import context as context_module
from fusionrun.study.context import RunContext, open_context
from fusionrun.study.planning import plan_study
from fusionrun.study.recipe_yaml import load_recipe
from fusionrun.study.tasks import ExpertTask, Task
from fusionrun.training import trainer as loop
from fusionrun.training.epoch import BestEpoch, EpochMetrics
from fusionrun.training.inference import collect_logits
from fusionrun.training.saving import tensors
from fusionrun.training.trainer import Trainer
from tests.fake_cuda import CUDA, fake_cuda
from tests.tiny import write_recipe
from tests.unit.training.test_trainer import Diary

# what the recipe asks for, on a card of which compute capability, makes convolutions of what type
PRECISIONS: dict[str, tuple[str, tuple[int, int], torch.dtype]] = {
    "fp32": ("off", (9, 0), torch.float32),
    "bf16": ("auto", (8, 0), torch.bfloat16),
    "fp16": ("auto", (7, 0), torch.float16),
}
every_precision = pytest.mark.parametrize("precision", PRECISIONS)
# what fakes answer that have no numbers
IMPOSSIBLE = (DataDependentOutputException, DynamicOutputShapeException)
MIXED = "[densenet, resnet]"
ROWS = [(model, fusion) for model in (*BUILDERS, MIXED) for fusion in FUSIONS]
CONTROLS = ("frozen", "detached")  # of the first of them


@pytest.fixture(scope="module")
def on_host(tmp_path_factory: pytest.TempPathFactory) -> RunContext:
    """Of a study with a row of every architecture with every fusion, and of different ones."""
    path = write_recipe(tmp_path_factory.mktemp("device_steps"))
    rows = [f"{{model: {model}, fusion: {fusion}}}" for model, fusion in ROWS]
    rows += [f"{rows[0][:-1]}, control: {control}}}" for control in CONTROLS]
    plain = ("fusion.augmentation=none", "experts.augmentation=none")  # they have a test below
    changes = [f"rows=[{', '.join(rows)}]", "fusion.dim=8", f"output_dir={path.parent / 'out'}"]
    recipe = load_recipe(path, [*changes, *plain])
    study = plan_study(recipe, "recipe")
    return open_context(study, torch.device("cpu"), 1, progress=lambda text: None)


@pytest.fixture(autouse=True)
def nothing_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which reads, but once a second."""
    monkeypatch.setattr(loop, "REPORT_SECONDS", math.inf)


def trainer_on_card(context: RunContext, task: Task, amp: str = "auto") -> Trainer:
    """What trains the task where `fake_cuda` is."""
    recipe = context.study.recipe
    recipe = replace(recipe, runtime=replace(recipe.runtime, amp=amp))
    context = replace(
        context,
        study=replace(context.study, recipe=recipe),
        device=CUDA,
        images=context.images.to(CUDA),
        labels=context.labels.to(CUDA),
    )
    if isinstance(task, ExpertTask):
        return expert_trainer(context, task, Diary())
    experts = [context.build_expert(each.model, k=each.k) for each in task.row.experts]
    return row_trainer(context, task, Diary(), experts, [])


def train(trainer: Trainer, steps: int) -> None:
    for batch in islice(trainer.start_epoch(), steps):
        trainer.train_step(batch)
        trainer.after_step()


def types_of_convolutions(model: nn.Module) -> set[torch.dtype]:
    """Filled while the model runs."""
    types: set[torch.dtype] = set()
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda module, given, output: types.add(output.dtype))
    return types


@every_precision
@pytest.mark.parametrize(("model", "fusion"), ROWS)
def test_no_step_of_a_row_waits(
    on_host: RunContext, model: str, fusion: str, precision: str
) -> None:
    amp, capability, dtype = PRECISIONS[precision]
    with fake_cuda(capability) as watch:
        trainer = trainer_on_card(
            on_host, on_host.study.row_tasks[ROWS.index((model, fusion))], amp
        )
        types = types_of_convolutions(trainer.model)
        watch.waits.clear()  # of weights that were moved
        train(trainer, steps=1)
        assert watch.waits == []
        assert types == {dtype}
        precision = trainer.optimisation.precision
        collect_logits([trainer.model], trainer.loaders.validation, precision)
        assert watch.waits == []


@every_precision
@pytest.mark.parametrize("model", BUILDERS)
def test_no_step_of_an_expert_waits(on_host: RunContext, model: str, precision: str) -> None:
    amp, capability, dtype = PRECISIONS[precision]
    (task,) = (t for t in on_host.study.tasks if t.name == f"expert-{model}-1")
    with fake_cuda(capability) as watch:
        trainer = trainer_on_card(on_host, task, amp)
        types = types_of_convolutions(trainer.model)
        watch.waits.clear()
        train(trainer, steps=2)  # the second finds the optimizer's state
        assert watch.waits == []
        assert types == {dtype}


@pytest.mark.parametrize("control", CONTROLS)
def test_no_step_of_a_control_waits(on_host: RunContext, control: str) -> None:
    (task,) = (task for task in on_host.study.row_tasks if task.row.control == control)
    with fake_cuda() as watch:
        trainer = trainer_on_card(on_host, task)
        watch.waits.clear()
        train(trainer, steps=2)
        assert watch.waits == []


@every_precision
@pytest.mark.parametrize("model", BUILDERS)
def test_no_step_that_computes_experts_twice_waits(
    on_host: RunContext, model: str, precision: str
) -> None:
    amp, capability, dtype = PRECISIONS[precision]
    task = on_host.study.row_tasks[ROWS.index((model, "concatenation"))]
    with fake_cuda(capability) as watch:
        trainer = trainer_on_card(on_host, task, amp)
        assert trainer.model.recompute_experts()
        types = types_of_convolutions(trainer.model)
        watch.waits.clear()
        train(trainer, steps=2)
        assert watch.waits == []
        assert types == {dtype}


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_no_batch_waits(on_host: RunContext, name: str) -> None:
    """In micro-batches, too."""
    with fake_cuda() as watch:
        trainer = trainer_on_card(
            on_host, on_host.study.row_tasks[ROWS.index(("resnet", "simpleAddition"))]
        )
        trainer.loaders.train.augmentation = AUGMENTATIONS[name]
        trainer.fitting.micro_batch = 4
        watch.waits.clear()
        train(trainer, steps=2)
        assert watch.waits == []


def test_the_watch_sees_what_waits() -> None:
    with fake_cuda() as watch:
        there, mask = torch.ones(3, device=CUDA), torch.ones(3, device=CUDA) > 0
        here = torch.ones(3)
        waiting: list[Callable[[], Any]] = [
            there.sum().item,
            there.tolist,
            there.cpu,
            lambda: float(there[0]),
            lambda: bool(mask.any()),
            lambda: int(there.argmax()),
            lambda: torch.equal(there, there),
            lambda: there[[0, 1]],
            lambda: there[here.long()],
            lambda: there.copy_(here),
            lambda: here.to(CUDA),
            lambda: here.to(CUDA, non_blocking=True),  # not from pinned memory
            lambda: here.pin_memory().to(CUDA),
            lambda: torch.tensor([1.0], device=CUDA),
            lambda: torch.from_numpy(np.ones(3)).to(CUDA),
            lambda: mask.nonzero(),
            lambda: there[mask],
            torch.cuda.synchronize,
        ]
        for act in waiting:
            watch.waits.clear()
            with contextlib.suppress(*IMPOSSIBLE):
                act()
            assert len(watch.waits) == 1, act
        watch.waits.clear()
        there.add_(1).masked_fill_(mask, 0.0).mul_(torch.tensor(2.0))
        there.to("cpu", non_blocking=True)
        here.pin_memory().to(CUDA, non_blocking=True)
        there.copy_(here.pin_memory(), non_blocking=True)
        torch.full((3,), 0.5, device=CUDA).clamp(max=1)
        assert watch.waits == []


class CastsOfWeights(TorchDispatchMode):
    """How often one of the model's is made another type."""

    count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        is_cast = func.overloadpacket is torch.ops.aten._to_copy
        self.count += is_cast and isinstance(args[0], nn.Parameter)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("images", [99, 2])  # at a time
def test_an_evaluation_casts_each_weight_once(
    on_host: RunContext, monkeypatch: pytest.MonkeyPatch, images: int
) -> None:
    monkeypatch.setattr(RunContext, "evaluation_batch", images)
    with fake_cuda():
        trainer = trainer_on_card(on_host, on_host.study.row_tasks[0])
        with CastsOfWeights() as casts:
            trainer.validate()
        model = trainer.model
        assert isinstance(model, FusionModel)
        heads = {model.global_head, *(expert.classifier for expert in model.experts)}  # in float32
        layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
        layers = [layer for layer in layers if layer not in heads]
        biases = sum(layer.bias is not None for layer in layers)
        assert casts.count == len(layers) + biases


@pytest.mark.parametrize(("size", "images"), [(16, 2048), (32, 2048), (48, 910), (224, 512)])
def test_a_card_is_asked_about_many_small_images(
    on_host: RunContext, size: int, images: int
) -> None:
    data = replace(on_host.data, test_images=torch.zeros(1, 3, size, size, dtype=torch.uint8))
    assert replace(on_host, data=data, device=CUDA).evaluation_batch == images
    assert replace(on_host, data=data).evaluation_batch == 512


def test_a_report_reads_twice(on_host: RunContext, monkeypatch: pytest.MonkeyPatch) -> None:
    """What became of the updates, and the epoch's sums; an epoch's end validates as well."""
    with fake_cuda((7, 0)) as watch:
        trainer = trainer_on_card(on_host, on_host.study.row_tasks[0])
        trainer.checkpointing = replace(trainer.checkpointing, every_epochs=99)
        train(trainer, steps=1)
        monkeypatch.setattr(loop, "REPORT_SECONDS", 0.0)
        watch.waits.clear()
        trainer.after_step()
        assert watch.waits == ["tolist reads numbers"] * 2
        trainer.finish_epoch()
        assert len(watch.waits) <= 9


def places(best: BestEpoch) -> set[str]:
    return {value.device.type for value in best.state.values()}


def test_the_best_epoch_stays_on_a_card_with_room_to_spare(
    on_host: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody waits for it there; on the host it's waited for once, however many weights it has."""
    metrics = EpochMetrics(1, {}, 1.0, [1.0], [50.0], [1.0], [50.0], 8, 1.0, 2.0, "")
    with fake_cuda() as watch:
        trainer = trainer_on_card(on_host, on_host.study.row_tasks[0])
        weights = trainer.model.state_dict()
        read_from_file = {name: torch.empty_like(v, device="cpu") for name, v in weights.items()}
        trainer.best = BestEpoch(1, 40.0, 1.0, read_from_file)
        for _ in range(2):  # a new one, and in place of another
            watch.waits.clear()
            trainer.best.become(metrics, trainer.model)
            assert (watch.waits, places(trainer.best)) == ([], {"cuda"})
        assert trainer.best.leave_device() and not trainer.best.leave_device()
        assert places(trainer.best) == {"cpu"}
        watch.waits.clear()
        trainer.best.become(metrics, trainer.model)  # doesn't come back
        assert (watch.waits, places(trainer.best)) == (["synchronize"], {"cpu"})
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device=None: (2**30, 2**34))
        trainer.best = BestEpoch()
        trainer.best.become(metrics, trainer.model)
        assert places(trainer.best) == {"cpu"}


def test_the_best_epoch_goes_to_the_host_where_a_card_is_full(
    on_host: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics = EpochMetrics(1, {}, 1.0, [1.0], [50.0], [1.0], [50.0], 8, 1.0, 2.0, "")
    healthy = torch.empty_like

    def empty_like(value: Tensor, **where: Any) -> Tensor:
        if not where:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return healthy(value, **where)

    with fake_cuda():
        trainer = trainer_on_card(on_host, on_host.study.row_tasks[0])
        monkeypatch.setattr(torch, "empty_like", empty_like)
        trainer.best.become(metrics, trainer.model)
        assert places(trainer.best) == {"cpu"}


def test_a_save_reads_numbers_and_copies_behind_the_card(
    on_host: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host waits for what the epoch's sums are, and for no weight."""
    events: list[str] = []
    event = mock.Mock()
    event.record.side_effect = lambda stream: events.append(f"recorded on {stream}")
    event.synchronize.side_effect = lambda: events.append("waited for")
    with fake_cuda() as watch:
        trainer = trainer_on_card(on_host, on_host.study.row_tasks[0])
        file = trainer.checkpointing.file
        written: list[Any] = []
        monkeypatch.setattr(file, "save", lambda state, dump: written.append(state))
        monkeypatch.setattr(torch.cuda, "Event", lambda blocking: event)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"{device}'s stream")
        train(trainer, steps=1)
        for _ in range(2):
            watch.waits.clear()
            trainer.save()
            assert all("reads numbers" in each for each in watch.waits) and len(watch.waits) < 9
            trainer._saver.settle()
        assert events == ["recorded on cuda:0's stream", "waited for"] * 2
        first, second = ([*tensors(state)] for state in written)
        wanted = [
            *trainer.model.state_dict(),
            *trainer.optimisation.optimizer.state_dict()["state"],
        ]
        assert len(first) >= len(wanted) and {value.device.type for value in first} == {"cpu"}
        assert [id(value) for value in first] == [id(value) for value in second]  # kept pinned room


@pytest.fixture
def opened(
    on_host: RunContext, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., contextlib.AbstractContextManager[None]]:
    """A context in which the study, with this `runtime`, is opened on a card."""

    @contextlib.contextmanager
    def open_on_card(**runtime: Any) -> Iterator[None]:
        recipe = on_host.study.recipe
        recipe = replace(recipe, runtime=replace(recipe.runtime, **runtime))
        data = on_host.data, on_host.splits
        monkeypatch.setattr(context_module, "load_data", lambda *arguments, **named: data)
        with fake_cuda(), process_as_found():
            study = replace(on_host.study, recipe=recipe)
            open_context(study, CUDA, 1, progress=lambda text: None)
            yield

    return open_on_card


def test_deterministic_does_not_fill_every_new_tensor(opened: Any) -> None:
    with opened(deterministic=True):
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.utils.deterministic.fill_uninitialized_memory
    assert torch.utils.deterministic.fill_uninitialized_memory


@pytest.mark.parametrize("products", [True, False])  # as the caller has them
def test_tf32_off_is_float32_and_what_the_caller_had_comes_back(
    opened: Any, products: bool
) -> None:
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    try:
        matmul.allow_tf32 = products
        with opened():
            assert (cudnn.allow_tf32, matmul.allow_tf32) == (True, products)
        with opened(tf32=False):
            assert (cudnn.allow_tf32, matmul.allow_tf32) == (False, False)
        assert (cudnn.allow_tf32, matmul.allow_tf32) == (True, products)
    finally:
        matmul.allow_tf32 = False


def test_torchs_newer_way_to_forbid_tf32_is_respected(opened: Any) -> None:
    """A notebook has set it so; torch raises where its older way is asked afterwards."""
    cudnn: Any = torch.backends.cudnn
    try:
        cudnn.conv.fp32_precision = "ieee"
        with opened():
            pass
        assert cudnn.conv.fp32_precision != "tf32"
    finally:
        cudnn.allow_tf32 = True
