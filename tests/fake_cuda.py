"""A card that isn't there: `fake_cuda` makes torch believe in it, and sees what would wait for it.

Tensors are fakes: they have a shape, a type and a device, and no numbers. What a card would be
asked to do is dispatched as it would be there, by autocast, autograd and optimizers alike.
"""

import contextlib
import warnings
from collections.abc import Iterator, Mapping
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensor, FakeTensorMode
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode

CUDA = torch.device("cuda", 0)

# what needs numbers of the card's before the host can go on, whatever it is given
READS = {
    "_local_scalar_dense",
    "_unique",
    "_unique2",
    "allclose",
    "bincount",
    "equal",
    "is_nonzero",
    "masked_select",
    "nonzero",
    "unique_consecutive",
    "unique_dim",
}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}
WITHOUT_A_FAKE = {"_fused_sgd_", "_fused_adamw_"}  # change what they are given, and return nothing


class Watch(TorchDispatchMode):
    """Collects in `waits` what would make the host wait for the card.

    That is a number read, a shape that depends on numbers, a copy between host and card that isn't
    asynchronous, and an operation that takes tensors of both. A whole number read is 0, another -1.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        self._pinned: list[Any] = []  # storages

    def tolist(self, tensor: Tensor) -> Any:
        """All of its numbers are one read."""
        if tensor.is_cuda:
            self.waits.append("tolist reads numbers")
        shape = list(tensor.shape)
        numbers: Any = _answer(tensor.dtype)
        while shape:
            numbers = [numbers] * shape.pop()
        return numbers

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        name = func.overloadpacket.__name__
        if name == "is_pinned":
            return self._is_pinned(args[0])
        if name == "_pin_memory":
            return self._pin(args[0].clone())
        if kwargs.get("pin_memory"):
            return self._pin(func(*args, **{**kwargs, "pin_memory": False}))
        if name in ("_to_copy", "copy_"):
            return self._copy(func, name, args, kwargs)
        given = [t for t in _pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        # a single number of the host's travels with the call
        devices = {t.device.type for t in given if t.dim() or t.device.type == "cuda"}
        if "cuda" in devices:
            self._note(name, args, kwargs, devices)
        if name == "_local_scalar_dense":
            with contextlib.suppress(DataDependentOutputException):
                return func(*args, **kwargs)  # a constant's
            return _answer(args[0].dtype)
        return None if name in WITHOUT_A_FAKE else func(*args, **kwargs)

    def _note(self, name: str, args: Any, kwargs: dict[str, Any], devices: set[str]) -> None:
        if name in READS or (name == "repeat_interleave" and kwargs.get("output_size") is None):
            self.waits.append(f"{name} reads numbers")
        if name in INDEXING and _by_mask(*args):
            self.waits.append(f"{name} by a mask reads numbers")
        if len(devices) > 1:
            self.waits.append(f"{name} takes tensors of host and card")

    def _copy(self, func: Any, name: str, args: Any, kwargs: dict[str, Any]) -> Any:
        result = func(*args, **kwargs)
        source = args[1] if name == "copy_" else args[0]
        if source.device.type == result.device.type:
            return result
        is_asked = kwargs.get("non_blocking") or (name == "copy_" and True in args[2:])
        if is_asked and name == "_to_copy" and result.device.type == "cpu":
            self._pin(result)  # as torch does by itself
        if not is_asked or not self._is_pinned(result if source.is_cuda else source):
            self.waits.append(
                f"a copy from {source.device.type} to {result.device.type} is waited for"
            )
        return result

    def _pin(self, tensor: Tensor) -> Tensor:
        self._pinned.append(tensor.untyped_storage())
        return tensor

    def _is_pinned(self, tensor: Tensor) -> bool:
        storage = tensor.untyped_storage()
        return any(storage._cdata == pinned._cdata for pinned in self._pinned)


def _answer(dtype: torch.dtype) -> bool | int | float:
    if dtype == torch.bool:
        return False
    return -1.0 if dtype.is_floating_point else 0


def _by_mask(tensor: Tensor, indices: Any, value: Tensor | None = None, *_: Any) -> bool:
    """Whether numbers say how many there are; one number of the host's only fills the mask."""
    masked = any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in indices)
    return masked and (value is None or value.numel() > 1 or value.is_cuda)


def _backward(tensor: Tensor, gradient: Tensor | None = None, *_: Any, **__: Any) -> None:
    """What autograd's engine does, node by node: the real one asks a driver for its streams."""
    root: Any = tensor.grad_fn
    edges, stack = {root: 0}, [root]  # that lead into each node
    while stack:
        for following, _place in stack.pop().next_functions:
            if following is not None:
                if following not in edges:
                    stack.append(following)
                edges[following] = edges.get(following, 0) + 1
    start = torch.ones_like(tensor) if gradient is None else gradient
    sums: dict[Any, dict[int, Tensor]] = {root: {tensor.output_nr: start}}
    ready = [root]
    with torch.no_grad():
        while ready:
            node = ready.pop()
            given = sums.pop(node, {})
            fitted = [
                None if i not in given else given[i].sum_to_size(wanted.shape).to(wanted.dtype)
                for i, wanted in enumerate(node._input_metadata)
            ]
            found = node(*fitted)
            found = found if isinstance(found, tuple) else (found,)
            for (following, place), each in zip(node.next_functions, found, strict=False):
                if following is None:
                    continue
                if each is not None:
                    of_node = sums.setdefault(following, {})
                    of_node[place] = of_node[place] + each if place in of_node else each
                edges[following] -= 1
                if not edges[following]:
                    ready.append(following)


@contextlib.contextmanager
def fake_cuda(capability: tuple[int, int] = (9, 0)) -> Iterator[Watch]:
    """In here torch has one card of that compute capability, and all tensors are fakes."""
    watch = Watch()
    is_native = capability >= (8, 0)
    answers: dict[str, Any] = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda device: None,
        "get_device_capability": lambda device=None: capability,
        "get_device_name": lambda device=None: "Fake GPU",
        "is_bf16_supported": lambda including_emulation=True: is_native or including_emulation,
        "mem_get_info": lambda device=None: (2**34, 2**34),
        "memory_allocated": lambda device=None: 0,
        "memory_reserved": lambda device=None: 0,
        "max_memory_allocated": lambda device=None: 0,
        "max_memory_reserved": lambda device=None: 0,
        "reset_peak_memory_stats": lambda device=None: None,
        "empty_cache": lambda: None,
        "manual_seed": lambda seed: None,
        "manual_seed_all": lambda seed: None,
        "synchronize": lambda device=None: watch.waits.append("synchronize"),
    }
    # autograd looks once for the devices that it has threads for; one that it found here, which
    # isn't there, would keep later tests from training in forked processes
    torch.ones(1, requires_grad=True).sum().backward()
    with contextlib.ExitStack() as stack:
        for name, answer in answers.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, answer))
        for owner, name, value in (
            (torch.cuda.amp.common, "amp_definitely_not_available", lambda: False),
            (torch.autograd, "backward", _backward),
            (torch._C, "_current_graph_task_id", lambda: 0),  # by which checkpoints know it
            (FakeTensor, "tolist", lambda tensor: watch.tolist(tensor)),
            (FakeTensorMode, "avoid_device_init", True),  # no tensor makes torch look for a driver
            # Module.to() refuses to change what is referred to weakly, as fakes are
            (torch.utils.weakref, "getweakrefs", lambda tensor: []),
        ):
            stack.enter_context(mock.patch.object(owner, name, value))
        stack.enter_context(warnings.catch_warnings())
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        stack.enter_context(watch)
        yield watch
