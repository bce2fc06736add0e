"""What is looked at, in this order: what may be wrong first, how fast it is last."""

from functools import partial

from tests.bench.measure import MODELS
from tests.gpu import card, figures, launches, numerics
from tests.gpu.part import Part

PARTS = (
    Part("card", 30, card.card, needs_gpu=False, alone=True),
    Part("float64", 60, numerics.float64, needs_gpu=False),
    Part("waits", 60, numerics.waits),
    Part("graphs", 60, numerics.graph_steps),
    Part("memory", 30, numerics.short_of_memory),
    Part("given_back", 40, numerics.given_back),
    Part("same_bits", 90, launches.same_bits, needs_gpu=False),
    Part("broken_task", 90, launches.broken_task, needs_gpu=False),
    Part("cuda_tests", 40, card.cuda_tests),
    Part("doctor", 40, card.doctor, needs_gpu=False),
    Part("demo", 90, launches.demo, needs_gpu=False),
    *(Part(f"step_{model}", 50, partial(figures.step, model), alone=True) for model in MODELS),
    Part("curve", 30, figures.curve, alone=True),
    Part("ranks", 40, figures.ranks, alone=True),
    Part("save", 20, figures.save, alone=True),
    Part("first_epoch", 60, figures.first_epoch, alone=True),
    Part("whole_command", 60, figures.whole_command, alone=True),
    Part("compiled_resnet", 80, partial(figures.compiled, "resnet"), alone=True),
)
