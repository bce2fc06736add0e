"""Shared by all tests: one torch thread, so that small networks on few cores don't trip over it."""

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    torch.set_num_threads(1)
