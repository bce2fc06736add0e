"""What a GPU is asked for, recorded as a CUDA graph: the only calls of CUDA's that do so."""

import contextlib
import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

WARM_UP = 2  # calls on the stream that is recorded, before they are

Replay = Callable[[int], Tensor]  # seed -> losses, which the next replay overwrites


def record(
    program: Callable[[], Tensor], seed: Callable[[int], None], device: torch.device
) -> Replay:
    """Record on a GPU what `program` asks of it; returns what has just that done again.

    `program` is called several times, with random numbers of no meaning. Its result and whatever
    else it leaves on the device stay in their places. A replay draws what the program would draw
    after `seed`, from a generator of its own: several graphs may be on their way at once. Raises
    whatever the program raised; then the device is as if nothing had been recorded.
    """
    graph, pool = torch.cuda.CUDAGraph(), torch.cuda.MemPool()
    current = torch.cuda.current_stream(device)
    # the default one can't be recorded. Of others no second is taken: libraries keep a workspace
    # for each of them, which whoever else came by that stream would write to meanwhile
    is_default = current == torch.cuda.default_stream(device)
    stream = torch.cuda.Stream(device) if is_default else current  # type: ignore[no-untyped-call]
    generator = torch.cuda.default_generators[current.device_index]
    own = torch.Generator(device).graphsafe_get_state()

    @contextmanager
    def after_each_other() -> Iterator[None]:
        stream.wait_stream(current)
        try:
            with torch.cuda.stream(stream):
                yield
        finally:  # whoever puts back what was moved mustn't be overtaken by it
            current.wait_stream(stream)

    with drawing_from(own, generator), after_each_other():
        seed(0)
        for _ in range(WARM_UP):
            program()
        gc.collect()  # what is freed while recording could end it
        gc.disable()
        torch.backends.cudnn.benchmark = False  # so does trying algorithms out
        # only this thread's mistakes count: others read the clock of a copy meanwhile
        recording = torch.cuda.graph(graph, pool.id, stream, "thread_local")  # type: ignore[arg-type]
        try:
            with recording:
                result = program()
        except Exception as error:  # the end of a broken recording hides what broke it
            forget(graph, pool, current.device_index)
            raise error.__context__ or error from None
        finally:
            gc.enable()

    def replay(number: int) -> Tensor:
        with drawing_from(own, generator):
            seed(number)
            graph.replay()
        return result

    return replay


@contextmanager
def drawing_from(own: torch.Generator, generator: torch.Generator) -> Iterator[None]:
    """In here what draws from `generator` moves `own` instead."""
    shared = generator.graphsafe_get_state()
    generator.graphsafe_set_state(own)
    try:
        yield
    finally:
        generator.graphsafe_set_state(shared)


def forget(graph: torch.cuda.CUDAGraph, pool: torch.cuda.MemPool, device: int) -> None:
    """Undo what a recording that broke has begun; newer versions of torch have by themselves.

    In older ones the allocator would go on recording, and give back no memory from then on; that of
    `pool` would be lost (pytorch pull requests 180395 and 190308).
    """
    graph.reset()
    with contextlib.suppress(RuntimeError):  # it isn't recording any more
        torch._C._cuda_endAllocateToPool(device, pool.id)
    while pool.use_count() > 1:  # of the graph, beside its owner's
        torch._C._cuda_releasePool(device, pool.id)
