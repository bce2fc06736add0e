"""Errors as torch and the libraries below it word them."""

import numpy as np
import pytest
import torch

from fusionrun.common.device_errors import has_broken_process, is_out_of_memory

HINT = (
    "\nCUDA kernel errors might be asynchronously reported at some other API call, so the "
    "stacktrace below might be incorrect.\nFor debugging consider passing CUDA_LAUNCH_BLOCKING=1"
    "\nCompile with `TORCH_USE_CUDA_DSA` to enable device-side assertions.\n"
)
NCCL = "NCCL error in: NCCLUtils.cpp:94, unhandled cuda error, NCCL version 2.27.5\nLast error:\n"
MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total"),
    torch.OutOfMemoryError("of whatever device"),
    torch.AcceleratorError(f"CUDA error: out of memory{HINT}"),
    RuntimeError("CUDA driver error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    RuntimeError("Unable to find a valid cuDNN algorithm to run convolution"),
    RuntimeError("FIND was unable to find an engine to execute this computation after trying 9"),
    RuntimeError(f"{NCCL}Cuda failure 2 'out of memory'"),
    RuntimeError(f"{NCCL}Failed to CUDA calloc async 608 bytes"),
    RuntimeError("HIP out of memory. Tried to allocate 20.00 MiB"),
    RuntimeError("MPS backend out of memory (MPS allocated: 5 GB)"),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: "
        "you tried to allocate 4503599627370496 bytes. Error code 12 (Cannot allocate memory)"
    ),
    MemoryError("Unable to allocate 8.00 PiB for an array"),
]
BROKEN = [
    torch.AcceleratorError(f"CUDA error: device-side assert triggered{HINT}"),
    torch.AcceleratorError("of whatever device"),
    RuntimeError(f"CUDA error: device-side assert triggered{HINT}"),  # as torch before 2.8 had it
    RuntimeError(f"CUDA error: an illegal memory access was encountered{HINT}"),
    RuntimeError(f"CUDA error: uncorrectable ECC error encountered{HINT}"),
    RuntimeError(f"CUDA error: unspecified launch failure{HINT}"),
    RuntimeError(f"CUDA error: misaligned address{HINT}"),
    RuntimeError(f"CUDA error: unknown error{HINT}"),
    RuntimeError("CUDA error: CUDA-capable device(s) is/are busy or unavailable"),
    RuntimeError("CUDA error: invalid program counter"),
    RuntimeError("CUDA error: hardware stack error"),
    RuntimeError("CUDA error: the launch timed out and was terminated"),
    RuntimeError("CUDA driver error: an illegal instruction was encountered"),
    RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm( handle`"),
    RuntimeError("CUDA error: CUBLAS_STATUS_INTERNAL_ERROR when calling `cublasGemmEx`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
    RuntimeError("cuDNN error: CUDNN_STATUS_MAPPING_ERROR"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR"),
    RuntimeError("cuFFT error: CUFFT_EXEC_FAILED"),
    RuntimeError(f"{NCCL}Cuda failure 700 'an illegal memory access was encountered'"),
    RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"),
    RuntimeError("HIP error: the operation cannot be performed in the present state"),
    RuntimeError("the context is no longer usable"),
    RuntimeError("No CUDA GPUs are available"),
    torch.cuda.DeferredCudaCallError("CUDA call failed lazily at initialization with error: 3"),
]
THE_TASKS_OWN = [
    RuntimeError(f"CUDA error: no kernel image is available for execution on the device{HINT}"),
    torch.AcceleratorError(f"CUDA error: invalid argument{HINT}"),
    RuntimeError("CUDA error: invalid configuration argument"),
    RuntimeError("CUDA error: operation not permitted when stream is capturing"),
    RuntimeError("CUDA error: CUBLAS_STATUS_NOT_SUPPORTED when calling `cublasLtMatmul`"),
    RuntimeError("CUDA error: CUBLAS_STATUS_INVALID_VALUE when calling `cublasSgemm( handle`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED. This error may appear if you passed in"),
    RuntimeError("cuDNN error: CUDNN_STATUS_BAD_PARAM"),
    RuntimeError("Expected all tensors to be on the same device, but found cuda:0 and cpu!"),
    RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)"),
    AssertionError("Torch not compiled with CUDA enabled"),
    ValueError("out of memory of my own list; no CUDA error"),
    KeyError("CUDA error"),
]


@pytest.mark.parametrize("error", MEMORY, ids=str)
def test_memory_that_ran_out(error: Exception) -> None:
    assert is_out_of_memory(error)
    assert not has_broken_process(error)


@pytest.mark.parametrize("error", BROKEN, ids=str)
def test_a_process_that_no_one_can_trust(error: Exception) -> None:
    assert has_broken_process(error)
    assert not is_out_of_memory(error)


@pytest.mark.parametrize("error", THE_TASKS_OWN, ids=str)
def test_what_is_the_tasks_own(error: Exception) -> None:
    assert not has_broken_process(error)
    assert not is_out_of_memory(error)


def test_real_ones_of_the_host() -> None:
    with pytest.raises(RuntimeError) as torchs:
        torch.empty(1 << 50)
    with pytest.raises(MemoryError) as numpys:
        np.empty(1 << 58)
    assert is_out_of_memory(torchs.value) and is_out_of_memory(numpys.value)


def wrapped(inner: Exception, *, said: bool) -> Exception:
    """`inner` as a plug-in passes it on: raised from it, or just while it's handled."""
    try:
        try:
            raise inner
        except Exception as error:
            if said:
                raise ValueError("my layer failed") from error
            raise KeyError("while cleaning up")  # noqa: B904 - that is the case
    except (ValueError, KeyError) as outer:
        return outer


def test_what_another_error_hides() -> None:
    memory, broken = torch.OutOfMemoryError("x"), RuntimeError("CUDA error: misaligned address")
    assert is_out_of_memory(wrapped(memory, said=True))
    assert not is_out_of_memory(wrapped(memory, said=False))  # less at a time wouldn't help it
    assert has_broken_process(wrapped(broken, said=True))
    assert has_broken_process(wrapped(broken, said=False))


def test_errors_in_a_circle_end() -> None:
    first, second = ValueError("a"), ValueError("b")
    first.__cause__, second.__context__ = second, first
    assert not has_broken_process(first) and not is_out_of_memory(first)
