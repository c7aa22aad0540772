"""--store: images in memory or in a memory map, and how much memory there is."""
import builtins
import ctypes
import os

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import ROOT, SMALL, script
from shared.dataset import load_splits
from shared.plumbing import image_store
from shared.plumbing.errors import InputError
from shared.plumbing.ram import free_memory
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


# Memory, on this system and as on others ---------------------------------------------------------------------------

def test_memory_is_measured():
    built_in = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < free_memory() < built_in
    assert image_store.fits_in_memory(1) and not image_store.fits_in_memory(built_in)


@pytest.fixture
def without_proc(monkeypatch):
    opened = builtins.open

    def no_proc(file, *args, **named):
        if str(file).startswith("/proc/"):
            raise FileNotFoundError(file)
        return opened(file, *args, **named)

    monkeypatch.setattr(builtins, "open", no_proc)


def test_memory_on_macos(monkeypatch, without_proc):
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 1000}.__getitem__)
    assert free_memory() == 4096 * 500


def test_memory_on_windows(monkeypatch, without_proc):
    class Kernel:
        def GlobalMemoryStatusEx(self, status):
            assert status._obj.length == ctypes.sizeof(status._obj) == 64
            status._obj.free = 3 * 2**30
            return 1

    monkeypatch.delattr(os, "sysconf")
    monkeypatch.setattr(ctypes, "windll", type("Libraries", (), {"kernel32": Kernel()}), raising=False)
    assert free_memory() == 3 * 2**30


AS_ON_WINDOWS = """
import builtins, ctypes, os, runpy, signal, sys
sys.path.insert(0, {root!r})
import torch, torchvision, cv2, sklearn.linear_model             # theirs; what follows is ours
opened, exists = builtins.open, os.path.exists
def no_proc(file, *args, **named):
    if str(file).startswith("/proc/"):
        raise FileNotFoundError(file)
    return opened(file, *args, **named)
builtins.open = no_proc
os.path.exists = lambda path: not str(path).startswith("/proc/") and exists(path)
sys.modules["resource"] = sys.modules["fcntl"] = None
class Kernel:
    def GlobalMemoryStatusEx(self, status):
        status._obj.free = 1000
ctypes.windll = type("Libraries", (), {{"kernel32": Kernel()}})
for name in ("sysconf", "fork", "uname", "getuid", "sched_getaffinity"):
    delattr(os, name)
for name in ("SIGHUP", "SIGUSR1", "SIGKILL", "SIGALRM"):
    delattr(signal, name)
sys.argv = sys.argv[1:]
sys.path.insert(0, os.path.dirname(sys.argv[0]))
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_train_starts_without_what_windows_lacks(tmp_path):
    data = make_data(tmp_path / "d", train=8)
    (tmp_path / "windows.py").write_text(AS_ON_WINDOWS.format(root=str(ROOT)))
    done = script(tmp_path / "windows.py", ROOT / "code_Aux/train.py", "--data_path", data, "--result_path",
                  tmp_path / "run", *SMALL, "--epochs", "1")
    assert done.returncode == 0 and "finished: " in done.stdout, done.stderr
    assert (data / ".decoded/train_opt_32.uint8").is_file(), "1000 bytes are free: the disk holds the images"
