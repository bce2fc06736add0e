"""The data set by its listing or its files' headers, its split by the stored record."""

from collections.abc import Iterator

import numpy as np
import torch

from fusionrun.common.distributed import mig_slices
from fusionrun.common.memory import free_host_memory
from fusionrun.common.text import plural, size
from fusionrun.data.datasets import DataError, Survey
from fusionrun.data.split_files import require_fitting_split
from fusionrun.data.splits import draw_holdout, make_splits
from fusionrun.launch.checks.finding import Finding, split_message
from fusionrun.launch.checks.folders import write_problem
from fusionrun.study.context import split_rules, survey_images
from fusionrun.study.study import Study


class DataChecks:
    """Checks that build on what the survey of the data set finds; nothing is decoded."""

    def __init__(self, study: Study) -> None:
        self._study = study
        self.survey = Survey(study.recipe.data.name)

    def look(self) -> Iterator[Finding]:
        """The data set is there, of the right kind, and can be listed."""
        try:
            self.survey = survey = survey_images(self._study)
        except DataError as error:
            found, advice = split_message(str(error))
            yield Finding("data", "fail", found, advice)
            return
        problem = ""
        if survey.cache_bytes and survey.cache_dir is not None:
            problem = write_problem(survey.cache_dir)
        if problem:
            advice = "set data.cache_dir to a folder that you may write to"
            yield Finding("data", "fail", f"data.cache_dir ({survey.cache_dir}): {problem}", advice)
            return
        train, test, classes = survey.train_images, survey.test_images, survey.num_classes
        known = {"training images": train, "test images": test, "classes": classes}
        told = [f"{count} {what}" for what, count in known.items() if count is not None]
        yield Finding("data", "pass", ", ".join([survey.name, *told, *survey.notes]))

    def split(self) -> Iterator[Finding]:
        """The stored split, where there is one, is this data's and this recipe's."""
        directory, survey = self._study.splits_dir, self.survey
        try:
            stored = require_fitting_split(
                directory,
                split_rules(self._study.recipe),
                dataset_name=self._study.source(self._study.recipe.data.name),
                at_most=survey.train_images,
                fingerprint=survey.fingerprint,
            )
            if not stored and survey.train_images is not None:  # what would be drawn has no gap
                rules, count = split_rules(self._study.recipe), survey.train_images
                labels = np.arange(count) % (survey.num_classes or 1)
                make_splits(labels, rules, draw_holdout(count, rules))
        except DataError as error:
            yield Finding("splits", "fail", *split_message(str(error)))
            return
        found = f"as stored in {directory}" if stored else f"`train` writes them to {directory}"
        yield Finding("splits", "pass", found)

    def memory(self, ranks: int, devices: int) -> Iterator[Finding]:
        """The images fit, once for each rank that holds its own: on the host, on a GPU.

        `devices` are the GPUs that the ranks of this machine share; 0: they use the CPU.
        """
        train, test = self.survey.train_bytes, self.survey.test_bytes
        if train is None or test is None:
            return
        advice = "start fewer ranks, or set a smaller data.image_size or data.train_images"
        free = free_host_memory()
        copies = 1 if self.survey.shared else ranks
        need = copies * (train + test)
        if free is not None and copies > 1 and need > free:
            found = f"{plural(ranks, 'rank')} hold {size(train + test)} of images each"
            yield Finding("memory", "fail", f"{found}, {size(free)} are free", advice)
        if devices:
            room = min(torch.cuda.get_device_properties(i).total_memory for i in range(devices))
            together = -(-ranks // max(devices, len(mig_slices())))  # one of which is seen here
            if together * (train + test) > room:
                found = f"{plural(together, 'rank')} put {size(train + test)} of images each"
                yield Finding("memory", "fail", f"{found} on a GPU of {size(room)}", advice)
