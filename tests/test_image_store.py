import os

import numpy as np
import pytest
import torch
from PIL import Image

from shared.dataset import load_splits
from shared.plumbing import image_store
from shared.plumbing.errors import InputError
from test_dataset import make_data


def load(data, store):
    pairs, = load_splits(data, ("train",), 16, 2, store)
    return pairs


def test_a_memory_map_holds_the_same_images_and_is_made_once(tmp_path):
    data = make_data(tmp_path / "d")
    memory, disk = load(data, "memory"), load(data, "disk")
    assert torch.equal(memory.opt, disk.opt) and torch.equal(memory.sar, disk.sar)
    file = data / ".decoded/train_opt_16.uint8"
    made = file.stat().st_mtime_ns
    assert torch.equal(load(data, "disk").opt, memory.opt) and file.stat().st_mtime_ns == made
    assert sorted(f.name for f in (data / ".decoded").iterdir()) == [
        f"train_{m}_16.uint8{s}" for m in ("opt", "sar") for s in ("", ".json")
    ]


def test_it_is_made_again_when_a_file_changes(tmp_path):
    data = make_data(tmp_path / "d")
    load(data, "disk")
    Image.fromarray(np.full((20, 20, 3), 9, np.uint8)).save(data / "train/opt/p02.png")
    assert (load(data, "disk").opt[2] == 9).all()
    (data / "train/sar/p05.png").unlink()
    (data / "train/opt/p05.png").unlink()
    assert len(load(data, "disk")) == 5


def test_a_bad_file_leaves_no_memory_map(tmp_path):
    data = make_data(tmp_path / "d")
    (data / "train/opt/p02.png").write_bytes(b"no image")
    with pytest.raises(InputError, match="p02.png"):
        load(data, "disk")
    assert not list((data / ".decoded").glob("train_opt*"))


def test_auto_takes_the_disk_when_memory_is_short(tmp_path, monkeypatch):
    data = make_data(tmp_path / "d")
    load(data, "auto")
    assert not (data / ".decoded").exists()
    monkeypatch.setattr(image_store, "fits_in_memory", lambda size: False)
    load(data, "auto")
    assert (data / ".decoded/train_opt_16.uint8").is_file()


def test_a_folder_that_cannot_be_written_to_is_one_sentence(tmp_path):
    data = make_data(tmp_path / "d")
    (data / ".decoded").write_text("in the way")
    with pytest.raises(InputError, match="cannot be written .*--store memory"):
        load(data, "disk")


def test_memory_is_measured():
    assert image_store.fits_in_memory(1) and not image_store.fits_in_memory(
        os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    )
