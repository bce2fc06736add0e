"""Parts of a data set, stratified by class."""

import numpy as np
import pytest

from fusionrun.data.datasets import DataError, load_dataset
from fusionrun.data.datasets.subset import stratified_subset
from tests.unit.data.cifar_archives import unpack


def test_a_subset_is_even_over_the_classes_and_drawn_with_its_seed():
    labels = np.array([0] * 50 + [1] * 30 + [2] * 3)
    first = stratified_subset(labels, 33, 1, "data.train_images")
    assert len(set(first.tolist())) == 33 and (np.diff(first) > 0).all()
    # three of the small class are all there is; the others share the rest evenly
    assert np.bincount(labels[first]).tolist() == [15, 15, 3]
    assert np.array_equal(first, stratified_subset(labels, 33, 1, "data.train_images"))
    assert not np.array_equal(first, stratified_subset(labels, 33, 2, "data.train_images"))
    assert np.array_equal(stratified_subset(labels, None, 1, "data.train_images"), np.arange(83))
    with pytest.raises(DataError, match=r"data\.test_images is 84, .* 83"):
        stratified_subset(labels, 84, 1, "data.test_images")


def test_a_subset_of_files_has_its_own_fingerprint_and_images(tmp_path, official):
    files, _, _ = official["cifar10"]
    unpack(tmp_path, files)
    whole = load_dataset("cifar10", root=tmp_path)
    part = load_dataset("cifar10", root=tmp_path, train_images=20, test_images=10)
    assert len(part.train_labels) == 20 and len(part.test_labels) == 10
    assert part.fingerprint != whole.fingerprint
    kept = {image.numpy().tobytes() for image in part.train_images}
    assert kept <= {image.numpy().tobytes() for image in whole.train_images}
    assert part.mean == whole.mean
