"""The benchmark: every figure a ratio to a plain implementation, taken side by side in one run.

`GROUPS` are its parts in the order they run, with what each measures.
"""

GROUPS = {
    "data": "batches a second, by augmentation, against torchvision transforms in a DataLoader",
    "step": "a training step of each architecture, and augmentation's share of it",
    "epoch": "training and validation together, and evaluation alone",
    "overheads": "status, CSV, TensorBoard and checkpoints beside the training",
    "startup": "from torchrun to the first training step, against a bare program",
    "ranks": "four ranks at once against the same work one after another",
    "memory": "peak memory of a row, and copies of the data set on the machine",
    "growth": "makespan of the claim order, and what a row more costs the launch",
    "gpu": "on a GPU alone: steps in every way, whole commands, first epoch, saves, learning curve",
    "peers": "whole commands of other programs that train networks; only if named, some 15 minutes",
    "compiled": "on a GPU, steps with kernels made for them, however long it takes; only if named",
    "layout": "an expert's step with channels_last against contiguous tensors; only if named",
}
# what runtime.channels_last was decided by, what others' packages are needed for, what takes long
ON_REQUEST = frozenset({"layout", "peers", "compiled"})
