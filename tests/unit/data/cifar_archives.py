"""Small archives in place of CIFAR's official ones, and processes that load them."""

import hashlib
import http.server
import io
import multiprocessing
import os
import pickle
import tarfile
import threading
import time

import numpy as np
import pytest
import torch

from fusionrun.data.datasets import DataError, load_dataset

fork = multiprocessing.get_context("fork")


def random_images(name, seed=0, train=50, test=20):
    """{"train" and "test": (images (N, 3, 32, 32) uint8, labels)}."""
    rng = np.random.default_rng(seed)
    count = 100 if name == "cifar100" else 10
    arrays = {}
    for part, total in (("train", train), ("test", test)):
        images = rng.integers(0, 256, (total, 3, 32, 32), dtype=np.uint8)
        arrays[part] = images, rng.integers(0, count, total).tolist()
    return arrays


def cifar_files(name, arrays):
    """{path in the archive: bytes} in the published pickle format."""
    fine = name == "cifar100"
    folder = "cifar-100-python" if fine else "cifar-10-batches-py"
    count = 100 if fine else 10
    files = {}
    parts = (
        {"train": ["train"], "test": ["test"]}
        if fine
        else {
            "train": [f"data_batch_{k}" for k in range(1, 6)],
            "test": ["test_batch"],
        }
    )
    for part, names in parts.items():
        images, labels = arrays[part]
        data, total = images.reshape(-1, 3072), len(labels)
        for k, file in enumerate(names):
            rows = slice(k * total // len(names), (k + 1) * total // len(names))
            entry = {"data": data[rows], "batch_label": file, "filenames": []}
            if fine:
                entry |= {"fine_labels": labels[rows], "coarse_labels": labels[rows]}
            else:
                entry["labels"] = labels[rows]
            files[f"{folder}/{file}"] = pickle.dumps(entry, protocol=2)
    classes = [f"class {k}" for k in range(count)]
    meta = {"fine_label_names": classes} if fine else {"label_names": classes}
    files[f"{folder}/{'meta' if fine else 'batches.meta'}"] = pickle.dumps(meta, protocol=2)
    return files


def archive_of(files):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for path, content in files.items():
            entry = tarfile.TarInfo(path)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.headers.get("Method") != "HEAD":  # torchvision's way of looking for redirects
            self.server.requests.append(self.path)
            time.sleep(0.3)  # long enough for the other processes to arrive
        content = self.server.files.get(self.path)
        self.send_response(200 if content else 404)
        self.send_header("Content-Length", str(len(content or b"")))
        self.end_headers()
        self.wfile.write(content or b"")

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.files, server.requests = {}, []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def official(server, monkeypatch):
    """Make torchvision take small archives for the official ones; returns name -> its contents."""
    from torchvision import datasets

    contents = {}
    for name, source in (("cifar100", datasets.CIFAR100), ("cifar10", datasets.CIFAR10)):
        arrays = random_images(name)
        files = cifar_files(name, arrays)
        archive = archive_of(files)
        server.files[f"/{source.filename}"] = archive
        monkeypatch.setattr(
            source, "url", f"http://127.0.0.1:{server.server_port}/{source.filename}"
        )
        monkeypatch.setattr(source, "tgz_md5", hashlib.md5(archive).hexdigest())
        take_for_official(monkeypatch, source, files)
        contents[name] = files, arrays, archive
    return contents


def take_for_official(monkeypatch, source, files):
    """Make torchvision's class `source` expect the checksums of these files, once unpacked."""
    sums = {path.split("/")[1]: hashlib.md5(files[path]).hexdigest() for path in files}
    for table in ("train_list", "test_list"):
        entries = [[file, sums[file]] for file, _ in getattr(source, table)]
        monkeypatch.setattr(source, table, entries)
    monkeypatch.setattr(source, "meta", {**source.meta, "md5": sums[source.meta["filename"]]})


def unpack(root, files):
    for path, content in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)


def check_cifar(data, arrays):
    for part in ("train", "test"):
        images, labels = arrays[part]
        found = getattr(data, f"{part}_images")
        assert found.dtype == torch.uint8
        assert found.device.type == "cpu"
        assert np.array_equal(found.numpy(), images)
        assert getattr(data, f"{part}_labels").dtype == torch.int64
        assert getattr(data, f"{part}_labels").tolist() == labels


def load_in_child(name, root, options, results):
    lines = []
    try:
        data = load_dataset(name, root=root, progress=lines.append, **options)
        total = int(data.train_images.sum()), data.fingerprint
    except DataError as error:
        total = str(error)
    results.put((os.getpid(), total, lines))


def start_children(count, *arguments):
    results = fork.Queue()
    children = [
        fork.Process(target=load_in_child, args=(*arguments, results)) for _ in range(count)
    ]
    for child in children:
        child.start()
    answers = [results.get(timeout=60) for _ in children]
    for child in children:
        child.join(30)
    return answers
