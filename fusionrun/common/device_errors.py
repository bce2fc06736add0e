"""What an accelerator's error says: memory that ran out, or a process that can't be trusted."""

from collections.abc import Iterator

import torch

# Texts, since one kind of failure comes as several types: torch.OutOfMemoryError of torch's own
# allocator, torch.AcceleratorError of CUDA's calls, RuntimeError of all libraries.
_MEMORY = (
    "out of memory",
    "can't allocate memory",  # the CPU's
    "Cannot allocate memory",
    "std::bad_alloc",
    "ALLOC_FAILED",  # cuBLAS, cuDNN before 9, cuSPARSE, cuSOLVER, cuFFT
    "ALLOCATION_FAILED",  # cuDNN 9
    "INSUFFICIENT_RESOURCES",  # cuSPARSE
    "_STATUS_NOT_INITIALIZED",  # of a handle that found no room
    "CUDA_ERROR_OUT_OF_MEMORY",
    "cudaErrorMemoryAllocation",
    "Failed to CUDA calloc",  # NCCL
    "NVML_SUCCESS ==",  # torch's allocator, when it can't ask how much is left
    "Unable to find a valid cuDNN algorithm",  # each one that was tried ran out of memory
    "was unable to find an engine to execute this computation",
)
_DEVICE = (
    "CUDA error",
    "CUDA driver error",
    "CUDA unknown error",
    "CUDA call failed lazily",
    "No CUDA GPUs are available",
    "cudaError",
    "CUDA_ERROR_",
    "cuda runtime error",
    "Cuda failure",
    "cuDNN error",
    "cuFFT error",
    "cusolver error",
    "CUDNN_STATUS_",
    "CUBLAS_STATUS_",
    "CUSPARSE_STATUS_",
    "CUSOLVER_STATUS_",
    "NCCL error",
    "Triton Error [",
    "HIP error",
    "hipError",
    "MIOPEN_STATUS_",
    "HIPBLAS_STATUS_",
    "device-side assert",
    "illegal memory access",
    "misaligned address",
    "unspecified launch failure",
    "uncorrectable ECC",
    "no longer usable",
    "fallen off the bus",
)
_PROGRAMS = ("device-side assert", "illegal memory access", "misaligned address")
# the call was refused, the context is as before: the error of whoever made it
_REFUSED = (
    "no kernel image is available",
    "invalid argument",
    "invalid configuration argument",
    "invalid device function",
    "invalid resource handle",
    "too many resources requested",
    "operation not supported",
    "unsupported toolchain",
    "stream is capturing",
    "stream capture",
    "STATUS_NOT_SUPPORTED",
    "STATUS_BAD_PARAM",
    "STATUS_INVALID_VALUE",
    "ARCH_MISMATCH",
    "VERSION_MISMATCH",
    "INVALID_SIZE",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on a GPU or the host: with less at a time it may go on."""
    return any(_lacks_memory(each) for each in _causes(error))


def has_broken_process(error: BaseException) -> bool:
    """Whether nothing that this process computes on its device can be trusted from now on.

    So after a device-side assert, an illegal address, an ECC error, a lost card: CUDA answers
    every later call with the same error (CUDA C++ Programming Guide, "Error Checking"). Not so
    after a lack of memory, nor after a call that was refused. Errors count that `error` was
    raised from, or while they were handled: whoever caught them couldn't cure them.
    """
    return _breaking(error) is not None


def broken_by(error: BaseException, device: torch.device | None = None) -> str:
    """What broke this process, in a line; "" where `error` is the task's own.

    The device, if it's known, is asked, too: a plug-in may have swallowed what it said, and a
    kernel that is still to fail does so here.
    """
    cause = _breaking(error)
    if cause is not None:
        return _line(cause)
    return device_problem(device) if device is not None else ""


def device_problem(device: torch.device) -> str:
    """Why nothing can be computed on `device`, in a line; "" where something can."""
    if device.type == "cuda":
        try:
            torch.cuda.synchronize(device)
        except Exception as error:
            cause = _breaking(error)
            return "" if cause is None else _line(cause)
    return ""


def is_programs(words: str) -> bool:
    """Whether what broke a process is a mistake of what it computed, not the card's."""
    return any(text in words for text in _PROGRAMS)


def _line(error: BaseException) -> str:
    """What the error says before its advice to programmers."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _breaking(error: BaseException) -> BaseException | None:
    return next(filter(_breaks, _causes(error, handled=True)), None)


def _lacks_memory(error: BaseException) -> bool:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and _says(error, _MEMORY)


def _breaks(error: BaseException) -> bool:
    is_device = isinstance(error, torch.AcceleratorError | torch.cuda.DeferredCudaCallError) or (
        isinstance(error, RuntimeError) and _says(error, _DEVICE)
    )
    return is_device and not _lacks_memory(error) and not _says(error, _REFUSED)


def _says(error: BaseException, texts: tuple[str, ...]) -> bool:
    words = str(error)
    return any(text in words for text in texts)


def _causes(error: BaseException, *, handled: bool = False) -> Iterator[BaseException]:
    """`error`, what it was raised from and, if `handled`, what was being handled then."""
    todo, seen = [error], set[int]()
    while todo:
        each = todo.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        todo += filter(None, [each.__cause__, each.__context__ if handled else None])
