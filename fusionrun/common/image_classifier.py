"""What a network that was loaded from a file can be asked: the classes of images as they are."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

BATCH = 512  # images at once
# the logit of a class that a network has no output for: a probability of 0 in every float type, and
# still a number, so that means and losses of several networks stay numbers
NO_OUTPUT = -1e4


def has_output(logits: Tensor) -> Tensor:
    """Of logits, of whatever shape, those that a network has an output for: bool."""
    return logits > NO_OUTPUT / 2


def answered(head: nn.Module, features: Tensor) -> Tensor:
    """Features (N, D) -> the head's logits (N, C); those that are measured in float32.

    Under autocast the layers before it compute in half precision; with the three digits of
    bfloat16 logits of several classes would be equal. Where gradients are made nothing differs.
    """
    device = features.device.type
    if head.training or torch.is_grad_enabled() or not torch.is_autocast_enabled(device):
        logits: Tensor = head(features)
        return logits
    # not torch.autocast, at whose end what was cast is forgotten, in all threads
    torch.set_autocast_enabled(device, False)
    try:
        measured: Tensor = head(features.float())
        return measured
    finally:
        torch.set_autocast_enabled(device, True)


@dataclass(frozen=True)
class TrainedOn:
    """The images that a network learned from."""

    classes: tuple[str, ...]
    mean: tuple[float, ...]  # of the pixels in 0..1, per channel
    std: tuple[float, ...]
    image_size: int  # pixels, height and width


class ImageClassifier(nn.Module):
    """A network that, once it knows what it was trained on, normalises its images by itself."""

    trained_on: TrainedOn | None = None
    # of a network that knows what it was trained on, beside a plug-in's own of the same names
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_size: int

    def know(self, trained_on: TrainedOn) -> None:
        """Keep what the network was trained on, for `predict`; nothing of it is a weight."""
        self.trained_on = trained_on
        for name, value in vars(trained_on).items():
            if not hasattr(self, name):  # a plug-in may have a buffer called `mean`
                setattr(self, name, value)

    def class_logits(self, images: Tensor) -> Tensor:
        """Normalised images (N, 3, H, W) -> the network's answer, logits (N, C)."""
        raise NotImplementedError

    @torch.no_grad()
    def predict(self, images: Tensor) -> Tensor:
        """Images (N, 3, S, S), S = `image_size`, as uint8 or as floats in 0..1 -> (N, C) float32.

        The classes' probabilities, in the order of `classes`, on the network's device, where the
        images are brought. They are normalised here, and asked about in evaluation mode whatever
        mode the network is in. Raises ValueError for images of another kind, and for a network
        that doesn't know what it was trained on: one that wasn't loaded from a file.
        """
        known = self.trained_on
        if known is None:
            raise ValueError(
                "this network wasn't loaded from a file, so it isn't known how its images are "
                "normalised; use load_model or load_expert, or call it with normalised images"
            )
        _check(images, known.image_size)
        weight = next(self.parameters())
        mean, std = (
            torch.tensor(values, device=weight.device).view(1, 3, 1, 1)
            for values in (known.mean, known.std)
        )
        in_training = [module for module in self.modules() if module.training]
        self.eval()
        try:
            answers = []
            for batch in torch.split(images, BATCH):
                pixels = batch.to(weight.device, torch.float32)
                pixels = pixels / 255 if images.dtype == torch.uint8 else pixels
                logits = self.class_logits(((pixels - mean) / std).to(weight.dtype))
                answers.append(logits.float().softmax(dim=1))
        finally:
            for module in in_training:
                module.training = True
        return torch.cat(answers)


def _check(images: Tensor, size: int) -> None:
    expected = f"expected a tensor (N, 3, {size}, {size}), uint8 or floats in 0..1"
    if not isinstance(images, Tensor):
        raise ValueError(f"images: found {type(images).__name__}, {expected}")
    if images.shape[1:] != (3, size, size):
        raise ValueError(f"images: found shape {tuple(images.shape)}, {expected}")
    if images.dtype == torch.uint8:
        return
    if not images.is_floating_point():
        raise ValueError(f"images: found {images.dtype}, {expected}")
    if images.numel():
        low, high = (float(value) for value in images.aminmax())
        if not (low >= 0 and high <= 1):  # NaN is neither
            raise ValueError(
                f"images: found values from {low:g} to {high:g}, {expected}; they are normalised "
                f"here"
            )
