"""The logs that a recipe asks for can be written: said before an epoch is trained."""

import importlib.util
from collections.abc import Iterator

from fusionrun.launch.checks.finding import Finding
from fusionrun.logs.wandb_access import access_problem, effective_mode, package_problem
from fusionrun.study.study import Study


def check_loggers(study: Study, *, network: bool = True) -> Iterator[Finding]:
    """The packages are there; with `network`, W&B's server takes the key, if runs go online."""
    logs = study.recipe.logs
    if logs.tensorboard and importlib.util.find_spec("tensorboard") is None:
        advice = "run `pip install tensorboard`, or set logs.tensorboard=false"
        yield Finding("loggers", "warn", "tensorboard isn't installed: no charts", advice)
    mode = effective_mode(logs.wandb)
    if mode != logs.wandb:
        found = f"logs.wandb is {logs.wandb}, and {mode} here, as WANDB_MODE says"
        yield Finding("loggers", "warn", found)
    if mode == "off":
        return
    problem = package_problem()
    if problem is None and mode == "online" and network:
        problem = access_problem()
    if problem is not None:
        found, advice = problem
        yield Finding("loggers", "fail", f"logs.wandb is {mode}, but {found}", advice)
    else:
        yield Finding("loggers", "pass", f"Weights & Biases, {mode}")
