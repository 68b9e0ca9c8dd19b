"""Readers against bytes written here by hand, the batch stream's promises, and the export."""

import zipfile

import numpy as np
import pytest

from energymatch import images

RANDOM = np.random.RandomState(0)
PIXELS = RANDOM.randint(0, 256, (11, 32, 32, 3), dtype=np.uint8)
LABELS = np.arange(11) % 10
SET = images.ImageSet((PIXELS[:4], PIXELS[4:]), LABELS)


def cifar_bytes(pixels, labels):
    """Records as the format's page describes them: a label, then 1,024 reds, greens and blues by rows."""
    out = bytearray()
    for image, label in zip(pixels, labels, strict=True):
        out.append(label)
        for color in range(3):
            for row in range(32):
                out += bytes(image[row, :, color].tolist())
    return bytes(out)


def imagenet_rows(pixels):
    return np.stack([np.concatenate([x[..., c].ravel() for c in range(3)]) for x in pixels])


@pytest.fixture
def cifar(tmp_path):
    """A folder in CIFAR-10's format with 2 or 3 images a file."""
    for i, rows in enumerate(np.array_split(np.arange(11), 5)):
        (tmp_path / f"data_batch_{i + 1}.bin").write_bytes(cifar_bytes(PIXELS[rows], LABELS[rows]))
    (tmp_path / "test_batch.bin").write_bytes(cifar_bytes(PIXELS[:1], LABELS[:1]))
    return tmp_path


def write_imagenet(folder, save=np.savez, **changed):
    for i in range(10):
        arrays = {"data": imagenet_rows(PIXELS[i : i + 1]), "labels": np.array([100 * i + 1])}
        save(folder / f"train_data_batch_{i + 1}.npz", **{**arrays, "mean": np.zeros(3072), **changed})


def is_mapped(array):
    while array is not None and not isinstance(array, np.memmap):
        array = array.base
    return array is not None


def test_cifar10(cifar):
    data = images.read_cifar10(cifar)
    assert len(data) == 11 and data.shape == (32, 32, 3) and len(data.parts) == 5
    np.testing.assert_array_equal(data.take(np.arange(11)), PIXELS)
    np.testing.assert_array_equal(data.labels, LABELS)
    assert all(is_mapped(part) for part in data.parts)
    np.testing.assert_array_equal(images.read_cifar10(cifar, "test").take([0]), PIXELS[:1])


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_imagenet32(tmp_path, save):
    write_imagenet(tmp_path, save)
    data = images.read_imagenet32(tmp_path)
    np.testing.assert_array_equal(data.take(np.arange(10)), PIXELS[:10])
    np.testing.assert_array_equal(data.labels, np.arange(0, 1000, 100))
    assert all(is_mapped(part) == (save is np.savez) for part in data.parts)


def test_cifar10_files_that_are_wrong(cifar):
    def refused(error, message, **kwargs):
        with pytest.raises(error, match=message):
            images.read_cifar10(cifar, **kwargs)

    refused(ValueError, r"split must be one of \('train', 'test'\), got 'val'", split="val")
    file = cifar / "data_batch_3.bin"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    refused(ValueError, "data_batch_3.bin must hold records of 3073 bytes, got 6145 bytes")
    file.write_bytes(b"")
    refused(ValueError, "must hold records of 3073 bytes, got 0 bytes")
    file.write_bytes(whole[:3073] + b"\x0b" + whole[3074:])
    refused(ValueError, "data_batch_3.bin must hold labels 0 to 9, got 11 in record 1")
    file.unlink()
    (cifar / "data_batch_5.bin").unlink()
    refused(FileNotFoundError, "data_batch_3.bin, data_batch_5.bin .CIFAR-10's binary version., got")


def test_imagenet32_files_that_are_wrong(tmp_path):
    def refused(error, message):
        with pytest.raises(error, match=message):
            images.read_imagenet32(tmp_path)

    refused(FileNotFoundError, "folder must hold train_data_batch_1.npz, .*train_data_batch_10.npz")
    wrong = {
        "must be uint8, got float64": (TypeError, {"data": np.zeros((1, 3072))}),
        r"must have shape \[N, 3072\] with N > 0, got \(1, 768\)": (
            ValueError,
            {"data": np.zeros((1, 768), np.uint8)},
        ),
        r"got \(0, 3072\)": (ValueError, {"data": np.zeros((0, 3072), np.uint8)}),
        "labels of .* must be integers, got float64": (TypeError, {"labels": np.ones(1)}),
        r"1 numbers in 1..1000, got \(2,\)": (ValueError, {"labels": np.ones(2, int)}),
        "1 numbers in 1..1000, got 0..0": (ValueError, {"labels": np.zeros(1, int)}),
        r"got dtype object \(pickled\)": (TypeError, {"data": np.array([[None]])}),
    }
    for message, (error, changed) in wrong.items():
        write_imagenet(tmp_path, **changed)
        refused(error, message)
    np.savez(tmp_path / "train_data_batch_1.npz", images=PIXELS)
    refused(ValueError, r"train_data_batch_1.npz must hold an array data, got \['images'\]")
    write_imagenet(tmp_path)
    file = tmp_path / "train_data_batch_7.npz"
    file.write_bytes(file.read_bytes()[:-100])
    refused(ValueError, "train_data_batch_7.npz must be a whole .npz file, got BadZipFile")


def test_maps_an_array_that_is_not_the_first_of_its_file(tmp_path):
    """Its place depends on the names and the extra fields before it."""
    write_imagenet(tmp_path)
    file = tmp_path / "train_data_batch_1.npz"
    with np.load(file) as arrays:
        np.savez(file.with_suffix(""), mean=arrays["mean"], labels=arrays["labels"], data=arrays["data"])
    with zipfile.ZipFile(file) as archive:
        assert archive.namelist()[-1] == "data.npy"
    np.testing.assert_array_equal(images.read_imagenet32(tmp_path).take([0]), PIXELS[:1])


def test_every_image_comes_once_an_epoch():
    stream = images.BatchStream(SET, batch_size=4, seed=3)
    rows = np.concatenate([stream.rows(step)[0] for step in range(11)])  # 44 places, 4 epochs
    epochs = rows.reshape(4, 11)
    np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(np.arange(11), (4, 1)))
    assert len({tuple(e) for e in epochs}) == 4
    other = images.BatchStream(SET, batch_size=4, seed=4)
    assert not np.array_equal(stream.rows(0)[0], other.rows(0)[0])


def test_a_batch_is_a_function_of_seed_and_step():
    """Asked for in any order, by any object: what a resumed run needs."""
    first = [images.BatchStream(SET, 6, seed=1).batch(step) for step in range(8)]
    stream = images.BatchStream(SET, 6, seed=1)
    for step in (7, 0, 5, 5, 2):
        np.testing.assert_array_equal(stream.batch(step), first[step])
    assert not np.array_equal(first[0], first[1])
    # A batch larger than the data set runs through several epochs.
    large = images.BatchStream(SET, 24, seed=1)
    np.testing.assert_array_equal(large.batch(1), np.concatenate(first[4:8]))


def test_its_numbers_stay_the_same():
    """Written down once: a change would make resumed runs see other batches."""
    index, mirrored = images.BatchStream(SET, 11, seed=5).rows(2)
    assert index.tolist() == EXPECTED[0] and mirrored.astype(int).tolist() == EXPECTED[1]


EXPECTED = ([6, 9, 7, 2, 1, 10, 3, 8, 0, 5, 4], [1, 0, 0, 0, 1, 1, 1, 0, 0, 0, 1])


@pytest.mark.parametrize("count", [2, 3, 6])
def test_processes_share_one_global_batch(count):
    whole = images.BatchStream(SET, 6, seed=2)
    for step in (0, 1, 9):
        parts = [
            images.BatchStream(SET, 6, seed=2, process_index=i, process_count=count).batch(step)
            for i in range(count)
        ]
        np.testing.assert_array_equal(np.concatenate(parts), whole.batch(step))


def test_values_and_flips():
    """Each image is its own or its mirror image, on the scale of -1 to 1."""
    stream = images.BatchStream(SET, 11, seed=0)
    index, mirrored = stream.rows(0)
    batch = stream.batch(0)
    assert batch.dtype == np.float32 and batch.shape == (11, 32, 32, 3)
    for x, i, m in zip(batch, index, mirrored, strict=True):
        expected = PIXELS[i][:, ::-1] if m else PIXELS[i]
        np.testing.assert_allclose(x, expected / 127.5 - 1, atol=1e-6)
    plain = images.BatchStream(SET, 11, seed=0, flip=False)
    np.testing.assert_array_equal(plain.rows(0)[0], index)
    assert not plain.rows(0)[1].any()
    # 1,100 coins: the share of one side has standard error .015, here within 4 of them.
    coins = np.concatenate([stream.rows(step)[1] for step in range(100)])
    assert abs(coins.mean() - 0.5) < 0.06


def test_grey_levels_there_and_back():
    levels = np.arange(256, dtype=np.uint8)
    x = images.to_float(levels)
    assert x[0] == -1 and x[-1] == 1 and x.dtype == np.float32
    np.testing.assert_array_equal(images.to_uint8(x), levels)
    # Nearest, within half a level, and clipped.
    moved = x + np.float32(0.49 / 127.5)
    np.testing.assert_array_equal(images.to_uint8(moved), levels)
    np.testing.assert_array_equal(images.to_uint8(np.array([-7.0, 1.3, 0.0])), [0, 255, 128])


def test_samples_file(tmp_path):
    x = images.to_float(PIXELS)
    assert images.save_samples(tmp_path / "samples.npz", x) == tmp_path / "samples.npz"
    with np.load(tmp_path / "samples.npz") as arrays:
        assert list(arrays) == ["arr_0"] and arrays["arr_0"].dtype == np.uint8
        np.testing.assert_array_equal(arrays["arr_0"], PIXELS)
    images.save_samples(tmp_path / "samples.npz", PIXELS[:2])
    with np.load(tmp_path / "samples.npz") as arrays:
        np.testing.assert_array_equal(arrays["arr_0"], PIXELS[:2])
    assert [f.name for f in tmp_path.iterdir()] == ["samples.npz"]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: images.ImageSet((), LABELS), ValueError, "at least one array, got none"),
        (lambda: images.ImageSet((PIXELS / 2,), LABELS), TypeError, r"parts\[0\] must be uint8, got float64"),
        (
            lambda: images.ImageSet((PIXELS, PIXELS[:, :9]), LABELS),
            ValueError,
            r"parts\[1\] must have shape \[N, 32, 32, 3\] with N > 0, got \(11, 9, 32, 3\)",
        ),
        (lambda: images.ImageSet((PIXELS,), LABELS[1:]), ValueError, r"labels must have shape \(11,\)"),
        (lambda: images.ImageSet((PIXELS,), LABELS / 2), TypeError, "labels must be integers"),
        (lambda: SET.take([3, 11]), IndexError, r"indices must lie in 0..10, got 3..11"),
        (lambda: images.BatchStream(PIXELS, 2), TypeError, "images must be an ImageSet, got ndarray"),
        (lambda: images.BatchStream(SET, 0), ValueError, "batch_size must be at least 1"),
        (lambda: images.BatchStream(SET, 5, process_count=2), ValueError, "divisible by process_count = 2"),
        (
            lambda: images.BatchStream(SET, 4, process_index=2, process_count=2),
            ValueError,
            "process_index must be below process_count = 2, got 2",
        ),
        (lambda: images.BatchStream(SET, 4).batch(-1), ValueError, "step must be at least 0, got -1"),
        (lambda: images.BatchStream(SET, 4).batch(1.0), TypeError, "step must be an int"),
        (lambda: images.to_float(np.zeros(3)), TypeError, "images must be uint8, got float64"),
        (lambda: images.to_uint8(PIXELS), TypeError, "x must be floating point, got dtype uint8"),
        (lambda: images.to_uint8(np.array([0, np.nan])), ValueError, "got 1 values of 2 that are not"),
        (lambda: images.save_samples("a.npy", PIXELS), ValueError, "must end in .npz, got a.npy"),
        (lambda: images.save_samples("a.npz", PIXELS[0]), ValueError, r"\[N, H, W, C\], got \(32, 32, 3\)"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
