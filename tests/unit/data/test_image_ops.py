"""Operations on a batch against torchvision's own functions."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fusionrun.data.augmentation import image_ops as ops
from fusionrun.data.augmentation.batch import KERNELS, affine_matrices


def pictures(count=24, size=32, seed=0):
    """Smooth, noisy, two-valued and constant images: histograms of every kind."""
    g = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 5, 5, generator=g) * 1.4 - 0.2
    smooth = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bilinear")
    noise = torch.rand(count, 3, size, size, generator=g) - 0.5
    images = ((smooth + noise * torch.rand(count, 1, 1, 1, generator=g)) * 255).clamp(0, 255)
    images = images.to(torch.uint8)
    images[0], images[1:2], images[2:3] = 0, 255, 77
    images[3:4] = (images[3:4] > 128).to(torch.uint8) * 255
    images[4:5, :, 5:9] = 200
    return images


def difference(found: Tensor, expected: Tensor) -> Tensor:
    return (found.int() - expected.int()).abs()


@pytest.mark.parametrize(
    ("ours", "theirs", "values", "largest", "share"),
    [
        (ops.brightness, "adjust_brightness", (0.1, 0.5, 0.73, 1.0, 1.27, 1.9), 0, 0),
        # float32 sums in another order tip a few pixels over a whole number
        (ops.saturation, "adjust_saturation", (0.01, 0.5, 0.73, 1.0, 1.27, 1.9), 1, 0.002),
        (ops.contrast, "adjust_contrast", (0.01, 0.5, 0.73, 1.0, 1.27, 1.9), 1, 0.002),
        (ops.sharpness, "adjust_sharpness", (0.01, 0.5, 0.73, 1.0, 1.27, 1.9), 1, 0.002),
        (ops.hue, "adjust_hue", (-0.5, -0.1, -0.037, 0.0, 0.05, 0.1, 0.4), 1, 0.01),
        (ops.posterize, "posterize", (2, 4, 5, 7, 8), 0, 0),
        (ops.solarize, "solarize", (0, 1, 128, 179, 255), 0, 0),
        (ops.autocontrast, "autocontrast", (None,), 0, 0),
        (ops.equalize, "equalize", (None,), 0, 0),
    ],
)
def test_operation_equals_torchvision(ours, theirs, values, largest, share):
    from torchvision.transforms.v2 import functional

    images = pictures()
    before = images.clone()
    # neighbours get different values: a parameter applied to the wrong sample shows
    row = [values[i % len(values)] for i in range(len(images))]
    expected = torch.stack(
        [
            getattr(functional, theirs)(image, *(() if value is None else (value,)))
            for image, value in zip(images, row, strict=True)
        ]
    )
    if theirs == "posterize":
        row = [(0xFF << (8 - bits)) & 0xFF for bits in row]
    found = ours(images) if values == (None,) else ours(images, torch.tensor(row))
    assert found.dtype == torch.uint8
    assert torch.equal(images, before), "the input was changed"
    delta = difference(found, expected)
    assert delta.max() <= largest
    assert (delta > 0).float().mean() <= share


@pytest.mark.parametrize("size", [32, 33])
def test_geometry_equals_torchvision(size):
    from torchvision.transforms.v2 import functional

    cases = [
        *(("rotate", v) for v in (-135, -90, -30, -9, 4.5, 45, 90, 117)),
        *((n, v) for n in ("shear_x", "shear_y") for v in (-0.99, -0.3, 0.09, 0.3, 0.66)),
        *((n, v) for n in ("translate_x", "translate_y") for v in (-32, -14.5, -1.07, 4.35, 7)),
    ]
    images = pictures(len(cases), size).clamp(min=1)  # so that black can only be fill
    expected = []
    for image, (name, value) in zip(images, cases, strict=True):
        if name == "rotate":
            expected.append(functional.rotate(image, value))
            continue
        degrees = math.degrees(math.atan(value))
        shear = [degrees * (name == "shear_x"), degrees * (name == "shear_y")]
        move = [int(value) * (name == "translate_x"), int(value) * (name == "translate_y")]
        sheared = name.startswith("shear")
        expected.append(
            functional.affine(
                image,
                angle=0,
                translate=[0, 0] if sheared else move,
                scale=1,
                shear=shear if sheared else [0, 0],
                center=[0, 0] if sheared else None,
            )
        )
    names, values = zip(*cases, strict=True)
    matrix = affine_matrices(np.array(names), np.array(values, dtype=float), size, size)
    found = ops.affine(images, torch.from_numpy(matrix).long().T)
    for case, one, other in zip(cases, found, torch.stack(expected), strict=True):
        # a source exactly between two pixels may be rounded either way
        wrong = (difference(one, other).amax(0) > 0).float().mean()
        limit = 0 if case[0].startswith("translate") or case[1] in (-90, 90) else 0.005
        assert wrong <= limit, case


def test_crop_is_a_window_of_the_reflected_image():
    images = pictures(16)
    top = torch.tensor([0, 8, 4, 1] * 4)
    left = torch.tensor([0, 8, 4, 7, 3, 0, 8, 5] * 2)
    flip = torch.tensor([0, 1] * 8)
    padded = torch.nn.functional.pad(images.float(), (4, 4, 4, 4), mode="reflect").byte()
    found = ops.crop_flip(images, top, left, flip, 4)
    for n in range(16):
        window = padded[n, :, top[n] : top[n] + 32, left[n] : left[n] + 32]
        assert torch.equal(found[n], window.flip(-1) if flip[n] else window)


class LikeAGPU(TorchDispatchMode):
    """Divides by a number of the host's, and takes means, as CUDA does: times the reciprocal."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.ops.aten.div.Tensor and not isinstance(args[1], Tensor):
            return args[0] * torch.tensor(1.0 / args[1])
        if func is torch.ops.aten.mean.dim:
            count = math.prod(args[0].shape[d] for d in args[1])
            return torch.ops.aten.sum.dim_IntList(*args, **kwargs) * torch.tensor(1.0 / count)
        return func(*args, **kwargs)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("size", [32, 28])
def test_a_gpu_that_multiplies_by_reciprocals_gives_the_same_bytes(kernel, size):
    images = pictures(400, size, seed=5)
    names = np.array(["rotate"] * len(images))
    factor = torch.linspace(*((-0.5, 0.5) if kernel == "hue" else (0, 2)), len(images))
    matrix = affine_matrices(names, np.linspace(-90, 90, len(images)), size, size)
    parameters = torch.from_numpy(matrix).long().T, torch.arange(len(images)) % 256, factor
    expected = KERNELS[kernel](images.clone(), *parameters)
    with LikeAGPU():
        assert torch.equal(KERNELS[kernel](images.clone(), *parameters), expected)
