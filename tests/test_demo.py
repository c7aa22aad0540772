"""data/demo/prepare.py: the same seed gives the same pairs, and its radar does what a radar does."""
import importlib.util

import numpy as np
import pytest
from PIL import Image

from conftest import ROOT, script


@pytest.fixture(scope="module")
def prepare():
    spec = importlib.util.spec_from_file_location("prepare_demo", ROOT / "data/demo/prepare.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_same_seed_gives_the_same_files(demo, tmp_path):
    assert script("data/demo/prepare.py", tmp_path, "--train", "3", "--test", "2").returncode == 0
    for file in tmp_path.rglob("*.png"):
        assert file.read_bytes() == (demo / file.relative_to(tmp_path)).read_bytes(), file
    assert (
        script("data/demo/prepare.py", tmp_path / "other", "--train", "1", "--test", "1", "--seed", "1").returncode == 0
    )
    assert (tmp_path / "other/train/opt/0000.png").read_bytes() != (demo / "train/opt/0000.png").read_bytes()


def test_no_two_places_are_alike(demo):
    images = [file.read_bytes() for file in demo.rglob("opt/*.png")]
    assert len(set(images)) == len(images) == 36


def test_a_building_lays_over_bounces_and_casts_shadow(prepare):
    """One box of height 12 at columns 100 to 119 of flat grass, the radar to the left."""
    side = prepare.SIZE + 2 * prepare.MARGIN
    classes, height = np.full((side, side), prepare.GRASS), np.zeros((side, side), np.float32)
    rows = slice(100, 180)
    classes[rows, 100:120], height[rows, 100:120] = prepare.BUILDING, 12
    sar = prepare.render_sar(classes, height, np.random.default_rng(0)).astype(float)[70:130].mean((0, 2))
    column = {
        name: sar[a - prepare.MARGIN : b - prepare.MARGIN].mean()
        for name, (a, b) in {
            "grass": (45, 80),
            "layover": (89, 98),
            "bounce": (99, 102),
            "shadow": (121, 130),
            "behind": (135, 200),
        }.items()
    }
    assert column["layover"] > column["grass"] + 10, "the wall and the roof lie over the ground in front"
    assert column["bounce"] > column["layover"], "double bounce at the foot of the wall"
    assert column["shadow"] < column["grass"] - 60, "radar shadow behind, as long as the building is high"
    assert abs(column["behind"] - column["grass"]) < 5


def test_speckle_is_multiplicative_with_the_stated_looks(prepare):
    side = prepare.SIZE + 2 * prepare.MARGIN
    flat = np.zeros((side, side), np.float32)
    looks = []
    for kind in (prepare.GRASS, prepare.ROAD):
        sar = prepare.render_sar(np.full((side, side), kind), flat, np.random.default_rng(0)).astype(float)
        low, high = prepare.DB_RANGE
        intensity = 10 ** ((sar[..., 0] / 255 * (high - low) + low) / 10)
        looks.append(intensity.mean() ** 2 / intensity.var())
    assert looks[0] == pytest.approx(looks[1], rel=0.1), "the same relative fluctuation on bright and dark ground"
    assert looks[0] == pytest.approx(prepare.LOOKS, rel=0.2)


def test_sizes_and_modes(demo):
    for modality in ("opt", "sar"):
        image = Image.open(demo / "train" / modality / "0000.png")
        assert image.size == (200, 200) and image.mode == "RGB"
