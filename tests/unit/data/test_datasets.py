"""Data sets from real files: official archives over HTTP, odd images, several processes."""

import functools
import hashlib
import http.server
import io
import json
import multiprocessing
import os
import pickle
import signal
import struct
import subprocess
import sys
import tarfile
import threading
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fusionrun.data.datasets import DATASETS, DataError, cache, load_dataset
from fusionrun.data.datasets.subset import stratified_subset

fork = multiprocessing.get_context("fork")


# ---------------------------------------------------------------- CIFAR archives


def cifar_files(name, seed=0, train=50, test=20):
    """{path in the archive: bytes} in the published pickle format, and the arrays within."""
    rng = np.random.default_rng(seed)
    fine = name == "cifar100"
    folder = "cifar-100-python" if fine else "cifar-10-batches-py"
    count = 100 if fine else 10
    arrays, files = {}, {}
    parts = (
        {"train": ["train"], "test": ["test"]}
        if fine
        else {
            "train": [f"data_batch_{k}" for k in range(1, 6)],
            "test": ["test_batch"],
        }
    )
    for part, names in parts.items():
        total = train if part == "train" else test
        data = rng.integers(0, 256, (total, 3072), dtype=np.uint8)
        labels = rng.integers(0, count, total).tolist()
        arrays[part] = data.reshape(-1, 3, 32, 32), labels
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
    return files, arrays


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

    def md5(content):
        return hashlib.md5(content).hexdigest()

    contents = {}
    for name, source in (("cifar100", datasets.CIFAR100), ("cifar10", datasets.CIFAR10)):
        files, arrays = cifar_files(name)
        archive = archive_of(files)
        server.files[f"/{source.filename}"] = archive
        monkeypatch.setattr(
            source, "url", f"http://127.0.0.1:{server.server_port}/{source.filename}"
        )
        monkeypatch.setattr(source, "tgz_md5", md5(archive))
        sums = {path.split("/")[1]: md5(content) for path, content in files.items()}
        for table in ("train_list", "test_list"):
            entries = [[file, sums[file]] for file, _ in getattr(source, table)]
            monkeypatch.setattr(source, table, entries)
        meta = {**source.meta, "md5": sums[source.meta["filename"]]}
        monkeypatch.setattr(source, "meta", meta)
        contents[name] = files, arrays, archive
    return contents


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


@pytest.mark.parametrize("name", ["cifar100", "cifar10"])
def test_cifar_is_downloaded_prepared_and_then_needs_no_source(tmp_path, official, server, name):
    _, arrays, _ = official[name]
    lines = []
    data = load_dataset(name, root=tmp_path / "d", download=True, progress=lines.append)
    check_cifar(data, arrays)
    assert data.name == name
    assert data.classes == tuple(f"class {k}" for k in range(len(data.classes)))
    assert len(data.classes) == (100 if name == "cifar100" else 10)
    assert len(server.requests) == 1
    assert any("downloading" in line for line in lines)
    server.files.clear()
    for file in (tmp_path / "d").glob("cifar*"):
        file.rename(tmp_path / file.name)  # the source may go once it is prepared
    again = load_dataset(name, root=tmp_path / "d", progress=lines.append)
    check_cifar(again, arrays)
    assert again.fingerprint == data.fingerprint
    assert len(server.requests) == 1


def test_published_normalisation(tmp_path, official):
    hundred = load_dataset("cifar100", root=tmp_path, download=True)
    assert hundred.mean == (0.5071, 0.4867, 0.4408)
    assert hundred.std == (0.2675, 0.2565, 0.2761)
    ten = load_dataset("cifar10", root=tmp_path, download=True)
    assert ten.mean == (0.4914, 0.4822, 0.4465)
    assert ten.std == (0.2470, 0.2435, 0.2616)
    assert ten.fingerprint != hundred.fingerprint


def test_extracted_files_and_lone_archives_need_no_network(tmp_path, official, server):
    files, arrays, archive = official["cifar100"]
    unpack(tmp_path / "a", files)
    check_cifar(load_dataset("cifar100", root=tmp_path / "a"), arrays)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "cifar-100-python.tar.gz").write_bytes(archive)
    check_cifar(load_dataset("cifar100", root=str(tmp_path / "b")), arrays)
    assert server.requests == []


def test_missing_data_names_folder_and_both_remedies(tmp_path, official, server):
    with pytest.raises(DataError) as error:
        load_dataset("cifar100", root=tmp_path / "none")
    message = str(error.value)
    for part in (
        str(tmp_path / "none"),
        "cifar-100-python",
        "data.download=true",
        "cifar-100-python.tar.gz",
    ):
        assert part in message
    assert server.requests == []


def test_a_corrupt_file_is_named(tmp_path, official):
    files, _, _ = official["cifar10"]
    unpack(tmp_path, files)
    bad = tmp_path / "cifar-10-batches-py" / "data_batch_3"
    bad.write_bytes(bad.read_bytes()[:-5])
    with pytest.raises(DataError, match=r"data_batch_3: wrong checksum.*data\.download=true"):
        load_dataset("cifar10", root=tmp_path)
    bad.unlink()
    with pytest.raises(DataError, match="data_batch_3: missing"):
        load_dataset("cifar10", root=tmp_path)


def test_a_partial_archive_is_named_and_replaced_by_a_download(tmp_path, official, server):
    _, arrays, archive = official["cifar100"]
    partial = tmp_path / "cifar-100-python.tar.gz"
    partial.write_bytes(archive[: len(archive) // 2])
    with pytest.raises(DataError, match=r"tar\.gz: found, but its checksum is wrong"):
        load_dataset("cifar100", root=tmp_path)
    check_cifar(load_dataset("cifar100", root=tmp_path, download=True), arrays)
    assert len(server.requests) == 1


def test_checksummed_files_of_another_format(tmp_path, official, monkeypatch):
    from torchvision import datasets

    files, _, _ = official["cifar100"]
    unpack(tmp_path, files)
    junk = b"no pickle at all"
    (tmp_path / "cifar-100-python" / "train").write_bytes(junk)
    monkeypatch.setattr(datasets.CIFAR100, "train_list", [["train", hashlib.md5(junk).hexdigest()]])
    with pytest.raises(DataError, match="cannot be read as cifar100"):
        load_dataset("cifar100", root=tmp_path)


@pytest.mark.parametrize("problem", ["gone", "wrong content", "no server"])
def test_a_failed_download_says_where_from_and_what_to_do(tmp_path, official, server, problem):
    if problem == "gone":
        server.files.clear()
    elif problem == "wrong content":
        server.files["/cifar-100-python.tar.gz"] = b"<html>log in first</html>"
    else:
        server.shutdown()
        server.server_close()
    with pytest.raises(DataError) as error:
        load_dataset("cifar100", root=tmp_path, download=True)
    assert f"127.0.0.1:{server.server_port}/cifar-100-python.tar.gz" in str(error.value)
    assert "by hand" in str(error.value)


def test_cifar_has_one_size(tmp_path):
    with pytest.raises(DataError, match=r"image_size is 64.*32x32"):
        load_dataset("cifar100", root=tmp_path, image_size=64)


# ---------------------------------------------------------------- several processes


def _load_in_child(name, root, options, results):
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
        fork.Process(target=_load_in_child, args=(*arguments, results)) for _ in range(count)
    ]
    for child in children:
        child.start()
    answers = [results.get(timeout=60) for _ in children]
    for child in children:
        child.join(30)
    return answers


@pytest.mark.parametrize("separate_caches", [False, True])
def test_processes_that_start_together_download_once(tmp_path, official, server, separate_caches):
    _, arrays, _ = official["cifar100"]
    results = fork.Queue()
    children = []
    for k in range(4):
        options = {"download": True, "cache_dir": tmp_path / f"cache{k * separate_caches}"}
        children.append(
            fork.Process(target=_load_in_child, args=("cifar100", tmp_path / "d", options, results))
        )
        children[-1].start()
    answers = [results.get(timeout=60) for _ in children]
    for child in children:
        child.join(30)
    assert server.requests == ["/cifar-100-python.tar.gz"]
    assert len({pid for pid, _, _ in answers}) == 4
    expected = int(arrays["train"][0].astype(int).sum())
    assert all(total[0] == expected for _, total, _ in answers)
    assert len({total[1] for _, total, _ in answers}) == 1
    said = [line for _, _, lines in answers for line in lines]
    assert sum("building" in line for line in said) == (4 if separate_caches else 1)
    assert any("waiting for another process" in line for line in said)


def test_a_failure_reaches_every_process(tmp_path, official):
    answers = start_children(3, "cifar100", tmp_path, {})
    assert all("cifar-100-python" in total for _, total, _ in answers)


def test_a_killed_build_leaves_nothing_that_is_taken_for_a_cache(tmp_path, official, monkeypatch):
    files, arrays, _ = official["cifar100"]
    unpack(tmp_path, files)

    def die_in_the_second_file():
        original, calls = np.save, []

        def save(file, array):
            calls.append(array)
            if len(calls) == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            original(file, array)

        monkeypatch.setattr(np, "save", save)
        load_dataset("cifar100", root=tmp_path)

    child = fork.Process(target=die_in_the_second_file)
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGKILL
    place = tmp_path / ".fusionrun_cache"
    assert list(place.glob(".cifar100.part-*")), "the build did not get far enough to test this"
    assert not (place / "cifar100").exists()
    check_cifar(load_dataset("cifar100", root=tmp_path), arrays)
    assert not list(place.glob(".cifar100.part-*"))


# ---------------------------------------------------------------- the cache


def test_prepared_images_are_shared_pages_and_private_when_written(tmp_path, official):
    files, arrays, _ = official["cifar100"]
    unpack(tmp_path, files)
    data = load_dataset("cifar100", root=tmp_path, cache_dir=tmp_path / "c")
    mapped = Path("/proc/self/maps").read_text()
    assert str(tmp_path / "c" / "cifar100" / "train_images.npy") in mapped
    data.train_images.zero_()
    check_cifar(load_dataset("cifar100", root=tmp_path, cache_dir=tmp_path / "c"), arrays)
    assert not (tmp_path / ".fusionrun_cache").exists()


def damage_truncate(folder):
    path = folder / "train_images.npy"
    path.write_bytes(path.read_bytes()[:-100])


def damage_meta(folder):
    (folder / "meta.json").write_text("{")


def damage_version(folder):
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps({**meta, "format_version": -1}))


def damage_missing(folder):
    (folder / "test_labels.npy").unlink()


def damage_shape(folder):
    np.save(folder / "test_labels.npy", np.zeros(3, dtype=np.int64))


@pytest.mark.parametrize(
    "damage", [damage_truncate, damage_meta, damage_version, damage_missing, damage_shape]
)
def test_a_damaged_cache_is_built_again(tmp_path, official, damage):
    files, arrays, _ = official["cifar100"]
    unpack(tmp_path, files)
    load_dataset("cifar100", root=tmp_path)
    damage(tmp_path / ".fusionrun_cache" / "cifar100")
    lines = []
    check_cifar(load_dataset("cifar100", root=tmp_path, progress=lines.append), arrays)
    assert any("building" in line for line in lines)
    lines.clear()
    check_cifar(load_dataset("cifar100", root=tmp_path, progress=lines.append), arrays)
    assert lines == []


def test_an_unwritable_cache_folder_says_what_to_set(tmp_path, official, monkeypatch):
    files, arrays, _ = official["cifar100"]
    unpack(tmp_path, files)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"data\.cache_dir"):
        load_dataset("cifar100", root=tmp_path, cache_dir=tmp_path / "file" / "sub")

    load_dataset("cifar100", root=tmp_path)

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("fusionrun.common.locks.os.open", refuse)
    # somebody else's finished cache serves without a lock
    check_cifar(load_dataset("cifar100", root=tmp_path), arrays)


def test_a_full_disk_says_what_to_set_and_leaves_nothing(tmp_path, official, monkeypatch):
    files, _, _ = official["cifar100"]
    unpack(tmp_path, files)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(DataError, match=r"No space left.*more free space.*data\.cache_dir"):
        load_dataset("cifar100", root=tmp_path)
    left = [p.name for p in (tmp_path / ".fusionrun_cache").iterdir() if not p.is_file()]
    assert left == []


def test_statistics_of_pixels():
    images = np.random.default_rng(0).integers(0, 256, (50, 3, 9, 7), dtype=np.uint8)
    images[:, 1] //= 3
    images[:, 2] = 60
    mean, std = cache.channel_statistics(images)
    pixels = images.transpose(1, 0, 2, 3).reshape(3, -1) / 255
    assert mean == pytest.approx(pixels.mean(1))
    assert std[:2] == pytest.approx(pixels.std(1)[:2])
    assert std[2] == pytest.approx(1 / 255)  # never zero: it is divided by


# ---------------------------------------------------------------- image folders


def save_image(path, colour=(10, 20, 30), size=(40, 40), mode="RGB", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path, **options)


def make_folder(root, classes=("ant", "bee"), per_class=2):
    for part in ("train", "test"):
        for c, name in enumerate(classes):
            for k in range(per_class):
                save_image(root / part / name / f"{k}.png", (50 * c, 100, 10 * k))
    return root


def test_image_folder_reads_what_is_there(tmp_path):
    root = make_folder(tmp_path / "pics")
    save_image(root / "train" / "bee" / "a.jpg", (200, 30, 90), quality=100, subsampling=0)
    data = load_dataset("image_folder", root=root, image_size=16)
    assert data.classes == ("ant", "bee")
    assert data.train_images.shape == (5, 3, 16, 16)
    assert data.train_labels.tolist() == [0, 0, 1, 1, 1]
    assert data.test_labels.tolist() == [0, 0, 1, 1]
    colours = data.train_images[:, :, 8, 8].tolist()
    assert colours[:4] == [[0, 100, 0], [0, 100, 10], [50, 100, 0], [50, 100, 10]]
    assert np.abs(np.array(colours[4]) - (200, 30, 90)).max() <= 3
    pixels = data.train_images.double() / 255
    assert data.mean == pytest.approx(pixels.mean((0, 2, 3)).tolist())
    assert data.std == pytest.approx(pixels.std((0, 2, 3), correction=0).tolist())
    assert data.notes == ()


def test_images_are_resized_to_cover_and_cropped_at_the_centre(tmp_path):
    root = make_folder(tmp_path)
    wide = np.zeros((20, 100, 3), dtype=np.uint8)
    wide[:, :40], wide[:, 40:60], wide[:, 60:] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    Image.fromarray(wide).save(root / "train" / "ant" / "wide.png")
    Image.fromarray(wide.transpose(1, 0, 2)).save(root / "train" / "ant" / "tall.png")
    data = load_dataset("image_folder", root=root, image_size=10)
    for image in data.train_images[2:4]:  # tall, wide after 0 and 1
        # only the middle square is left: green, but for the border that the filter smooths
        assert image[:, 1:-1, 1:-1].permute(1, 2, 0).reshape(-1, 3).unique(dim=0).tolist() == [
            [0, 255, 0]
        ]


def png_of_size(width, height):
    """A tiny file whose header claims any size."""

    def chunk(kind, content):
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"\0" * 1000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels)


def test_odd_images(tmp_path):
    root = make_folder(tmp_path)
    ant = root / "train" / "ant"
    save_image(ant / "b_grey.png", 77, mode="L")
    save_image(ant / "c_rgba.png", (9, 8, 7, 128), mode="RGBA")
    save_image(ant / "d_cmyk.jpg", (0, 0, 0, 0), mode="CMYK")
    save_image(ant / "e_palette.gif", 0, mode="P")
    save_image(ant / "f_1x1.png", (1, 2, 3), size=(1, 1))
    save_image(ant / "g_aspect.png", (4, 5, 6), size=(3000, 2))
    save_image(ant / "h_grey16.png", 40000, mode="I;16")
    save_image(ant / "i_bits.png", 1, mode="1")
    save_image(ant / "j_photo.jpg", (90, 80, 70), quality=100, size=(40, 20))
    bad = {
        "z0_empty.png": b"",
        "z1_text.txt": b"not a picture",
        "z2_bomb.png": png_of_size(60000, 60000),
        "z3_large.png": png_of_size(9000, 9000),
        "z4_cut.png": (ant / "0.png").read_bytes()[:60],
        "z5_cut.jpg": (ant / "d_cmyk.jpg").read_bytes()[:-300],
        "z6_odd.png": png_of_size(100, 100),
    }
    for name, content in bad.items():
        (ant / name).write_bytes(content)
    (ant / ".DS_Store").write_bytes(b"hidden")
    (ant / "sub").mkdir()
    data = load_dataset("image_folder", root=root, image_size=8)
    assert data.train_images.shape == (11 + 2, 3, 8, 8)
    colours = data.train_images[2:11, :, 4, 4].tolist()
    expected = [
        [77, 77, 77],
        [9, 8, 7],
        [255, 255, 255],
        None,  # any palette colour, but the file is read
        [1, 2, 3],
        [4, 5, 6],
        [40000 >> 8] * 3,
        [255, 255, 255],
        [90, 80, 70],
    ]
    for found, wanted in zip(colours, expected, strict=True):
        assert wanted is None or np.abs(np.array(found) - wanted).max() <= 2
    assert data.train_labels.tolist() == [0] * 11 + [1] * 2
    (note,) = data.notes
    assert note.startswith("7 files skipped: ")
    assert "train/ant/z0_empty.png (empty)" in note
    assert "train/ant/z1_text.txt (not an image)" in note
    assert "train/ant/z2_bomb.png (too large)" in note
    assert "train/ant/z3_large.png (9000x9000 is too large)" in note
    assert "train/ant/z4_cut.png (damaged: " in note
    assert "and 2 more" in note
    again = load_dataset("image_folder", root=root, image_size=8)
    assert again.notes == data.notes


def test_photos_are_turned_upright(tmp_path):
    root = make_folder(tmp_path)
    pixels = np.zeros((40, 40, 3), dtype=np.uint8)
    pixels[:20] = 255  # the upper half is white
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise
    Image.fromarray(pixels).save(root / "train" / "ant" / "z.jpg", exif=exif, quality=95)
    data = load_dataset("image_folder", root=root, image_size=8)
    photo = data.train_images[2, 0].int()
    assert photo[:, :3].max() < 20
    assert photo[:, 5:].min() > 235


def test_a_changed_folder_is_read_again(tmp_path):
    root = make_folder(tmp_path / "pics")
    place = tmp_path / "c"
    lines = []
    load = functools.partial(
        load_dataset, "image_folder", root=root, cache_dir=place, progress=lines.append
    )
    first = load(image_size=8)
    assert any("8/8 images" in line for line in lines)
    lines.clear()
    assert load(image_size=8).fingerprint == first.fingerprint
    assert lines == []
    save_image(root / "train" / "ant" / "new.png", (255, 0, 0))
    more = load(image_size=8)
    assert len(more.train_labels) == 5
    assert more.fingerprint != first.fingerprint
    changed = root / "train" / "ant" / "new.png"
    before = changed.stat()
    save_image(changed, (0, 255, 0))
    os.utime(changed, ns=(before.st_atime_ns, before.st_mtime_ns + 1_000_000))
    green = load(image_size=8)
    assert green.train_images[2, :, 4, 4].tolist() == [0, 255, 0]
    assert load(image_size=9).train_images.shape[-1] == 9
    # old tensors stay valid although their files were replaced
    assert first.train_images.shape == (4, 3, 8, 8)
    assert first.train_images[0, :, 4, 4].tolist() == [0, 100, 0]
    assert sorted(p.name[-2:] for p in place.iterdir() if p.is_dir()) == ["-8", "-9"]


def test_two_folders_share_a_cache_dir(tmp_path):
    one = make_folder(tmp_path / "one")
    two = make_folder(tmp_path / "two", classes=("cat", "dog", "elk"))
    place = tmp_path / "c"
    for _ in range(2):
        assert len(load_dataset("image_folder", root=one, cache_dir=place).classes) == 2
        assert len(load_dataset("image_folder", root=two, cache_dir=place).classes) == 3


def test_processes_build_an_image_folder_once(tmp_path):
    root = make_folder(tmp_path, per_class=20)
    answers = start_children(3, "image_folder", root, {"image_size": 8})
    said = [line for _, _, lines in answers for line in lines]
    assert sum("building" in line for line in said) == 1
    assert len({total for _, total, _ in answers}) == 1


def without(*parts):
    def change(root):
        target = root.joinpath(*parts)
        for path in sorted(target.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        target.rmdir()

    return change


def emptied(root):
    for path in (root / "test" / "bee").iterdir():
        path.write_bytes(b"")


@pytest.mark.parametrize(
    ("change", "named", "message"),
    [
        (without("train"), "train", "cannot be listed"),
        (without("test"), "test", "cannot be listed"),
        (without("test", "bee"), "", r"only in train: \['bee'\]"),
        (without("train", "ant"), "", r"only in test: \['ant'\]"),
        (emptied, "test/bee", "no usable image"),
        (lambda root: [without(p, "ant")(root) for p in ("train", "test")], "train", "at least 2"),
    ],
)
def test_folders_that_cannot_be_a_data_set(tmp_path, change, named, message):
    make_folder(tmp_path)
    change(tmp_path)
    with pytest.raises(DataError, match=message) as error:
        load_dataset("image_folder", root=tmp_path)
    assert str(tmp_path / named) in str(error.value)
    assert "<root>/train/<class>/<image files>" in str(error.value)


def test_an_unreadable_file_is_an_error_not_a_skip(tmp_path, monkeypatch):
    root = make_folder(tmp_path)
    original = Path.read_bytes

    def read(self):
        if self.name == "1.png":
            raise PermissionError(13, "Permission denied")
        return original(self)

    monkeypatch.setattr(Path, "read_bytes", read)
    with pytest.raises(DataError, match=r"1\.png: cannot be read \(Permission denied\)"):
        load_dataset("image_folder", root=root)


# ---------------------------------------------------------------- synthetic


def synthetic(**changes):
    arguments = {"num_classes": 6, "train_images": 60, "test_images": 30, **changes}
    return load_dataset("synthetic", root="/nonexistent", **arguments)


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
    assert not Path("/nonexistent").exists()


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
    data = load_dataset("synthetic", root="/nonexistent", train_images=3000, test_images=600)

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


# ---------------------------------------------------------------- the table


def test_unknown_names_get_the_nearest_one(tmp_path):
    with pytest.raises(
        DataError, match=r"data set 'cifar-100'; did you mean 'cifar100'.*synthetic"
    ):
        load_dataset("cifar-100", root=tmp_path)
    with pytest.raises(DataError, match="unknown") as error:
        load_dataset("zzz", root=tmp_path)
    assert "did you mean" not in str(error.value)
    assert set(DATASETS) == {"cifar100", "cifar10", "image_folder", "synthetic"}


def test_importing_and_using_prepared_data_needs_no_torchvision(tmp_path, official):
    files, _, _ = official["cifar100"]
    unpack(tmp_path, files)
    load_dataset("cifar100", root=tmp_path)
    make_folder(tmp_path / "pics")
    load_dataset("image_folder", root=tmp_path / "pics")
    code = (
        "import sys\n"
        "from fusionrun.data import datasets, loader, splits\n"
        "from fusionrun.data.augmentation import policies\n"
        f"datasets.load_dataset('cifar100', root={str(tmp_path)!r})\n"
        f"datasets.load_dataset('image_folder', root={str(tmp_path / 'pics')!r})\n"
        "print(sorted({'torchvision', 'PIL'} & set(sys.modules)))\n"
    )
    repository = Path(__file__).parents[3]
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=repository,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "[]"


# ---------------------------------------------------------------- subsets


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
