"""The prepare scripts: crops lie where their names say, splits never overlap, faults are named, runs go on."""
import csv
import json
import runpy
import shutil

import numpy as np
import pytest
from PIL import Image

from archive import METRES, ORIGIN, STRIPS, write_archive
from conftest import REAL, ROOT, SMALL, script
from data.split import split_by_blocks, split_by_tiles
from shared.reading.layouts import read_tiles_csv

SN6, S1S2 = "data/SN6align200/prepare.py", "data/S1S2align200/prepare.py"
CROP = 20


def rows_of(folder):
    with open(folder / "pairs.csv") as file:
        return list(csv.DictReader(file))


def pixels(file):
    return np.array(Image.open(file))


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sn6") / "AOI_11_Rotterdam"
    return folder, write_archive(folder, tile=90, across=4, down=3, strips=3, nan_border=11)


@pytest.fixture(scope="module")
def cut(archive, tmp_path_factory):
    out = tmp_path_factory.mktemp("cut") / "SN6align"
    done = script(SN6, archive[0].parent, out, "--crop", CROP, "--strips", "all", "--max_missing", "0.2")
    assert done.returncode == 0, done.stderr
    return out


def test_crops_are_where_their_names_say(archive, cut):
    rgb, sar = archive[1]
    checked = 0
    for row in rows_of(cut):
        left = round((float(row["x_m"]) - ORIGIN[0]) / METRES) - CROP // 2
        top = round((ORIGIN[1] - float(row["y_m"])) / METRES) - CROP // 2
        inside = np.s_[:, top:top + CROP, left:left + CROP]
        assert np.array_equal(
            pixels(cut / row["split"] / "opt" / f"{row['id']}.png"), rgb[inside].transpose(1, 2, 0)
        ), row
        for file in (cut / row["split"] / "sar").glob(f"{row['id']}__*.png"):
            image = pixels(file).astype(float)
            seen = image.max(2) > 0
            assert seen.mean() >= 0.75
            # Each channel is an increasing straight line of HH, VV, VH in dB (the world's R, G, B).
            for channel in range(3):
                truth = rgb[inside][channel].astype(float)
                within = seen & (image[..., channel] > 0) & (image[..., channel] < 255)
                slope, offset = np.polyfit(truth[within], image[..., channel][within], 1)
                assert slope > 0.9 and np.abs(slope * truth + offset - image[..., channel])[within].max() <= 1
            checked += 1
    assert checked > len(rows_of(cut)) > 100, "several strips see the same place"


def test_pseudo_colour_is_scaled_over_the_whole_set(cut):
    values = np.concatenate([pixels(file)[pixels(file).max(2) > 0] for file in cut.glob("*/sar/*.png")]).astype(float)
    assert ((values == 0).mean(0) < 0.02).all() and ((values == 255).mean(0) < 0.02).all()
    assert ((values <= 3).mean(0) > 0.005).all() and ((values >= 252).mean(0) > 0.005).all()


@pytest.mark.parametrize("strips", ["all", "one"])
def test_no_test_pixel_is_seen_in_training(archive, cut, tmp_path, strips):
    out = cut
    if strips == "one":
        out = tmp_path / "one"
        assert script(SN6, archive[0], out, "--crop", CROP).returncode == 0
        assert len(list((out / "train/sar").iterdir())) == len(list((out / "train/opt").iterdir())) > 1
    rows = rows_of(out)
    position = {
        split: np.array([[float(r["x_m"]), float(r["y_m"])] for r in rows if r["split"] == split])
        for split in ("train", "test")
    }
    assert len(position["train"]) > 10 and len(position["test"]) > 10
    apart = np.abs(position["train"][:, None] - position["test"][None]).max(2)
    assert apart.min() >= 2 * CROP * METRES, "a gap of one crop lies between"
    seen = {split: {pixels(file).tobytes() for file in (out / split / "opt").iterdir()} for split in ("train", "test")}
    assert not seen["train"] & seen["test"]


def test_one_strip_is_the_one_with_most_valid_pixels(archive, tmp_path):
    out = tmp_path / "one"
    assert script(SN6, archive[0], out, "--crop", CROP, "--max_missing", "1").returncode == 0
    both = [row["id"] for row in rows_of(out)]
    everything = tmp_path / "all"
    assert script(SN6, archive[0], everything, "--crop", CROP, "--max_missing", "1", "--strips", "all").returncode == 0
    checked = 0
    for name in both:
        split = next(row["split"] for row in rows_of(everything) if row["id"] == name)
        strips = [(pixels(f).max(2) == 0).mean() for f in (everything / split / "sar").glob(f"{name}__*.png")]
        kept = (pixels(out / split / "sar" / f"{name}.png").max(2) == 0).mean()
        assert kept == min(strips)
        checked += len(set(strips)) > 1
    assert checked > 3


def test_an_interrupted_run_goes_on(archive, cut, tmp_path):
    out = tmp_path / "again"
    shutil.copytree(cut, out)
    (out / "pairs.csv").unlink()
    files = sorted(out.glob("*/*/*.png"))
    kept, lost = files[0], files[len(files) // 2]
    kept_time = kept.stat().st_mtime_ns
    lost.unlink()
    (out / "survey.json").unlink()
    assert (
        script(SN6, archive[0].parent, out, "--crop", CROP, "--strips", "all", "--max_missing", "0.2").returncode == 0
    )
    assert {f.relative_to(out): f.read_bytes() for f in out.rglob("*.*")} == {
        f.relative_to(cut): f.read_bytes() for f in cut.rglob("*.*")
    }
    assert kept.stat().st_mtime_ns == kept_time, "what was there is not made again"
    other = script(SN6, archive[0].parent, out, "--crop", "30")
    assert other.returncode == 2 and "prepared from another source or with other arguments" in other.stderr


def test_bad_tiles_are_all_named(archive, tmp_path):
    root = shutil.copytree(archive[0], tmp_path / "broken")
    names = sorted(f.name for f in (root / "PS-RGB").iterdir())
    (root / "PS-RGB" / names[0]).write_bytes((root / "PS-RGB" / names[0]).read_bytes()[:300])
    sar = root / "SAR-Intensity" / names[1].replace("PS-RGB", "SAR-Intensity")
    sar.write_bytes(sar.read_bytes()[:3000])
    done = script(SN6, root, tmp_path / "out", "--crop", CROP)
    assert (
        done.returncode == 2
        and "2 tile(s) cannot be used" in done.stderr
        and names[0] in done.stderr
        and names[1] in done.stderr
    )
    assert not list((tmp_path / "out").rglob("*.png"))
    sar.unlink()
    (root / "SummaryData/SAR_orientations.txt").write_text(f"{STRIPS[0]} 0\n{STRIPS[1]} 1\n")
    done = script(SN6, root, tmp_path / "out2", "--crop", CROP)
    assert (
        done.returncode == 2
        and f"there is no {sar}" in done.stderr
        and f"does not name its strip {STRIPS[2]}" in done.stderr
    )
    nothing = script(SN6, tmp_path / "out", tmp_path / "out3")
    assert nothing.returncode == 2 and "holds no folder PS-RGB" in nothing.stderr


def test_orientation_keeps_strips_imaged_from_one_side(archive, tmp_path):
    assert (
        script(
            SN6, archive[0], tmp_path / "out", "--crop", CROP, "--orientation", "south", "--strips", "all"
        ).returncode
        == 0
    )
    strips = {f.stem.partition("__")[2] for f in (tmp_path / "out").glob("*/sar/*.png")}
    assert strips == {STRIPS[1]} and {row["from"] for row in rows_of(tmp_path / "out")} == {"south"}


def test_rectangles_cover_each_cell_once_the_largest_first():
    rectangles = runpy.run_path(str(ROOT / SN6))["rectangles"]
    cells = {(x, y) for x in range(3) for y in range(2)} | {(0, 2), (7, 7)}
    assert rectangles(cells) == [(0, 0, 3, 2), (0, 2, 1, 1), (7, 7, 1, 1)]
    for seed in range(20):
        cells = {tuple(cell) for cell in np.random.default_rng(seed).integers(0, 6, (25, 2)).tolist()}
        found = rectangles(cells)
        covered = [(x + i, y + j) for x, y, width, height in found for i in range(width) for j in range(height)]
        assert len(covered) == len(set(covered)) and set(covered) == cells
        largest = max(w * h for x in range(6) for y in range(6) for w in range(1, 7) for h in range(1, 7)
                      if {(x + i, y + j) for i in range(w) for j in range(h)} <= cells)
        assert found[0][2] * found[0][3] == largest


def test_kept_tiles_hold_all_training_ground_and_no_other(archive, tmp_path):
    rgb = archive[1][0]
    done = script(SN6, archive[0], tmp_path / "out", "--crop", CROP, "--block", "4", "--keep_tiles")
    assert done.returncode == 0, done.stderr
    rows = rows_of(tmp_path / "out")
    seen = np.zeros(rgb.shape[1:], bool)
    for row in rows:
        if row["split"] == "train":
            left, top = (
                round((float(row["x_m"]) - ORIGIN[0]) / METRES) - CROP // 2,
                round((ORIGIN[1] - float(row["y_m"])) / METRES) - CROP // 2,
            )
            seen[top:top + CROP, left:left + CROP] = True
    whole = rgb.transpose(1, 2, 0)
    starts = {
        whole[i, j : j + 4].tobytes(): (i, j) for i in range(whole.shape[0]) for j in range(whole.shape[1] - 3)
    }  # four pixels tell where
    kept, larger = np.zeros_like(seen), 0
    files = sorted((tmp_path / "out/train_tiles/opt").glob("*.png"))
    for file in files:
        image = pixels(file)
        i, j = starts[image[0, :4].tobytes()]
        assert np.array_equal(image, whole[i:i + image.shape[0], j:j + image.shape[1]])
        assert pixels(file.parents[1] / "sar" / file.name).shape == image.shape
        assert (
            seen[i : i + image.shape[0], j : j + image.shape[1]].all()
            and not kept[i : i + image.shape[0], j : j + image.shape[1]].any()
        )
        kept[i:i + image.shape[0], j:j + image.shape[1]] = True
        larger += image.shape[0] * image.shape[1] > CROP * CROP
    assert np.array_equal(kept, seen) and larger > 0
    assert {file.stem.split("__")[0] for file in files} == {row["tile"] for row in rows if row["split"] == "train"}


def test_blocks_leave_a_gap_and_give_the_places_asked_for():
    cells = [(x, y) for x in range(-12, 30) for y in range(40)]
    train, test = split_by_blocks(cells, 300, 6, seed=3)
    assert len(test) == 300 and len(train) > 900
    assert min(max(abs(a - c), abs(b - d)) for a, b in train for c, d in test) == 2
    assert (train, test) == split_by_blocks(cells[::-1], 300, 6, seed=3)
    assert test != split_by_blocks(cells, 300, 6, seed=4)[1]


def test_tiles_are_split_with_each_regions_share():
    regions = {f"{i:03d}": "ABC"[0 if i < 30 else 1 if i < 53 else 2] for i in range(70)}
    test = split_by_tiles(regions, 0.3)
    assert {r: sum(regions[t] == r for t in test) for r in "ABC"} == {"A": 9, "B": 7, "C": 5}
    assert len(split_by_tiles({"1": "A", "2": "B"}, 0.3)) == 1


@pytest.fixture(scope="module")
def sentinel(tmp_path_factory):
    """Four made-up tiles of 240 px in two regions."""
    folder = tmp_path_factory.mktemp("s1s2")
    rng, notes = np.random.default_rng(0), []
    for modality in ("opt", "sar"):
        (folder / "dataset" / modality).mkdir(parents=True)
    for i, region in enumerate(("T11SLT", "T11SLT", "T14RNT", "T14RNT")):
        image = rng.integers(0, 256, (240, 240, 3), np.uint8)
        for modality in ("opt", "sar"):
            Image.fromarray(image if modality == "opt" else np.repeat(image[..., :1], 3, 2)).save(
                folder / "dataset" / modality / f"{i:03d}.png"
            )
        left, top = 3000.0 * i, 5000.0
        notes.append(
            {
                "fragment_filename": f"{i:03d}.png",
                "opt_tile_name": f"S2A_MSIL1C_2020_N0209_R027_{region}_2020.SAFE",
                "corners_EPSG:3395": [[left, top], [left + 2400, top], [left + 2400, top - 2400], [left, top - 2400]],
            }
        )
    (folder / "dataset/metadata.json").write_text(json.dumps(notes))
    return folder


def test_sentinel_tiles_become_crops(sentinel, tmp_path):
    out = tmp_path / "out"
    done = script(S1S2, sentinel, out, "--crop", "48", "--test_share", "0.5", "--keep_tiles")
    assert done.returncode == 0, done.stderr
    rows = rows_of(out)
    assert len(rows) == 4 * 25 and sorted((r["split"], r["region"]) for r in rows[::25]) == [
        (s, r) for s in ("test", "train") for r in ("T11SLT", "T14RNT")
    ]
    assert {r["tile"] for r in rows if r["split"] == "train"} == {f.stem for f in (out / "train_tiles/opt").iterdir()}
    assert {r["tile"] for r in rows if r["split"] == "test"} == {f.stem for f in (out / "test_tiles/sar").iterdir()}
    corners = read_tiles_csv(out, None)
    assert len(corners) == 4 and all(corners[t][:2] == (3000 * int(t), 5000) for t in corners)
    for row in rows[::7]:
        tile, number = row["id"].split("_")
        i, j = map(int, number)
        whole = pixels(sentinel / "dataset/opt" / f"{tile}.png")
        crop = whole[48 * i:48 * i + 48, 48 * j:48 * j + 48]
        assert np.array_equal(pixels(out / row["split"] / "opt" / f"{row['id']}.png"), crop)
        assert np.array_equal(pixels(out / row["split"] / "sar" / f"{row['id']}.png"), crop[..., 0]), "one channel"
        assert float(row["x_m"]) == 3000 * int(tile) + 480 * (j + 0.5) and float(row["y_m"]) == 5000 - 480 * (i + 0.5)


def test_sentinel_faults_are_all_named(sentinel, tmp_path):
    root = shutil.copytree(sentinel, tmp_path / "broken")
    (root / "dataset/opt/001.png").unlink()
    half = root / "dataset/sar/002.png"
    half.write_bytes(half.read_bytes()[:5000])
    done = script(S1S2, root, tmp_path / "out")
    assert (
        done.returncode == 2
        and "opt/001.png" in done.stderr
        and "sar/002.png" in done.stderr
        and not (tmp_path / "out").exists()
    )


@pytest.mark.parametrize("name, prepare, flags", [("S1S2raw", S1S2, []), ("SN6raw", SN6, ["--crop", "20"])])
def test_real_downloads_become_a_folder_to_train_on(tmp_path, name, prepare, flags):
    if not (REAL / name).is_dir():
        pytest.skip(f"no real download: {REAL / name} is absent")
    done = script(prepare, REAL / name, tmp_path / "out", *flags)
    assert done.returncode == 0, done.stderr
    trained = script(
        "code/train.py", "--data_path", tmp_path / "out", "--result_path", tmp_path / "run", *SMALL, "--epochs", "1"
    )
    assert trained.returncode == 0 and "FC, first answer within 50 m:" in trained.stdout, trained.stderr


def test_our_cut_of_the_real_tiles_is_the_real_cut(tmp_path, real):
    """The published pairs were cut from the same tiles: the same names show the same pixels, but for JPEG."""
    if not (REAL / "S1S2raw").is_dir():
        pytest.skip(f"no real download: {REAL / 'S1S2raw'} is absent")
    assert script(S1S2, REAL / "S1S2raw", tmp_path / "out").returncode == 0
    with open(real / "pairs.csv") as file:
        theirs = {row["id"]: row for row in csv.DictReader(file)}
    for row in rows_of(tmp_path / "out"):
        other = theirs[row["id"]]
        assert [row[k] for k in ("region", "tile", "x_m", "y_m")] == [
            other[k] for k in ("region", "tile", "x_m", "y_m")
        ]
        a = pixels(tmp_path / "out" / row["split"] / "opt" / f"{row['id']}.png").astype(float)
        b = pixels(real / other["split"] / "opt" / f"{row['id']}.jpg").astype(float)
        assert np.abs(a - b).mean() < 4
