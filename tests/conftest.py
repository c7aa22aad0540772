import os
import subprocess
import sys
from pathlib import Path

# The tests' images are too small to share among cores, and processes that do share them wait for each other.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

REAL = ROOT.parent / "shared/data"
SMALL = ["--arch", "resnet18", "--img_size", "32", "--init", "none", "--schedule", "cosine", "--lr", "0.05", "--lr_head", "0.05",
         "--batch_size", "8", "--epochs", "2"]


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


def script(*arguments, cwd=ROOT, **kwargs):
    """Run a Python script of the repository; its output is captured as text."""
    return subprocess.run([sys.executable, *map(str, arguments)], cwd=cwd, capture_output=True, text=True, **kwargs)
