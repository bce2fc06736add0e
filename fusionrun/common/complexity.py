"""What a network costs, counted rather than timed."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional


def multiply_accumulates(module: nn.Module, image_size: int) -> int:
    """Multiply-accumulate operations of convolutions and linear layers for one image forward.

    `module` comes on the meta device and is spent afterwards: these layers give zeros of the right
    shape, and all else runs on the CPU, for on the meta device a mere sum makes torch import its
    compiler, which takes a second.
    """
    total = 0

    def counting(layer: nn.Conv2d | nn.Linear) -> Callable[[Tensor], Tensor]:
        def forward(x: Tensor) -> Tensor:
            nonlocal total
            output = x.new_zeros(_output_shape(layer, x))
            total += output.numel() * layer.weight[0].numel()
            return output

        return forward

    # memory that nobody fills or reads is never really there; `to_empty` would import it, too
    module._apply(lambda x: torch.empty(x.shape, dtype=x.dtype))  # type: ignore[no-untyped-call]
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.forward = counting(layer)  # type: ignore[assignment]
    with torch.no_grad():
        module.eval()(torch.zeros(1, 3, image_size, image_size))
    return total


def _output_shape(layer: nn.Conv2d | nn.Linear, x: Tensor) -> tuple[int, ...]:
    if isinstance(layer, nn.Linear):
        return (*x.shape[:-1], layer.out_features)
    kernel = torch.zeros(1, 1, *layer.kernel_size)  # one channel says how large the maps get
    one = functional.conv2d(x[:, :1], kernel, None, layer.stride, layer.padding, layer.dilation)
    return (len(x), layer.out_channels, *one.shape[2:])
