"""fusionrun: train many expert-fusion models side by side in one torchrun launch."""

__version__ = "0.1.0"
