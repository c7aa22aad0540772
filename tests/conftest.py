"""What the tests share: data, a browser, programs that are forked, copies of the checkout."""
import json
import multiprocessing
import os
import re
import runpy
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import nullcontext, suppress
from multiprocessing.connection import wait
from multiprocessing.reduction import DupFd
from pathlib import Path

# The tests' images are too small to share among cores, and processes that do share them wait for each other.
os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
METHODS = sorted({file.parent for file in ROOT.glob("code*/*.py")})
sys.path.insert(0, str(ROOT))
# The methods' own modules, last: their names differ from all others (test_house.py), but each has a test.py.
sys.path.extend(str(folder) for folder in METHODS)

REAL = ROOT.parent / "shared/data"
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["pytest", "torch", "torchvision", "cv2", "sklearn.linear_model", "sklearn.manifold",
                              "matplotlib.pyplot", "fontTools.subset", "rasterio", "pyproj", "geopandas", "jinja2",
                              "diffusers.models.unets.unet_2d", "diffusers.schedulers.scheduling_ddim"])
# run.sh's profile without CUDA: with CUDA its rows start from weights that have to be downloaded.
WITHOUT_CUDA = {"CUDA_VISIBLE_DEVICES": ""}
# The first three stages: most weights, which take the time here, are of the others (all five: test_scripts.py).
SMALL = ("--arch resnet18 --stages 3 --img_size 32 --init none --schedule cosine --lr 0.05 --lr_head 0.05 "
         "--batch_size 8 --epochs 2").split()


# What takes longest begins first, so that no core waits for the other at the end.
LONGEST = ("test_run_sh_demo.py", "test_check_data.py", "test_locate.py", "test_distributed.py", "test_generated.py",
           "test_model.py", "test_san.py", "test_structure.py", "test_regions.py", "test_scripts.py",
           "test_contrastive.py", "test_run_sh.py", "test_analyze.py", "test_resume.py", "test_match.py",
           "test_simsiam.py", "test_new_method.py", "test_report.py", "test_search.py", "test_windows.py")


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


@pytest.fixture(scope="session")
def demo(tmp_path_factory):
    """24 training and 12 test demo pairs."""
    folder = tmp_path_factory.mktemp("data") / "demo"
    subprocess.run([sys.executable, ROOT / "data/demo/prepare.py", folder, "--train", "24", "--test", "12"], check=True)
    return folder


@pytest.fixture(scope="session")
def real():
    """The real Sentinel pairs, where they are."""
    if not (REAL / "S1S2align200").is_dir():
        pytest.skip(f"no real pairs: {REAL / 'S1S2align200'} is absent")
    return REAL / "S1S2align200"


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """A network that sees both modalities alike, unlearned, and its calibration: it finds what is the same image."""
    # Here, since most tests need none of it.
    import torch
    from calibrate import calibrate
    from scaled import TileNetwork
    from shared.mapping.cells import load_cell_network
    from shared.model import PseudoSiamese
    from test_localization import ground
    from tiles import Tiles

    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    model = PseudoSiamese("resnet18", pooling="cells", stages=1, input="structure")
    torch.save({**model.settings, "img_size": 64, "model": model.state_dict()}, folder / "weights.pt")
    images = [ground(256, seed) for seed in range(20, 24)]
    tiles = Tiles(list("abcd"), images, images, [[]] * 4, 10.0)
    network, _ = load_cell_network(folder, torch.device("cpu"), nullcontext)
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setattr("calibrate.ROUNDS", ((100, 0, 10), (100, 180, 1)))
    calibration, _ = calibrate([(TileNetwork(network, 1.0), tiles)], 10)
    calibration.texture = np.array(2.0)                               # none of these tiles is flat
    calibration.save(folder / "calibration.json")
    monkeypatch.undo()
    return folder


@pytest.fixture(scope="session")
def browser():
    """Chromium without a window, as its own user would start it."""
    chromium, driver = (shutil.which(name) for name in ("chromium", "chromedriver"))
    if not chromium or not driver:
        pytest.skip("no chromium and chromedriver on this machine: the page was not tried in a browser")
    from selenium import webdriver
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--window-size=1200,900",
    ):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options, webdriver.ChromeService(driver))
    yield browser
    browser.quit()


def require_fit(browser, page, width, scheme):
    """That a page is no wider than a screen, and dark or light as it is asked to be."""
    metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    browser.get(page.as_uri())
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width, "tables scroll, not the page"
    colours = browser.execute_script("const s = getComputedStyle(document.body); return [s.color, s.backgroundColor]")
    text, ground = (sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in colours)
    assert (text > ground + 300) if scheme == "dark" else (ground > text + 300)
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def copy_checkout(folder):
    """Copy the repository there, without what git ignores: data, results, environments."""
    ignored = shutil.ignore_patterns(".git", ".venv", "results", "__pycache__", ".pytest_cache", ".ruff_cache")

    def ignore(path, names):
        is_data_set = Path(path).parent == ROOT / "data" and Path(path).name != "example"
        made = {name for name in names if name not in ("prepare.py", "README.md")} if is_data_set else set()
        return made | ignored(path, names)

    return Path(shutil.copytree(ROOT, folder, ignore=ignore))


def run_sh(checkout, python=sys.executable, **environment):
    """Run a checkout's run.sh with a Python, this one or `forked`; environment: its settings."""
    return subprocess.run(["bash", checkout / "run.sh"], capture_output=True, text=True,
                          env={**os.environ, **WITHOUT_CUDA, "PYTHON": str(python), **environment})


@pytest.fixture(scope="session")
def forked():
    """A Python for run.sh and torchrun that takes a script or -c, and forks it as a Program is forked: see there.

    Who interrupts, ends or kills it does so to the program. That a Python of its own can run each of run.sh's scripts
    is tried in test_run_sh_demo.py.
    """
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as server:
        address, python = f"{folder}/socket", Path(folder, "python")  # a socket's path must be short
        command = shlex.join([sys.executable, "-IS", str(ROOT / "tests/forked.py"), address])
        python.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        python.chmod(0o755)
        server.bind(address)
        server.listen()
        thread = threading.Thread(target=_serve, args=(server,), daemon=True)
        thread.start()
        yield python
        with socket.socket(socket.AF_UNIX) as last:
            last.connect(address)
        thread.join()


def _serve(server):
    """Run the programs that tests/forked.py sends, until one sends nothing."""
    while True:
        client, _ = server.accept()
        _, outputs, *_ = socket.recv_fds(client, 1, 2)
        if not outputs:
            client.close()
            return
        threading.Thread(target=_fork, args=(client, outputs), daemon=True).start()


def _fork(client, outputs):
    with client, client.makefile("rb") as words, suppress(BrokenPipeError, ProcessLookupError):
        command = json.loads(words.readline())
        process = FORKS.Process(target=_run_as_program, args=(*command, *map(DupFd, outputs)))
        process.start()
        for output in outputs:
            os.close(output)
        while process.sentinel not in wait([process.sentinel, client]):             # a signal; none: it was killed
            number = client.recv(1)
            os.kill(process.pid, ord(number or bytes([signal.SIGKILL])))
            if not number:
                break
        process.join()
        client.sendall(str(process.exitcode).encode())


class Program:
    """A Python script of the repository, or -c and a text, that runs as a program of its own.

    A process that has imported torch already is forked for it: importing takes longer than most of the scripts do here.
    """

    def __init__(self, *arguments, cwd=ROOT):
        self.command = [str(argument) for argument in arguments]
        self.out, self.err = tempfile.TemporaryFile(), tempfile.TemporaryFile()
        outputs = DupFd(self.out.fileno()), DupFd(self.err.fileno())
        self.process = FORKS.Process(target=_run_as_program, args=(self.command, str(cwd), dict(os.environ), *outputs))
        self.process.start()

    def wait(self):
        """Until it ends; what comes back is what subprocess.run gives."""
        self.process.join()
        texts = []
        for file in (self.out, self.err):
            file.seek(0)
            texts.append(file.read().decode())
            file.close()
        return subprocess.CompletedProcess(self.command, self.process.exitcode, *texts)

    def stop_when(self, condition, number=signal.SIGKILL, seconds=120):
        """Wait until condition() holds, send a signal, and wait."""
        end = time.monotonic() + seconds
        while not condition():
            assert self.process.is_alive(), self.wait()
            assert time.monotonic() < end
            time.sleep(0.002)
        os.kill(self.process.pid, number)
        return self.wait()


def script(*arguments, cwd=ROOT):
    """Run a script; what comes back is what subprocess.run gives."""
    return Program(*arguments, cwd=cwd).wait()


def has_logged(out, text):
    """Whether the log of the run in a folder holds a text."""
    return (out / "log.txt").is_file() and text in (out / "log.txt").read_text()


def kill_when(out, text, *arguments):
    """Run a script, and kill it (SIGKILL) when the log of its run, in the folder out, holds a text."""
    Program(*arguments).stop_when(lambda: has_logged(out, text))


def _run_as_program(command, cwd, environment, out, err):
    os.dup2(out.detach(), 1)
    os.dup2(err.detach(), 2)
    # Anew, since a stream remembers whether it is a file or a pipe.
    sys.stdout = open(1, "w", encoding=sys.stdout.encoding, errors=sys.stdout.errors, closefd=False)
    sys.stderr = open(2, "w", buffering=1, encoding=sys.stderr.encoding, errors=sys.stderr.errors, closefd=False)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    sys.argv = command
    sys.dont_write_bytecode = False                     # else each of hundreds compiles what they share
    # The tests' ways to shared/ and to the methods; a script has to find its own.
    own = {"", str(ROOT), str(ROOT / "tests"), *(str(folder) for folder in METHODS)}
    others = [folder for folder in sys.path if folder not in own]
    if command[0] == "-c":
        sys.argv, sys.path[:] = ["-c", *command[2:]], ["", *others]
        exec(command[1], {"__name__": "__main__"})
    else:
        sys.path[:] = [str((Path(cwd) / command[0]).resolve().parent), *others]
        runpy.run_path(command[0], run_name="__main__")
