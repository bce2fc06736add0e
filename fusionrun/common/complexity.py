"""What a network costs, counted rather than timed."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


def multiply_accumulates(module: nn.Module, image_size: int) -> int:
    """Multiply-accumulate operations of one image forward, in evaluation mode.

    Counted are convolutions, linear layers and products of matrices, among them attention's; not
    norms, activations, additions and pooling. `module` comes on the meta device and is spent
    afterwards: the plain layers give zeros of the right shape, and all else runs on the CPU, for on
    the meta device a mere sum makes torch import its compiler, which takes a second.
    """
    counted = _Products()

    def standing_in(layer: nn.Conv2d | nn.Linear) -> Callable[[Tensor], Tensor]:
        def forward(x: Tensor) -> Tensor:
            output = x.new_zeros(_output_shape(layer, x))
            counted.total += output.numel() * layer.weight[0].numel()
            return output

        return forward

    # zeros: indices among them must be valid ones. Memory that nobody fills or reads is never
    # really there; `to_empty` would import the compiler, too
    module._apply(lambda x: torch.zeros(x.shape, dtype=x.dtype))  # type: ignore[no-untyped-call]
    for layer in module.modules():
        # a subclass with a forward of its own may pad or rescale there: it runs
        plain = type(layer).forward in (nn.Conv2d.forward, nn.Linear.forward)
        if plain and isinstance(layer, nn.Conv2d | nn.Linear):
            layer.forward = standing_in(layer)  # type: ignore[assignment]
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # one operation that hides its products
    try:
        with torch.no_grad(), counted:
            module.eval()(torch.zeros(1, 3, image_size, image_size))
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
    return counted.total


class _Products(TorchFunctionMode):
    """Adds up what the operations that run multiply and accumulate.

    By torch's functions and not by what they dispatch to: a mode for that imports the compiler.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        if name in ("linear", "conv1d", "conv2d", "conv3d"):
            weight = args[1] if len(args) > 1 else kwargs["weight"]
            self.total += output.numel() * weight[0].numel()
        elif name in ("matmul", "__matmul__", "__rmatmul__", "mm", "bmm"):
            inner = args[0] if name != "__rmatmul__" else args[1]
            self.total += output.numel() * inner.shape[-1]
        elif name in ("addmm", "baddbmm"):
            self.total += output.numel() * args[1].shape[-1]
        elif name == "scaled_dot_product_attention":
            query, key, value = (*args, *(kwargs or {}).values())[:3]
            each = query.shape[-1] + value.shape[-1]
            self.total += query[..., 0].numel() * key.shape[-2] * each
        elif name == "multi_head_attention_forward":  # (tokens, images, features)
            query, key = args[0], args[1]
            asked, size, told = query[..., 0].numel(), query.shape[-1], key[..., 0].numel()
            self.total += 2 * (asked + told) * size**2 + 2 * asked * len(key) * size
        return output


def _output_shape(layer: nn.Conv2d | nn.Linear, x: Tensor) -> tuple[int, ...]:
    if isinstance(layer, nn.Linear):
        return (*x.shape[:-1], layer.out_features)
    sides = []
    for i, side in enumerate(x.shape[-2:]):
        padding = layer.padding if isinstance(layer.padding, str) else layer.padding[i]
        reach = layer.dilation[i] * (layer.kernel_size[i] - 1)
        around = reach if padding == "same" else 0
        if not isinstance(padding, str):
            around = 2 * padding
        sides.append((side + around - reach - 1) // layer.stride[i] + 1)
    return (len(x), layer.out_channels, *sides)
