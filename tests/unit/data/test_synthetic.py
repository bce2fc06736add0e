"""The procedural set: what it is a function of, and what can be learned from it."""

import pytest
import torch

from fusionrun.data.datasets import DataError, load_dataset


@pytest.fixture(autouse=True)
def nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield
    assert not list(tmp_path.iterdir())


def synthetic(**changes):
    arguments = {"num_classes": 6, "train_images": 60, "test_images": 30, **changes}
    return load_dataset("synthetic", root="data", **arguments)


def test_synthetic_is_a_function_of_its_arguments():
    first, again = synthetic(), synthetic()
    assert torch.equal(first.train_images, again.train_images)
    assert torch.equal(first.test_labels, again.test_labels)
    assert first.fingerprint == again.fingerprint
    for change in ({"seed": 1}, {"num_classes": 7}, {"train_images": 61}, {"image_size": 24}):
        other = synthetic(**change)
        assert other.fingerprint != first.fingerprint
        assert other.train_images.shape != first.train_images.shape or not torch.equal(
            other.train_images, first.train_images
        )


def test_synthetic_shapes_and_balance():
    data = synthetic(num_classes=7, train_images=100, test_images=50, image_size=40)
    assert data.train_images.shape == (100, 3, 40, 40)
    assert data.test_images.shape == (50, 3, 40, 40)
    assert data.train_images.dtype == torch.uint8
    counts = torch.bincount(data.train_labels, minlength=7)
    assert counts.max() - counts.min() <= 1
    assert data.train_labels[:20].tolist() != sorted(data.train_labels[:20].tolist())
    pixels = data.train_images.double() / 255
    assert data.mean == pytest.approx(pixels.mean((0, 2, 3)).tolist())
    flat = torch.cat([data.train_images, data.test_images]).flatten(1)
    assert len(flat.unique(dim=0)) == 150, "an image occurs twice"


@pytest.mark.parametrize("num_classes", [2, 25, 26, 100])
def test_synthetic_class_counts(num_classes):
    data = synthetic(num_classes=num_classes, train_images=100, test_images=100)
    assert len(data.classes) == len(set(data.classes)) == num_classes
    assert data.train_labels.unique().tolist() == list(range(num_classes))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"num_classes": 1}, "num_classes is 1"),
        ({"num_classes": 101}, "num_classes is 101"),
        ({"image_size": 15}, "image_size is 15"),
        ({"train_images": 5}, "train_images is 5"),
        ({"test_images": 0}, "test_images is 0"),
    ],
)
def test_synthetic_limits(changes, named):
    with pytest.raises(DataError, match=named):
        synthetic(**changes)


def accuracy(model, data, epochs, rate):
    """Trained for a few epochs with random mirror images, then counted on the test part."""
    torch.manual_seed(0)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (data.mean, data.std))
    train, test = (
        (part.float() / 255 - mean) / std for part in (data.train_images, data.test_images)
    )
    steps = epochs * -(-len(train) // 64)
    optimizer = torch.optim.SGD(model.parameters(), rate, momentum=0.9, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    for _ in range(epochs):
        for chosen in torch.randperm(len(train)).split(64):
            images = train[chosen].flip(-1) if torch.rand(()) < 0.5 else train[chosen]
            loss = torch.nn.functional.cross_entropy(model(images), data.train_labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    model.eval()
    with torch.no_grad():
        return (model(test).argmax(1) == data.test_labels).float().mean().item()


def test_synthetic_can_be_learned_but_not_from_single_pixels():
    data = load_dataset("synthetic", root="data", train_images=3000, test_images=600)

    def block(inputs, outputs):
        return [
            torch.nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
            torch.nn.BatchNorm2d(outputs),
            torch.nn.ReLU(),
            torch.nn.MaxPool2d(2),
        ]

    torch.manual_seed(0)
    network = torch.nn.Sequential(
        *block(3, 16),
        *block(16, 32),
        *block(32, 64),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(64, 20),
    )
    linear = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 20))
    by_network = accuracy(network, data, epochs=4, rate=0.1)
    by_pixels = accuracy(linear, data, epochs=4, rate=0.003)
    # chance is 0.05
    assert 0.25 < by_network < 0.97
    assert by_pixels < 0.6 * by_network
    assert by_pixels < 0.2
