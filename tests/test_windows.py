"""Windows of whole training tiles: aligned, at the crops' scale, apart within a batch, at all eight symmetries."""
import argparse
import json

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import SMALL, script
from shared import dataset
from shared.dataset import draw_batches, load_data
from shared.plumbing.errors import InputError
from shared.reading import layouts
from shared.reading.windows import Windows, apply_symmetry, load_windows
from test_dataset import load_splits, make_data


def windows_of(tiles, height, width, window, places=40):
    """Tiles whose pixels hold their own tile, row and column; SAR is the same but for one bit, to see alignment."""
    tile, row, column = torch.meshgrid(torch.arange(tiles), torch.arange(height), torch.arange(width), indexing="ij")
    opt = torch.stack([tile, row, column], 3).to(torch.uint8)
    return Windows(opt, opt ^ 128, torch.tensor([[height, width]] * tiles), window, places)


def test_windows_are_aligned_cut_from_tiles_and_never_overlap():
    windows = windows_of(3, 90, 120, 20)
    for seed in range(20):
        opt, sar = windows.draw(torch.arange(12), torch.Generator().manual_seed(seed))
        assert opt.shape == sar.shape == (12, 20, 20, 3)
        assert torch.equal(opt ^ 128, sar), "both images of a pair show the same window at the same symmetry"
        tile, top, left = opt[:, 0, 0, 0].long(), opt[..., 1].amin((1, 2)).long(), opt[..., 2].amin((1, 2)).long()
        assert (opt[..., 0] == tile[:, None, None]).all()
        assert (opt[..., 1].amax((1, 2)) == top + 19).all() and (opt[..., 2].amax((1, 2)) == left + 19).all()
        apart = (top[:, None] - top).abs().maximum((left[:, None] - left).abs()) >= 20
        same = (tile[:, None] == tile) & ~torch.eye(12, dtype=torch.bool)
        assert apart[same].all()


def test_windows_reach_everywhere():
    windows = windows_of(2, 24, 30, 20)
    drawn = {
        tuple(int(x[0]) for x in windows.positions(1, torch.Generator().manual_seed(seed))) for seed in range(2000)
    }
    assert drawn == {(tile, top, left) for tile in range(2) for top in range(5) for left in range(11)}


def test_all_eight_symmetries():
    image = torch.arange(16).view(1, 4, 4, 1).expand(8, 4, 4, 3)
    out = apply_symmetry(image, torch.arange(8))[..., 0]
    expected = {
        tuple(np.rot90(base, k).flatten())
        for base in (image[0, :, :, 0].numpy(), image[0, :, :, 0].numpy().T)
        for k in range(4)
    }
    assert {tuple(one.flatten().tolist()) for one in out} == expected and len(expected) == 8


def test_smaller_tiles_are_never_drawn_beyond_their_edge():
    windows = windows_of(2, 60, 60, 20)
    windows.sizes[1] = torch.tensor([30, 25])
    for seed in range(50):
        tile, top, left = windows.positions(4, torch.Generator().manual_seed(seed))
        small = tile == 1
        assert (top[small] <= 10).all() and (left[small] <= 5).all()


def test_what_does_not_fit_is_an_error():
    with pytest.raises(InputError, match="smaller --batch_size, or more tiles"):
        windows_of(1, 40, 40, 20).positions(5, torch.Generator().manual_seed(0))


def with_tiles(folder, size=100):
    data = make_data(folder, train=6, size=20)
    rng = np.random.default_rng(1)
    for name in ("a", "b"):
        image = rng.integers(0, 256, (size, size, 3), np.uint8)
        for modality in ("opt", "sar"):
            (data / "train_tiles" / modality).mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(data / "train_tiles" / modality / f"{name}.png")
    return data


def test_windows_have_the_scale_of_the_crops(tmp_path):
    data = with_tiles(tmp_path / "d")
    pairs, = load_splits(data, ("train",), 10, 1)
    windows = load_windows(data, pairs, img_size=10, workers=2, batch_size=4)
    assert windows.opt.shape == (2, 50, 50, 3) and len(windows) == 6
    whole = np.array(Image.open(data / "train_tiles/opt/a.png")).astype(float)
    assert np.abs(windows.opt[0].numpy() - whole.reshape(50, 2, 50, 2, 3).mean((1, 3))).max() <= 0.5


def test_batches_of_windows_depend_on_seed_epoch_and_step(tmp_path):
    data = with_tiles(tmp_path / "d")
    pairs, = load_splits(data, ("train",), 10, 1)
    windows = load_windows(data, pairs, 10, 2, 3)
    batches = [list(draw_batches(windows, 3, 0, epoch, 0, "cpu", torch.Generator())) for epoch in (0, 0, 1)]
    assert len(batches[0]) == 2
    assert all(torch.equal(a[0], b[0]) and torch.equal(a[0], a[1]) for a, b in zip(batches[0], batches[1]))
    assert not torch.equal(batches[0][0][0], batches[2][0][0]) and not torch.equal(batches[0][0][0], batches[0][1][0])


def test_tiles_held_out_for_validation_are_not_drawn_from(tmp_path):
    data = with_tiles(tmp_path / "d")
    (data / "pairs.csv").write_text("split,id,tile\n" + "".join(f"train,p{i:02d},{'ab'[i // 3]}\n" for i in range(6)))
    pairs, = load_splits(data, ("train",), 10, 1)
    kept = pairs.subset(torch.tensor([3, 4, 5]))
    windows = load_windows(data, kept, 10, 2, 2)
    b = np.array(Image.open(data / "train_tiles/opt/b.png")).astype(float).reshape(50, 2, 50, 2, 3).mean((1, 3))
    assert len(windows.sizes) == 1 and np.abs(windows.opt[0].numpy() - b).max() <= 0.5


def test_bad_tiles_are_all_named(tmp_path):
    data = with_tiles(tmp_path / "d")
    pairs, = load_splits(data, ("train",), 10, 1)
    (data / "train_tiles/opt/a.png").write_bytes(b"no image")
    Image.fromarray(np.zeros((90, 100, 3), np.uint8)).save(data / "train_tiles/sar/b.png")
    Image.fromarray(np.zeros((90, 100, 3), np.uint8)).save(data / "train_tiles/sar/c.png")
    with pytest.raises(InputError) as caught:
        load_windows(data, pairs, 10, 2, 2)
    for words in (
        "3 problem(s)",
        "opt/a.png: cannot be decoded",
        "sar/b.png: not the size of",
        "sar/c.png: there is no such tile",
    ):
        assert words in str(caught.value), str(caught.value)


@pytest.mark.parametrize("store", ["memory", "disk", "disk again"])
def test_the_training_split_is_listed_once(tmp_path, monkeypatch, store):
    data = with_tiles(tmp_path / "d")
    args = argparse.Namespace(data_path=str(data), img_size=10, workers=2, store=store.split()[0], validate=0.0,
                              windows=True, symmetries=False, batch_size=4, region=None, target_path=None,
                              target_region=None, bands=None, sar_bands=None, scale=None)
    if store == "disk again":
        load_data(args)                                   # the memory map is there: nothing is decoded any more
    listed = []

    def list_split(root, split, problems):
        listed.append(split)
        return layouts.list_split(root, split, problems)

    monkeypatch.setattr(dataset, "list_split", list_split)
    windows, _ = load_data(args)
    assert listed == ["train", "test"] and windows.opt.shape == (2, 50, 50, 3), "at the scale of the crops"


def test_the_numbers_of_windows_are_those_of_the_epoch():
    batches = draw_batches(windows_of(3, 90, 120, 20, places=40), 8, 0, 3, 0, "cpu", torch.Generator())
    assert torch.cat([places for opt, sar, places in batches]).tolist() == list(range(40))


def test_a_script_trains_on_windows(tmp_path, real):
    done = script(
        "code_Aux/train.py", "--data_path", real, "--result_path", tmp_path / "run", *SMALL, "--epochs", "1",
        "--windows", "--validate", "0.9", "--batch_size", "16",
    )
    assert done.returncode == 0, done.stderr
    assert (
        "training places, windows of 5 tiles" in done.stdout
        and json.loads((tmp_path / "run/args.json").read_text())["windows"]
    )


def test_no_tiles_is_one_sentence(demo, tmp_path):
    done = script("code/train.py", "--data_path", demo, "--result_path", tmp_path / "run", *SMALL, "--windows")
    assert (
        done.returncode == 2
        and "train_tiles: there is no such folder" in done.stderr
        and "--keep_tiles" in done.stderr
        and "Traceback" not in done.stderr
    )
