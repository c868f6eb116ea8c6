"""Splits, draws and readers, on files that the tests write themselves."""

from __future__ import annotations

import gzip
import importlib.util
import pickle
import struct
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from unbackdoor import UnbackdoorError, data
from unbackdoor.data import LabelledImages, TestSplit, TrainSplit


def pixels(count: int, size: int = 32, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, channels), np.uint8)


def make_train(count: int = 12, num_classes: int = 3, size: int = 8) -> TrainSplit:
    labels = np.arange(count) % num_classes
    return TrainSplit(pixels(count, size), labels, tuple("abcdefghij"[:num_classes]))


def write_folder(root: Path, classes: dict[str, int], size: int = 8, mode: str = "RGB") -> None:
    for name, count in classes.items():
        (root / name).mkdir(parents=True)
        for index, image in enumerate(pixels(count, size, seed=len(name))):
            Image.fromarray(image).convert(mode).save(root / name / f"{index}.png")


class TestSplits:
    def test_tensors_are_channels_first_in_unit_range(self):
        split = make_train()
        images, labels = split.tensors()
        assert images.dtype == torch.float32
        assert labels.dtype == torch.int64
        assert images.shape == (12, 3, 8, 8)
        assert torch.equal(
            (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1), torch.tensor(split.images)
        )

    def test_tensors_share_no_memory_with_the_split(self):
        split = make_train()
        before = split.content_hash()
        images, labels = split.tensors()
        images.zero_()
        labels.zero_()
        assert split.content_hash() == before

    @pytest.mark.parametrize("per_class", [1, 2, 4])
    def test_a_draw_is_class_balanced(self, per_class):
        assert make_train().draw(per_class, 0).labels.tolist() == sorted([0, 1, 2] * per_class)

    def test_a_draw_has_no_image_twice(self):
        assert len(set(make_train().draw(4, seed=3).image_hashes())) == 12

    def test_the_seed_decides_the_draw(self):
        split = make_train(60)
        assert split.draw(2, 1).content_hash() == split.draw(2, 1).content_hash()
        assert len({split.draw(2, seed).content_hash() for seed in range(5)}) == 5

    def test_a_larger_draw_contains_the_smaller(self):
        split = make_train(60)
        assert set(split.draw(1, 7).image_hashes()) <= set(split.draw(5, 7).image_hashes())

    def test_a_draw_leaves_the_global_random_state_alone(self):
        before = torch.get_rng_state()
        make_train().draw(2, 0)
        assert torch.equal(torch.get_rng_state(), before)

    def test_an_empty_class_is_named(self):
        split = TrainSplit(pixels(2, 8), np.array([0, 2]), ("cat", "dog", "owl"))
        with pytest.raises(UnbackdoorError, match=r"class 1 \(dog\) has no image"):
            split.draw(1, 0)

    def test_too_large_a_draw_says_how_many_there_are(self):
        with pytest.raises(UnbackdoorError, match="per_class=4 or less"):
            make_train().draw(5, 0)
        with pytest.raises(UnbackdoorError, match="one or more"):
            make_train().draw(0, 0)

    def test_only_a_train_split_can_draw(self):
        assert not hasattr(TestSplit, "draw")
        assert not issubclass(TrainSplit, TestSplit)
        assert not issubclass(TestSplit, TrainSplit)

    def test_overlap_with_the_test_split_is_found_by_pixels(self):
        train = make_train()
        other = TestSplit(pixels(4, 8, seed=9), np.zeros(4, int), train.classes)
        data.check_disjoint(train, other)
        both = TestSplit(np.concatenate((other.images, train.images[5:6])), np.zeros(5, int), train.classes)
        with pytest.raises(UnbackdoorError, match="clean image 5 is test image 4"):
            data.check_disjoint(train, both)
        data.check_disjoint(train.without(both), both)
        assert len(train.without(both)) == 11

    def test_the_hash_sees_pixels_labels_and_shape(self):
        split = make_train()
        relabelled = TrainSplit(split.images, split.labels[::-1].copy(), split.classes)
        reshaped = TrainSplit(split.images.reshape(12, 4, 16, 3), split.labels, split.classes)
        changed = split.images.copy()
        changed[0, 0, 0, 0] ^= 1
        hashes = {
            s.content_hash() for s in (split, relabelled, reshaped, TrainSplit(changed, split.labels, "abc"))
        }
        assert len(hashes) == 4

    @pytest.mark.parametrize(
        ("images", "labels", "says"),
        [
            (pixels(2, 8).astype(float), np.zeros(2, int), "uint8"),
            (pixels(2, 8)[0], np.zeros(2, int), "uint8 of shape"),
            (pixels(2, 8), np.zeros(3, int), "one an image"),
            (pixels(2, 8), np.zeros(2), "integers"),
            (pixels(2, 8), np.array([0, 3]), r"\[0, 2\)"),
            (pixels(2, 8), np.array([-1, 0]), r"\[-1, 0\]"),
        ],
    )
    def test_bad_arrays_are_refused(self, images, labels, says):
        with pytest.raises(UnbackdoorError, match=says):
            LabelledImages(images, labels, ("a", "b"))


class TestReadImages:
    @pytest.mark.parametrize("keys", [("images", "labels"), ("x", "y"), ("x_train", "y_train")])
    def test_npz_keys(self, tmp_path, keys):
        images = pixels(3, 8)
        np.savez(tmp_path / "a.npz", **dict(zip(keys, (images, np.array([0, 2, 1])), strict=True)))
        read = data.read_images(tmp_path / "a.npz")
        assert np.array_equal(read.images, images)
        assert read.labels.tolist() == [0, 2, 1]
        assert read.classes == ("0", "1", "2")

    @pytest.mark.parametrize(
        "change",
        [
            lambda x: x.astype(np.float32) / 255,
            lambda x: x.transpose(0, 3, 1, 2),
            lambda x: x.transpose(0, 3, 1, 2).astype(np.float64) / 255,
        ],
        ids=["float", "channels first", "both"],
    )
    def test_npz_layouts_give_the_same_pixels(self, tmp_path, change):
        images = pixels(3, 8)
        np.savez(tmp_path / "a.npz", images=change(images), labels=np.array([[0], [1], [1]]))
        read = data.read_images(tmp_path / "a.npz")
        assert np.array_equal(read.images, images)
        assert read.labels.tolist() == [0, 1, 1]

    def test_unit_range_is_rounded_to_the_nearest_value(self, tmp_path):
        np.savez(tmp_path / "a.npz", images=np.full((1, 4, 4, 3), 254.6 / 255), labels=[0])
        assert data.read_images(tmp_path / "a.npz").images.min() == 255

    def test_grey_npz_gets_a_channel(self, tmp_path):
        np.savez(tmp_path / "a.npz", x=pixels(2, 8)[..., 0], y=np.array([0, 1]))
        assert data.read_images(tmp_path / "a.npz").images.shape == (2, 8, 8, 1)

    @pytest.mark.parametrize(
        ("arrays", "says"),
        [
            ({"images": pixels(1, 8).astype(float), "labels": [0]}, "divide by 255"),
            ({"images": pixels(1, 8).astype(np.int64), "labels": [0]}, "astype"),
            ({"images": pixels(1, 8, 5), "labels": [0]}, "1 or 3 channels"),
            ({"images": pixels(1, 8), "labels": [0.5]}, "labels must be integers"),
            ({"pictures": pixels(1, 8)}, "keys pictures"),
            ({"images": np.array([object()]), "labels": [0]}, "not a readable .npz"),
        ],
    )
    def test_bad_npz_is_refused(self, tmp_path, arrays, says):
        np.savez(tmp_path / "a.npz", **arrays)
        with pytest.raises(UnbackdoorError, match=says):
            data.read_images(tmp_path / "a.npz")

    def test_what_is_no_npz_is_refused(self, tmp_path):
        (tmp_path / "a.npz").write_bytes(b"not a zip file")
        with pytest.raises(UnbackdoorError, match="not a readable .npz"):
            data.read_images(tmp_path / "a.npz")
        with pytest.raises(UnbackdoorError, match="no such file"):
            data.read_images(tmp_path / "b.npz")

    def test_folder_names_are_the_classes(self, tmp_path):
        write_folder(tmp_path, {"dog": 2, "cat": 1})
        read = data.read_images(tmp_path)
        assert read.classes == ("cat", "dog")
        assert read.labels.tolist() == [0, 1, 1]
        assert read.images.shape == (3, 8, 8, 3)

    def test_folders_that_are_numbers_are_the_labels(self, tmp_path):
        write_folder(tmp_path, {"00002": 1, "10": 1})
        read = data.read_images(tmp_path)
        assert read.labels.tolist() == [2, 10]
        assert len(read.classes) == 11

    def test_given_classes_fix_the_order(self, tmp_path):
        write_folder(tmp_path, {"dog": 1, "cat": 1})
        assert data.read_images(tmp_path, classes=("owl", "dog", "cat")).labels.tolist() == [2, 1]
        with pytest.raises(UnbackdoorError, match="got: dog"):
            data.read_images(tmp_path, classes=("owl", "cat"))

    def test_the_split_of_a_folder(self, tmp_path):
        write_folder(tmp_path / "train", {"a": 2})
        write_folder(tmp_path / "test", {"a": 1})
        assert len(data.read_images(tmp_path)) == 2
        assert len(data.read_images(tmp_path, split="test")) == 1

    def test_a_folder_of_tests_only_never_passes_for_clean_images(self, tmp_path):
        write_folder(tmp_path / "test", {"a": 1})
        with pytest.raises(UnbackdoorError, match="no sub-folder with images"):
            data.read_images(tmp_path)

    def test_grey_stays_grey_and_mixes_to_colour(self, tmp_path):
        write_folder(tmp_path, {"a": 1}, mode="L")
        assert data.read_images(tmp_path).images.shape == (1, 8, 8, 1)
        assert data.read_images(tmp_path, grey=False).images.shape == (1, 8, 8, 3)
        write_folder(tmp_path, {"bb": 1})
        assert data.read_images(tmp_path).images.shape == (2, 8, 8, 3)

    def test_several_sizes_need_resize(self, tmp_path):
        write_folder(tmp_path, {"a": 1})
        write_folder(tmp_path, {"b": 1}, size=10)
        with pytest.raises(UnbackdoorError, match="several sizes"):
            data.read_images(tmp_path)
        assert data.read_images(tmp_path, resize=6).images.shape == (2, 6, 6, 3)

    def test_a_broken_image_is_named(self, tmp_path):
        write_folder(tmp_path, {"a": 1})
        (tmp_path / "a" / "9.png").write_bytes(b"\x89PNG broken")
        with pytest.raises(UnbackdoorError, match="9.png"):
            data.read_images(tmp_path)


def write_cifar10(folder: Path, protocol: int, rows: int = 4) -> np.ndarray:
    folder.mkdir(parents=True)
    images = pixels(6 * rows)
    flat = images.transpose(0, 3, 1, 2).reshape(6, rows, 3072)
    names = [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]
    for name, batch in zip(names, flat, strict=True):
        content = {b"data": batch, b"labels": [n % 10 for n in range(rows)], b"batch_label": b"testing"}
        (folder / name).write_bytes(pickle.dumps(content, protocol))
    (folder / "batches.meta").write_bytes(
        pickle.dumps({b"label_names": [b"c%d" % n for n in range(10)]}, protocol)
    )
    return images


def python2_batch(rows: int) -> bytes:
    """A batch as Python 2 and its numpy pickled it: strings by U and T, protocol 2."""
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01"
        + b"K%cM\x00\x0c\x86" % rows
        + b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        + b"\x89T"
        + struct.pack("<i", rows * 3072)
        + bytes(range(256)) * (rows * 12)
        + b"tb"
    )
    return b"\x80\x02}(U\x04data" + array + b"U\x06labels](" + b"K\x03" * rows + b"eu."


class Evil:
    def __init__(self, command: tuple) -> None:
        self.command = command

    def __reduce__(self) -> tuple:
        return self.command


class TestCifar:
    @pytest.mark.parametrize("protocol", [0, 2, 4, 5])
    def test_pickled_cifar10_of_any_protocol(self, tmp_path, protocol):
        images = write_cifar10(tmp_path / "cifar-10-batches-py", protocol)
        train, test = data.load("cifar10", tmp_path)
        assert isinstance(train, TrainSplit)
        assert isinstance(test, TestSplit)
        assert np.array_equal(train.images, images[:20])
        assert np.array_equal(test.images, images[20:])
        assert test.labels.tolist() == [0, 1, 2, 3]
        assert train.classes == tuple(f"c{n}" for n in range(10))

    def test_pickles_of_python_2(self, tmp_path):
        write_cifar10(tmp_path / "cifar10", 4)
        (tmp_path / "cifar10" / "test_batch").write_bytes(python2_batch(2))
        test = data.load(tmp_path / "cifar10")[1]
        assert test.labels.tolist() == [3, 3]
        assert test.images[0, 0, :4, 0].tolist() == [0, 1, 2, 3]

    @pytest.mark.parametrize(
        "value",
        [
            Evil((eval, ("1+1",))),
            Evil((np.fromstring, ("1", int))),
            torch.zeros(1),
            np.array([object()]),
        ],
        ids=["eval", "numpy function", "tensor", "objects"],
    )
    def test_a_pickle_that_holds_more_is_refused(self, tmp_path, value):
        write_cifar10(tmp_path / "cifar10", 2)
        (tmp_path / "cifar10" / "data_batch_3").write_bytes(pickle.dumps({"data": value, "labels": [0]}))
        with pytest.raises(UnbackdoorError, match="not an array; it was not loaded|an array of object"):
            data.load(tmp_path / "cifar10")

    def test_nothing_in_a_pickle_runs(self, tmp_path):
        write_cifar10(tmp_path / "cifar10", 2)
        trace = tmp_path / "trace"
        evil = Evil((Path.touch, (trace,)))
        (tmp_path / "cifar10" / "batches.meta").write_bytes(pickle.dumps({"label_names": evil}))
        with pytest.raises(UnbackdoorError, match="not an array"):
            data.load(tmp_path / "cifar10")
        assert not trace.exists()

    def test_damaged_and_missing_batches_are_named(self, tmp_path):
        write_cifar10(tmp_path / "cifar10", 4)
        batch = tmp_path / "cifar10" / "data_batch_2"
        batch.write_bytes(batch.read_bytes()[:500])
        with pytest.raises(UnbackdoorError, match="data_batch_2"):
            data.load(tmp_path / "cifar10")
        batch.unlink()
        with pytest.raises(UnbackdoorError, match="data_batch_2"):
            data.load(tmp_path / "cifar10")

    def test_binary_cifar10(self, tmp_path):
        folder, images = tmp_path / "cifar-10-batches-bin", pixels(6)
        folder.mkdir()
        names = [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]
        for label, (name, image) in enumerate(zip(names, images, strict=True)):
            (folder / f"{name}.bin").write_bytes(bytes([label]) + image.transpose(2, 0, 1).tobytes())
        train, test = data.load("cifar10", tmp_path)
        assert np.array_equal(train.images, images[:5])
        assert (train.labels.tolist(), test.labels.tolist()) == ([0, 1, 2, 3, 4], [5])
        assert train.classes[9] == "truck"
        (folder / "test_batch.bin").write_bytes(b"\x00" * 100)
        with pytest.raises(UnbackdoorError, match="3073 bytes"):
            data.load("cifar10", tmp_path)

    def test_cifar100_takes_the_fine_labels(self, tmp_path):
        images = pixels(2)
        rows = images.transpose(0, 3, 1, 2).reshape(2, 3072)
        (tmp_path / "cifar-100-python").mkdir()
        for name in ("train", "test"):
            content = {b"data": rows, b"fine_labels": [99, 7], b"coarse_labels": [1, 2]}
            (tmp_path / "cifar-100-python" / name).write_bytes(pickle.dumps(content))
        meta = {"fine_label_names": [f"f{n}" for n in range(100)]}
        (tmp_path / "cifar-100-python" / "meta").write_bytes(pickle.dumps(meta))
        train, _ = data.load("cifar100", tmp_path)
        assert (train.labels.tolist(), train.classes[99]) == ([99, 7], "f99")
        (tmp_path / "binary").mkdir()
        for name in ("train.bin", "test.bin"):
            (tmp_path / "binary" / name).write_bytes(
                b"\x01\x63" + rows[0].tobytes() + b"\x02\x07" + rows[1].tobytes()
            )
        binary, _ = data.load(tmp_path / "binary")
        assert binary.content_hash() == train.content_hash()


def write_gtsrb(root: Path) -> None:
    """Two classes; the sign is white in a black frame of five pixels, so that a wrong box shows."""
    head = "Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId\n"
    picture = np.zeros((30, 26, 3), np.uint8)
    picture[5:25, 5:21] = 255
    for label in (0, 42):
        folder = root / "Final_Training" / "Images" / f"{label:05d}"
        folder.mkdir(parents=True)
        Image.fromarray(picture).save(folder / "00000_00000.ppm")
        (folder / f"GT-{label:05d}.csv").write_text(f"{head}00000_00000.ppm;26;30;5;5;21;25;{label}\n")
    folder = root / "Final_Test" / "Images"
    folder.mkdir(parents=True)
    Image.fromarray(picture).save(folder / "00000.ppm")
    (root / "GT-final_test.csv").write_text(f"{head}00000.ppm;26;30;5;5;21;25;13\n")


class TestGtsrb:
    @pytest.mark.parametrize("above", ["GTSRB", "gtsrb/GTSRB"])
    def test_signs_are_cropped_and_resized(self, tmp_path, above):
        write_gtsrb(tmp_path / above)
        train, test = data.load("gtsrb", tmp_path)
        assert train.images.shape == (2, 32, 32, 3)
        assert train.images.min() == 255
        assert (train.labels.tolist(), test.labels.tolist(), train.num_classes) == ([0, 42], [13], 43)
        assert data.load("gtsrb", tmp_path, resize=48)[1].images.shape == (1, 48, 48, 3)

    def test_a_table_without_classes_is_refused(self, tmp_path):
        write_gtsrb(tmp_path / "GTSRB")
        table = tmp_path / "GTSRB" / "GT-final_test.csv"
        table.write_text("Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2\n00000.ppm;26;30;5;5;21;25\n")
        with pytest.raises(UnbackdoorError, match="ClassId"):
            data.load("gtsrb", tmp_path)
        table.unlink()
        with pytest.raises(UnbackdoorError, match="GTSRB_Final_Test_GT.zip"):
            data.load("gtsrb", tmp_path)

    def test_npz(self, tmp_path):
        arrays = {"x_train": pixels(2), "y_train": [0, 41], "x_test": pixels(1), "y_test": [42]}
        np.savez(tmp_path / "gtsrb.npz", **arrays)
        train, test = data.load("gtsrb", tmp_path)
        assert train.num_classes == test.num_classes == 43


def write_idx(root: Path, zipped: bool) -> np.ndarray:
    root.mkdir(parents=True)
    images = pixels(3, 28, 1)[..., 0]
    for prefix in ("train", "t10k"):
        files = {
            f"{prefix}-images-idx3-ubyte": struct.pack(">HBB3I", 0, 8, 3, 3, 28, 28) + images.tobytes(),
            f"{prefix}-labels-idx1-ubyte": struct.pack(">HBBI", 0, 8, 1, 3) + bytes([9, 0, 4]),
        }
        for name, raw in files.items():
            (root / (name + ".gz" * zipped)).write_bytes(gzip.compress(raw) if zipped else raw)
    return images


class TestIdx:
    @pytest.mark.parametrize("zipped", [False, True])
    @pytest.mark.parametrize("place", ["fashion_mnist", "FashionMNIST/raw"])
    def test_fashion_mnist(self, tmp_path, place, zipped):
        images = write_idx(tmp_path / place, zipped)
        train, test = data.load("fashion_mnist", tmp_path)
        assert np.array_equal(train.images[..., 0], images)
        assert [train.classes[label] for label in test.labels] == ["Ankle boot", "T-shirt/top", "Coat"]
        assert data.load("fashion_mnist", tmp_path, resize=32)[0].images.shape == (3, 32, 32, 1)

    def test_a_short_file_is_refused(self, tmp_path):
        write_idx(tmp_path / "mnist", zipped=True)
        file = tmp_path / "mnist" / "train-images-idx3-ubyte.gz"
        whole = gzip.decompress(file.read_bytes())
        for broken in (gzip.compress(whole[:-1]), file.read_bytes()[:-20], b"\x00\x00"):
            file.write_bytes(broken)
            with pytest.raises(UnbackdoorError, match="not a readable IDX file"):
                data.load(tmp_path / "mnist")


class TestLoad:
    def test_folders(self, tmp_path):
        write_folder(tmp_path / "train", {"cat": 2, "dog": 2})
        write_folder(tmp_path / "test", {"dog": 1})
        train, test = data.load(tmp_path)
        assert (len(train), test.labels.tolist(), test.classes) == (4, [1], ("cat", "dog"))

    def test_numbered_test_folders_keep_their_labels(self, tmp_path):
        write_folder(tmp_path / "train", {"00000": 1, "00012": 1})
        write_folder(tmp_path / "test", {"00012": 1})
        assert data.load(tmp_path)[1].labels.tolist() == [12]

    def test_one_array_never_passes_for_both_splits(self, tmp_path):
        np.savez(tmp_path / "a.npz", images=pixels(2, 8), labels=[0, 1])
        with pytest.raises(UnbackdoorError, match="train split"):
            data.load(tmp_path / "a.npz")

    def test_splits_of_different_shapes_are_refused(self, tmp_path):
        arrays = {"x_train": pixels(1, 8), "y_train": [0], "x_test": pixels(1, 9), "y_test": [0]}
        np.savez(tmp_path / "a.npz", **arrays)
        with pytest.raises(UnbackdoorError, match="different shapes"):
            data.load(tmp_path / "a.npz")
        assert data.load(tmp_path / "a.npz", resize=8)[1].images.shape == (1, 8, 8, 3)

    @pytest.mark.parametrize("name", ["cifar10", "cifar100", "gtsrb"])
    def test_a_missing_set_says_where_from_and_where_to(self, tmp_path, monkeypatch, name):
        monkeypatch.setenv("UNBACKDOOR_DATA", str(tmp_path / "here"))
        with pytest.raises(UnbackdoorError) as caught:
            data.load(name)
        assert "https://" in caught.value.fix
        assert str(tmp_path / "here") in caught.value.fix
        assert "\n" not in caught.value.fix

    def test_an_unknown_name_lists_the_valid_ones(self):
        with pytest.raises(UnbackdoorError, match="cifar10, cifar100, fashion_mnist, gtsrb"):
            data.load("cifar11")

    def test_a_folder_of_nothing_is_refused(self, tmp_path):
        with pytest.raises(UnbackdoorError, match="no data set"):
            data.load(tmp_path)

    def test_named_npz_has_the_class_names(self, tmp_path):
        np.savez(tmp_path / "cifar10.npz", x_train=pixels(1), y_train=[1], x_test=pixels(1), y_test=[9])
        assert data.load("cifar10", tmp_path)[0].classes[1] == "automobile"


class Image1:
    """Stands for ``datasets.Image``: the reader goes by the class name."""


class ClassLabel:
    names = ("cat", "dog")


Image1.__name__ = "Image"


class Table(list):
    """Stands for ``datasets.Dataset``."""

    features = {"img": Image1(), "coarse": ClassLabel(), "label": ClassLabel()}

    def __getitem__(self, key):
        return [row[key] for row in self] if isinstance(key, str) else super().__getitem__(key)


def rows(mode: str) -> list[dict]:
    return [{"img": Image.fromarray(pixels(1, 8)[0]).convert(mode), "coarse": 0, "label": 1}]


class TestHubs:
    @pytest.mark.parametrize("scheme", ["hf:owner/set", "torchvision:CIFAR10"])
    def test_what_is_not_installed_names_its_extra(self, monkeypatch, scheme):
        monkeypatch.setitem(sys.modules, "datasets", None)
        monkeypatch.setitem(sys.modules, "torchvision.datasets", None)
        with pytest.raises(UnbackdoorError, match=r"pip install 'unbackdoor\[(datasets|torchvision)\]'"):
            data.load(scheme)

    @pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3), ("RGBA", 3)])
    def test_hugging_face_columns(self, monkeypatch, mode, channels):
        library = types.ModuleType("datasets")
        library.load_dataset = lambda name: {"train": Table(rows(mode) * 2), "validation": Table(rows(mode))}
        monkeypatch.setitem(sys.modules, "datasets", library)
        train, test = data.load("hf:owner/set")
        assert (train.images.shape, test.labels.tolist(), train.classes) == (
            (2, 8, 8, channels),
            [1],
            ("cat", "dog"),
        )

    def test_hugging_face_without_a_test_split(self, monkeypatch):
        library = types.ModuleType("datasets")
        library.load_dataset = lambda name: {"train": Table(rows("L"))}
        monkeypatch.setitem(sys.modules, "datasets", library)
        with pytest.raises(UnbackdoorError, match="no train and test split"):
            data.load("hf:owner/set")

    def test_hugging_face_that_is_out_of_reach(self, monkeypatch):
        def unreachable(name: str) -> None:
            raise ConnectionError("no network")

        library = types.ModuleType("datasets")
        library.load_dataset = unreachable
        monkeypatch.setitem(sys.modules, "datasets", library)
        with pytest.raises(UnbackdoorError, match="no network"):
            data.load("hf:owner/set")

    def test_torchvision_by_train_or_split(self, monkeypatch, tmp_path):
        library = types.ModuleType("torchvision.datasets")
        picture = Image.fromarray(pixels(1, 8)[0])
        library.CIFAR10 = lambda root, train: [(picture, 3)] * (2 if train else 1)
        library.SVHN = lambda root, split: [(picture, 1)] * {"train": 4, "test": 3}[split]
        monkeypatch.setitem(sys.modules, "torchvision", types.ModuleType("torchvision"))
        monkeypatch.setitem(sys.modules, "torchvision.datasets", library)
        assert [len(split) for split in data.load("torchvision:CIFAR10", tmp_path)] == [2, 1]
        assert [len(split) for split in data.load("torchvision:SVHN", tmp_path)] == [4, 3]
        library.Caltech101 = lambda root: [(picture, 1)]
        for name in ("Nothing", "Caltech101"):
            with pytest.raises(UnbackdoorError, match="no such data set"):
                data.load(f"torchvision:{name}", tmp_path)

    def test_torchvision_without_files_says_how_to_get_them(self, monkeypatch, tmp_path):
        def missing(root: str, train: bool) -> None:
            raise RuntimeError("Dataset not found")

        library = types.ModuleType("torchvision.datasets")
        library.CIFAR10 = missing
        monkeypatch.setitem(sys.modules, "torchvision", types.ModuleType("torchvision"))
        monkeypatch.setitem(sys.modules, "torchvision.datasets", library)
        with pytest.raises(UnbackdoorError, match="download=True"):
            data.load("torchvision:CIFAR10", tmp_path)


@pytest.fixture
def shared_data():
    path = Path(__file__).resolve().parents[1] / "benchmarks" / "shared_data.py"
    spec = importlib.util.spec_from_file_location("shared_data", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class TestShared:
    def test_sheets_are_cut_row_by_row(self, shared_data, monkeypatch, tmp_path):
        images = pixels(100, 32)
        folder = tmp_path / "data" / "gtsrb"
        folder.mkdir(parents=True)
        sheet = images.reshape(2, 50, 32, 32, 3).transpose(0, 2, 1, 3, 4).reshape(64, 1600, 3)
        for split, count in (("train", 100), ("test", 60)):
            Image.fromarray(sheet).save(folder / f"{split}_00.webp", lossless=True)
            np.save(folder / f"{split}_labels.npy", np.arange(count, dtype=np.uint8) % 43)
        monkeypatch.setenv("UNBACKDOOR_SHARED", str(tmp_path))
        train, test = shared_data.load_shared("gtsrb")
        assert np.array_equal(train.images, images)
        assert np.array_equal(test.images, images[:60])
        assert (type(train), type(test)) == (TrainSplit, TestSplit)

    def test_an_absent_folder_can_be_skipped(self, shared_data, monkeypatch, tmp_path):
        monkeypatch.setenv("UNBACKDOOR_SHARED", str(tmp_path))
        with pytest.raises(shared_data.SharedDataMissing, match="UNBACKDOOR_SHARED"):
            shared_data.load_shared("cifar10")

    @pytest.mark.slow
    def test_one_draw_of_real_data_touches_no_test_image(self, shared_data):
        try:
            train, test = shared_data.load_shared("gtsrb")
        except shared_data.SharedDataMissing as reason:
            pytest.skip(str(reason))
        assert (len(train), len(test), train.num_classes) == (19_605, 12_630, 43)
        assert len(train) - len(train.without(test)) == 4
        data.check_disjoint(train.without(test).draw(10, seed=0), test)
