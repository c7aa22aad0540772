"""tools/check_data.py finds every planted fault and says nothing of clean pairs."""
import importlib.util
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from conftest import ROOT, script
from shared.dataset import load_splits
from test_dataset import make_data
from test_raster import write
from tools.check_data import SHIFT, fit_of_pair


def check(data, out, *flags, sample=2):
    done = script("tools/check_data.py", data, "--out", out, "--sample", str(sample), *flags)
    assert "Traceback" not in done.stderr, done.stderr
    return done


def section(text, title):
    """The items listed below a title."""
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(title))
    items = []
    for line in lines[start + 1:]:
        if not line.startswith("  "):
            break
        items.append(line.strip())
    return items


@pytest.fixture
def data(demo, tmp_path):
    return shutil.copytree(demo, tmp_path / "demo")


def copy_place(data, source, split, name, change):
    """Add a place whose images are changed copies of a training place's."""
    for modality in ("opt", "sar"):
        image = Image.open(data / "train" / modality / f"{source}.png")
        result = change(image)
        if isinstance(result, tuple):
            before, result = result
            before.save(data / "train" / modality / f"{source}.png")
        suffix = "jpg" if change is recompress else "png"
        result.save(
            data / split / modality / f"{name}.{suffix}",
            **({"quality": 80, "subsampling": 0} if suffix == "jpg" else {}),
        )


def identical(image):
    return image.copy()


def shift(image):
    return image.crop((0, 0, 195, 195)), image.crop((5, 5, 200, 200))


def recompress(image):
    return image


def brighten(image):
    return image.point(lambda value: min(255, round(value * 1.1)))


@pytest.fixture
def flat(data, monkeypatch):
    """Demo pairs in which nothing stands: without layover and shadow, optical and SAR are aligned to the pixel."""
    spec = importlib.util.spec_from_file_location("prepare_demo", ROOT / "data/demo/prepare.py")
    prepare = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(prepare)
    scene = prepare.scene

    def flat_scene(layout, rng):
        classes, height, tint = scene(layout, rng)
        return classes, 0 * height, tint

    monkeypatch.setattr(prepare, "scene", flat_scene)
    for split, count in (("train", 24), ("test", 12)):
        for number in range(count):
            prepare.make_pair((split, number), seed=0, out=data)
    return data


def test_clean_pairs_are_clean(flat, tmp_path):
    done = check(flat, tmp_path / "out", sample=200)
    assert done.returncode == 0, done.stdout
    for title in (
        "folders or files amiss", "missing partners", "unreadable files", "pairs of different size",
        "opt: the same image twice", "opt: the same image in train and test", "sar: the same image twice",
        "sar: the same image in train and test",
    ):
        assert section(done.stdout, title) == [], title
    assert section(done.stdout, "pairs that fit better elsewhere") == []
    assert (
        "train: 24 places, 0 of them without" in done.stdout
        and "opt: 24 images, 200 to 200 px, channels [3]" in done.stdout
    )
    assert "no test place was found in training" in done.stdout
    assert (tmp_path / "out/report.txt").read_text().strip() == done.stdout.strip()
    assert Image.open(tmp_path / "out/contact.png").width > 1000


def test_the_values_are_the_images(data, tmp_path):
    done = check(data, tmp_path / "out")
    pixels = (
        np.stack([np.array(Image.open(f)) for f in sorted((data / "train/opt").iterdir())]).reshape(-1, 3).astype(float)
    )
    line = next(line for line in done.stdout.splitlines() if "opt: 24 images" in line)
    assert f"values {pixels.min():.0f} to {pixels.max():.0f}" in line
    assert (
        f"mean {np.round(pixels.mean(0), 1).tolist()}, standard deviation {np.round(pixels.std(0), 1).tolist()}" in line
    )


@pytest.mark.parametrize("change", [identical, shift, recompress, brighten])
def test_a_copy_is_found_within_a_split_and_across(data, tmp_path, change):
    copy_place(data, "0003", "train", "copy_a", change)
    copy_place(data, "0007", "test", "copy_b", change)
    done = check(data, tmp_path / "out")
    assert done.returncode == 1 and "1 pairs of places are in train and test" not in done.stdout
    for modality in ("opt", "sar"):
        within, = section(done.stdout, f"{modality}: the same image twice within a split")
        across, = section(done.stdout, f"{modality}: the same image in train and test")
        assert within.startswith("train 0003 and train copy_a") and across.startswith("train 0007 and test copy_b")
        assert ("identical" in within) and ("near-identical" in within) == (change is not identical)


def test_leaving_out_mends_the_data_without_touching_images(data, tmp_path):
    copy_place(data, "0003", "train", "copy_a", brighten)
    copy_place(data, "0007", "test", "copy_b", identical)
    (data / "train/sar/0001.png").write_bytes(b"no image")
    (data / "train/sar/0002.png").unlink()
    before = {f: f.read_bytes() for f in data.rglob("*.png")}
    assert check(data, tmp_path / "out", "--leave_out").returncode == 1
    assert {f: f.read_bytes() for f in data.rglob("*.png")} == before
    again = check(data, tmp_path / "out")
    assert again.returncode == 0
    assert section(again.stdout, "unreadable files") == [] and section(again.stdout, "missing partners") == []
    train, test = load_splits(data, ("train", "test"), 16, 2)
    assert {"0001", "0002", "0007", "copy_a"} & set(train.names) == set() and len(train) == 21
    assert "copy_b" in test.names, "the test split stays as it is"


def test_files_amiss_are_all_named(data, tmp_path):
    (data / "train/sar/0001.png").write_bytes((data / "train/sar/0001.png").read_bytes()[:9000])
    (data / "test/opt/0002.png").write_bytes(b"")
    (data / "train/opt/0004.png").unlink()
    (data / "train/sar/0005.png").unlink()
    (data / "test/sar/0006.png").unlink()
    Image.open(data / "test/sar/0007.png").resize((180, 180)).save(data / "test/sar/0007.png")
    done = check(data, tmp_path / "out")
    assert [line.split(":")[0].split("/")[-3:] for line in section(done.stdout, "unreadable files")] == [
        ["train", "sar", "0001.png"],
        ["test", "opt", "0002.png"],
    ]
    partners = section(done.stdout, "missing partners")
    assert (
        len(partners) == 2
        and "sar/0004.png: there is no optical" in partners[1]
        and "opt/0005.png: there is no SAR" in partners[0]
    )
    assert section(done.stdout, "pairs of different size") == ["test 0007: 180 px, its optical image 200"]
    assert "test: 12 places, 1 of them without a SAR image (distractors)" in done.stdout


def test_overlapping_crops_are_found_by_position(data, tmp_path):
    rows = [f"train,{i:04d},{400 * i},0" for i in range(24)] + [f"test,{i:04d},{400 * i},5000" for i in range(12)]
    rows[1] = "train,0001,100,50"  # over train 0000: half of it, three quarters high
    rows[24] = "test,0000,5000,-150"  # over train 0012 (4800) and 0013 (5200): a corner touches neither
    (data / "pairs.csv").write_text("split,id,x_m,y_m\n" + "\n".join(rows) + "\n")
    assert "overlapping crops: not known" in check(data, tmp_path / "out").stdout
    done = check(data, tmp_path / "out", "--size_m", "200")
    assert section(done.stdout, "crops that overlap within a split") == ["train 0000 and train 0001: 38%"]
    assert section(done.stdout, "crops that overlap between train and test") == [] and done.returncode == 0
    wider = check(data, tmp_path / "out", "--size_m", "300")
    assert section(wider.stdout, "crops that overlap between train and test") == [
        "train 0012 and test 0000: 17%",
        "train 0013 and test 0000: 17%",
    ]
    assert wider.returncode == 1


def test_ids_that_match_nothing_are_told(data, tmp_path):
    rows = [f"train,{i},t" for i in range(24)] + ["test,0003,t", "test,0777,t"]
    (data / "pairs.csv").write_text("split,id,tile\n" + "\n".join(rows) + "\n")
    amiss = section(check(data, tmp_path / "out").stdout, "folders or files amiss")
    assert len(amiss) == 3 and "pairs.csv: 24 of 24 ids of train differ from an image's name by leading" in amiss[0]
    assert "(the first: 0777)" in amiss[1] and "11 of 12 places of test have no row" in amiss[2]


def best_shift(data, name):
    """((across, down), correlation): where a training pair fits best."""
    images = [np.array(Image.open(data / "train" / modality / f"{name}.png")) for modality in ("opt", "sar")]
    fits = fit_of_pair(*images)
    down, across = np.unravel_index(fits.argmax(), fits.shape)
    return (across - SHIFT, down - SHIFT), fits.max()


def test_a_shifted_pair_is_listed_and_the_shift_is_right(data, tmp_path):
    shifts = {file.stem: best_shift(data, file.stem) for file in (data / "train/opt").iterdir()}
    name = max(shifts, key=lambda name: shifts[name][1])
    layover, _ = shifts[name]                             # walls lie over the ground towards the radar
    file = data / "train/sar" / f"{name}.png"
    Image.fromarray(np.roll(np.array(Image.open(file)), (-6, 9), (0, 1))).save(file)
    found = section(check(data, tmp_path / "out", sample=200).stdout, "pairs that fit better elsewhere")
    line = next(line for line in found if line.startswith(f"train {name}: "))
    across, down = map(int, re.search(r"shift ([+-]\d+), ([+-]\d+) px", line).groups())
    assert max(map(abs, layover)) <= 5 and (across, down) == (layover[0] + 9, layover[1] - 6)


def test_strips_of_one_place_are_no_repetition(data, tmp_path):
    file = data / "train/sar/0006.png"
    shutil.copy(file, data / "train/sar/0006__a.png")
    file.rename(data / "train/sar/0006__b.png")
    assert section(check(data, tmp_path / "out").stdout, "sar: the same image twice") == []


def test_the_real_pairs(real, tmp_path):
    """With what leave_out.csv leaves out, nothing repeats and no test place is in training."""
    done = check(real, tmp_path / "out", sample=200)
    assert done.returncode == 0
    for title in (
        "unreadable files", "missing partners", "opt: the same image twice within a split",
        "opt: the same image in train and test", "sar: the same image in train and test",
        "crops that overlap within a split", "crops that overlap between train and test",
    ):
        assert section(done.stdout, title) == [], title
    assert "train: 1200 places" in done.stdout and "test: 524 places" in done.stdout
    assert "median best shift +1 across, +0 down" in done.stdout


def test_what_is_wrong_with_the_real_pairs_is_found(real, tmp_path):
    """Tiles 130 and 142 are one place published twice; tile 076 shows ground of the test place 175_00."""
    data = tmp_path / "pairs"
    with open(real / "pairs.csv") as file:
        header, *rows = file.read().splitlines()
    rows = [row for row in rows if row.split(",")[3] in ("076", "130", "142", "175")]
    for split, name in (row.split(",")[:2] for row in rows):
        for modality in ("opt", "sar"):
            folder = data / split / modality
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{name}.jpg").symlink_to(real / split / modality / f"{name}.jpg")
    (data / "pairs.csv").write_text("\n".join([header, *rows]) + "\n")
    done = check(data, tmp_path / "out")
    assert done.returncode == 1
    assert "opt: the same image twice within a split: 25" in done.stdout
    assert "train 130_00 and train 142_00: identical" in done.stdout
    across = section(done.stdout, "crops that overlap between train and test")
    assert [line.split(":")[0] for line in across] == ["train 076_44 and test 175_00"]


def test_a_folder_without_images_is_an_error_not_a_clean_bill(tmp_path):
    (tmp_path / "empty").mkdir()
    done = check(tmp_path / "empty", tmp_path / "out")
    assert (
        done.returncode == 2 and "holds no data set" in done.stderr and "no test place" not in done.stdout
    )
    for modality in ("opt", "sar"):
        (tmp_path / "half/train" / modality).mkdir(parents=True)
        Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(tmp_path / "half/train" / modality / "a.png")
    done = check(tmp_path / "half", tmp_path / "out")
    assert done.returncode == 0 and "is not known: no image of test can be read" in done.stdout


def test_leaving_out_once_more_keeps_what_was_left_out(data, tmp_path):
    (data / "train/sar/0001.png").write_bytes(b"no image")
    assert check(data, tmp_path / "out", "--leave_out").returncode == 0
    (data / "train/sar/0002.png").unlink()
    check(data, tmp_path / "out", "--leave_out")
    train, = load_splits(data, ("train",), 16, 2)
    assert {"0001", "0002"} & set(train.names) == set() and len(train) == 22


def test_other_peoples_files_are_told_as_they_would_be_read(tmp_path):
    data = make_data(tmp_path / "d", train=6, test=6, size=48)
    random = np.random.default_rng(3)
    for number, file in enumerate(sorted((data / "train/opt").iterdir())):
        write(file.with_suffix(".tif"), random.integers(1, 3000, (5, 48, 48)).astype(np.uint16))
        file.unlink()
    for number, file in enumerate(sorted((data / "train/sar").iterdir())):
        bands = random.normal(-12, 3, (2, 48, 48)).astype(np.float32)
        bands[:, :16] = np.nan if number == 0 else bands[:, :16]
        bands[:, :, :12] = -9999 if number == 1 else bands[:, :, :12]
        write(file.with_suffix(".tif"), bands, descriptions=("VH", "VV"))
        file.unlink()
    (data / "train/opt/._p00.tif").write_text("left by another system")
    (data / "test/sar/p00.png").unlink()
    (data / "test/sar/p00.tif").write_text("no image")
    done = script("tools/check_data.py", data, "--out", tmp_path / "out", "--bands", "4,3,2")
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "out/report.txt").read_text()
    assert "bands 4, 3, 2 of 5, uint16: 6 images" in text and "band 2 of 2, float32: 5 images" in text
    assert "-9999 along the border taken for nodata: 1 images" in text
    assert "images that are not shown whole: 2" in text and "train sar p00: 33% shows nothing" in text
    assert "p00.tif cannot be opened" in text and "._p00" not in text
