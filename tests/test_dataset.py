"""Reading pairs, drawing batches of them, and what is said of files that cannot be used."""
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from shared.adapting.unpaired import load_unpaired
from shared.dataset import describe, draw_batches, hold_out, load_splits, steps_per_epoch
from shared.plumbing.errors import InputError
from shared.reading.layouts import find_data, read_pairs_csv


def save(file, image):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(file)


def make_data(folder, train=6, test=4, size=20, seed=0):
    """Pairs of random images; a place's optical and SAR image are the same picture, so that pairs can be recognised."""
    rng = np.random.default_rng(seed)
    for split, count in (("train", train), ("test", test)):
        for i in range(count):
            image = rng.integers(0, 256, (size, size, 3), np.uint8)
            save(folder / split / "opt" / f"p{i:02d}.png", image)
            save(folder / split / "sar" / f"p{i:02d}.png", image)
    return folder


def test_pairs_are_what_the_files_hold(tmp_path):
    data = make_data(tmp_path / "d")
    train, test = load_splits(data, ("train", "test"), 20, 2)
    assert len(train) == 6 and len(test) == 4 and test.distractors == 0
    assert train.names == [f"p{i:02d}" for i in range(6)]
    assert torch.equal(train.opt[3], torch.from_numpy(np.array(Image.open(data / "train/opt/p03.png"))))
    assert torch.equal(train.opt, train.sar[train.sar_place.argsort()])


def test_one_channel_is_repeated_and_jpeg_and_tiff_are_read(tmp_path):
    data = make_data(tmp_path / "d")
    grey = np.arange(400, dtype=np.uint8).reshape(20, 20)
    (data / "train/sar/p00.png").unlink()
    save(data / "train/sar/p00.tif", grey)
    (data / "train/opt/p01.png").unlink()
    save(data / "train/opt/p01.jpg", np.full((20, 20, 3), 77, np.uint8))
    train, _ = load_splits(data, ("train", "test"), 20, 1)
    assert torch.equal(train.sar[0], torch.from_numpy(grey).unsqueeze(-1).expand(20, 20, 3))
    assert (train.opt[1] == 77).all()


def test_images_shrink_by_area(tmp_path):
    data = make_data(tmp_path / "d")
    train, _ = load_splits(data, ("train", "test"), 10, 1)
    whole = np.array(Image.open(data / "train/opt/p00.png")).astype(float)
    assert np.abs(train.opt[0].numpy() - whole.reshape(10, 2, 10, 2, 3).mean((1, 3))).max() <= 0.5


def test_workers_change_nothing(tmp_path):
    data = make_data(tmp_path / "d")
    one, four = load_splits(data, ("train", "test"), 16, 1)[0], load_splits(data, ("train", "test"), 16, 4)[0]
    assert torch.equal(one.opt, four.opt) and torch.equal(one.sar, four.sar)


def test_several_strips_of_a_place_and_distractors(tmp_path):
    data = make_data(tmp_path / "d")
    shutil.move(data / "test/sar/p00.png", data / "test/sar/p00__a.png")
    shutil.copy(data / "test/sar/p00__a.png", data / "test/sar/p00__b.png")
    (data / "test/sar/p02.png").unlink()
    _, test = load_splits(data, ("train", "test"), 20, 2)
    assert test.sar_names == ["p00__a", "p00__b", "p01", "p03"]
    assert test.sar_place.tolist() == [0, 0, 1, 3]
    assert len(test) == 4 and test.distractors == 1


def test_every_bad_file_is_named_at_once(tmp_path):
    data = make_data(tmp_path / "d")
    (data / "train/sar/p00.png").unlink()                                        # no partner
    save(data / "test/sar/p99.png", np.zeros((20, 20, 3), np.uint8))             # no partner
    whole = (data / "train/opt/p01.png").read_bytes()
    (data / "train/opt/p01.png").write_bytes(whole[:len(whole) // 2])            # half a file
    (data / "train/opt/p02.png").write_bytes(b"")                                # nothing
    save(data / "train/sar/p03.png", np.zeros((24, 24, 3), np.uint8))            # another size
    save(data / "train/sar/p04.png", np.zeros((20, 30, 3), np.uint8))            # not square
    save(data / "train/opt/p05.jpg", np.zeros((20, 20, 3), np.uint8))            # the name twice
    (data / "test/opt/p03.png").unlink()
    (data / "test/opt/p03.tif").write_text("no image")                           # a TIFF by name alone
    with pytest.raises(InputError) as caught:
        load_splits(data, ("train", "test"), 20, 2)
    text = str(caught.value)
    assert "8 problem(s)" in text
    for words in (
        "train/opt/p00.png: there is no SAR image of this place",
        "test/sar/p99.png: there is no optical image of this place", "train/opt/p01.png: cannot be decoded",
        "train/opt/p02.png: cannot be decoded",
        "train/sar/p03.png: 24 x 24 px, but its optical image has 20 x 20",
        "train/sar/p04.png: 30 x 20 px; crop it", "p05.png: p05.jpg has the same name",
        "test/opt/p03.tif cannot be opened",
    ):
        assert words in text, words


def test_half_a_jpeg_is_noticed(tmp_path, real):
    data = make_data(tmp_path / "d", size=200)
    source = (real / "test/opt/015_00.jpg").read_bytes()
    (data / "test/opt/p00.png").unlink()
    (data / "test/opt/p00.jpg").write_bytes(source[:len(source) // 2])
    with pytest.raises(InputError, match="p00.jpg: cannot be decoded"):
        load_splits(data, ("test",), 32, 1)


def test_missing_and_empty_folders(tmp_path):
    with pytest.raises(InputError, match="no such folder here or under the home"):
        find_data(tmp_path / "typo")
    data = make_data(tmp_path / "d")
    for file in (data / "test/sar").iterdir():
        file.unlink()
    with pytest.raises(InputError, match="test/sar: there is no image"):
        load_splits(data, ("train", "test"), 20, 1)
    shutil.rmtree(data / "test")
    with pytest.raises(InputError, match="test/opt: there is no such folder"):
        load_splits(data, ("train", "test"), 20, 1)


def test_the_home_directory_is_searched(tmp_path, monkeypatch):
    make_data(tmp_path / "home/data/set")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    assert find_data("data/set") == tmp_path / "home/data/set"
    (tmp_path / "data/set").mkdir(parents=True)
    (tmp_path / "data/set/prepare.py").write_text("")
    assert find_data("data/set") == tmp_path / "home/data/set", "a folder with a prepare script alone gives way"
    make_data(tmp_path / "data/set")
    assert find_data("data/set").resolve() == tmp_path / "data/set"


def batches(pairs, batch_size, seed, epoch, first_step=0):
    return list(draw_batches(pairs, batch_size, seed, epoch, first_step, "cpu", torch.Generator()))


def test_a_batch_holds_pairs_and_no_place_twice(tmp_path):
    train, _ = load_splits(make_data(tmp_path / "d", train=11), ("train", "test"), 20, 1)
    plain = train.opt.permute(0, 3, 1, 2).float() / 255
    seen, flips = [], 0
    for opt, sar, places in batches(train, 4, 0, 0):
        assert opt.shape == sar.shape == (4, 3, 20, 20) and opt.dtype == torch.float32
        assert torch.equal(opt, sar), "both images of a pair are flipped together"
        for image, place in zip(opt, places):
            same = [i for i in range(11) if torch.equal(image, plain[i])]
            flipped = [i for i in range(11) if torch.equal(image.flip(2), plain[i])]
            assert same + flipped == [place], "a batch tells whose images it holds"
            seen += same + flipped
            flips += len(flipped)
    assert len(seen) == len(set(seen)) == 8 and 0 < flips < 8


def test_batches_depend_on_seed_epoch_and_step_alone(tmp_path):
    train, _ = load_splits(make_data(tmp_path / "d", train=12), ("train", "test"), 8, 1)
    first = batches(train, 4, seed=1, epoch=2)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(first, batches(train, 4, 1, 2)))
    assert torch.equal(first[2][0], batches(train, 4, 1, 2, first_step=2)[0][0]), (
        "an epoch can be entered in the middle"
    )
    assert not torch.equal(first[0][0], batches(train, 4, 1, 3)[0][0])
    assert not torch.equal(first[0][0], batches(train, 4, 2, 2)[0][0])


def test_all_strips_are_drawn(tmp_path):
    data = make_data(tmp_path / "d")
    image = Image.open(data / "train/sar/p00.png")
    (data / "train/sar/p00.png").unlink()
    for i, level in enumerate((0, 100, 200)):
        image.point(lambda value, level=level: level).save(data / f"train/sar/p00__{i}.png")
    train, _ = load_splits(data, ("train", "test"), 8, 1)
    plain = (train.opt[0].permute(2, 0, 1).float() / 255)
    drawn = set()
    for epoch in range(30):
        for opt, sar, places in batches(train, 6, 0, epoch):
            i = next(i for i in range(6) if torch.equal(opt[i], plain) or torch.equal(opt[i].flip(2), plain))
            drawn.add(round(sar[i].mean().item() * 255))
    assert drawn == {0, 100, 200}


def test_batch_size_must_fit(tmp_path):
    train, _ = load_splits(make_data(tmp_path / "d"), ("train", "test"), 8, 1)
    assert steps_per_epoch(train, 4) == 1
    with pytest.raises(InputError, match="choose 2 to 6"):
        steps_per_epoch(train, 7)


def test_held_out_tiles_are_whole(tmp_path):
    data = make_data(tmp_path / "d", train=12)
    rows = [f"train,p{i:02d},tile{i // 3}" for i in range(12)]
    (data / "pairs.csv").write_text("split,id,tile\n" + "\n".join(rows) + "\n")
    shutil.rmtree(data / "test")                                  # not read when choices are made
    kept, held = hold_out(*load_splits(data, ("train",), 8, 1), 0.25)
    assert len(held) == 3 and len(set(held.tiles)) == 1 and len(kept) == 9
    assert not set(kept.tiles) & set(held.tiles) and not set(kept.names) & set(held.names)
    assert torch.equal(held.opt, held.sar[held.sar_place.argsort()]), "pairs stay pairs"
    others_kept, others_held = hold_out(*load_splits(data, ("train",), 8, 1), 0.25, other_half=True)
    assert (others_kept.names, others_held.names) == (held.names, kept.names)


def test_what_leave_out_csv_names_is_left_out(tmp_path):
    data = make_data(tmp_path / "d")
    shutil.copy(data / "test/sar/p01.png", data / "test/sar/p01__b.png")
    (data / "leave_out.csv").write_text("split,id,reason\ntrain,p02,a copy\ntest,p01__b,damaged\ntest,p00,in train\n")
    train, test = load_splits(data, ("train", "test"), 8, 1)
    assert "p02" not in train.names and len(train) == len(train.sar) == 5
    assert test.names == ["p01", "p02", "p03"] and test.sar_names == ["p01", "p02", "p03"]
    assert "leave_out.csv leaves out 3" in describe(train, test)


@pytest.mark.parametrize("content, words", [
    (b"split,id,x_m,y_m\ntrain,p00,east,2\n", "x_m of p00 is 'east'; give metres"),
    (b"split,id,x_m,y_m\ntest,p00,1,nan\n", "y_m of p00 is 'nan'; give metres"),
    (b"split,id,size_m\ntest,p01,wide\n", "size_m of p01 is 'wide'"),
    ("split,id,tile\ntrain,p00,Zürich\n".encode("latin-1"), "cannot be read as CSV in UTF-8"),
    (b"name\np00\n", "must name the columns split and id"),
])
def test_a_bad_pairs_csv_is_one_sentence(tmp_path, content, words):
    data = make_data(tmp_path / "d")
    (data / "pairs.csv").write_bytes(content)
    with pytest.raises(InputError) as caught:
        load_splits(data, ("train", "test"), 8, 1)
    assert words in str(caught.value) and "pairs.csv" in str(caught.value)


@pytest.mark.parametrize("content", [
    "split,id,tile,x_m\ntest,p00,a,1.5\ntest,p01,b,\ntest,p02,b,\ntest,p03,c,\n".encode("utf-8-sig"),
    b"split;id;tile;x_m;\r\ntest;p00;a;1.5;\r\ntest;p01;b;;\r\ntest;p02;b;;\r\ntest;p03;c;;\r\n",
    b"split\tid\ttile\tx_m\ntest\tp00\ta\t1.5\ntest\tp01\tb\t\ntest\tp02\tb\t\ntest\tp03\tc\t\n",
    b'split, id, tile, x_m\ntest, p00, "a", 1.5\ntest , p01 , b ,\ntest, p02, b\n test, p03, c\n',
])
def test_what_spreadsheets_write_is_read(tmp_path, content, capsys):
    data = make_data(tmp_path / "d")
    (data / "pairs.csv").write_bytes(content)
    (data / "leave_out.csv").write_bytes("split;id\ntrain;p02\n".encode("utf-8-sig"))
    assert read_pairs_csv(data)["p00"] == {"split": "test", "id": "p00", "tile": "a", "x_m": 1.5} | (
        {"": ""} if b"x_m;\r" in content else {})
    test, train = load_splits(data, ("test", "train"), 8, 1)
    assert test.tiles == ["a", "b", "b", "c"] and "p02" not in train.names
    assert "of no image" not in capsys.readouterr().out


@pytest.mark.parametrize("name, content, words", [
    ("pairs.csv", "split,id,tile\n" + "".join(f"train,{i},t\n" for i in range(1, 6)),
     "5 of 5 ids of train differ from an image's name by leading zeros (1 for 0001)"),
    ("leave_out.csv", "split,id\ntrain,3\n", "1 of 1 ids of train differ from an image's name by leading zeros (3 for"),
    ("pairs.csv", "split,id\ntrain,a\ntrain,b\n", "none of its 2 ids of train is the name of an image (an id: a,"),
    ("pairs.csv", "split,id,tile\ntrain,0001,a,b\n", "line 2: more fields than the first line names"),
])
def test_ids_that_match_nothing_are_one_sentence(tmp_path, name, content, words):
    """Each of these was ignored, and --validate then held out places whose neighbours were trained on."""
    data = make_data(tmp_path / "d")
    for modality in ("opt", "sar"):
        for i in range(6):
            (data / f"train/{modality}/p{i:02d}.png").rename(data / f"train/{modality}/{i:04d}.png")
    (data / name).write_text(content)
    with pytest.raises(InputError) as caught:
        load_splits(data, ("train", "test"), 8, 1)
    assert words in str(caught.value) and str(data / name) in str(caught.value)
    if "line 2" not in words:
        with pytest.raises(InputError, match="no image|leading zeros|none of its"):
            load_unpaired(data, 8, 1)


def test_ids_for_which_there_may_be_a_reason_are_said(tmp_path, capsys):
    """A part of the images was copied; pairs.csv names what leave_out.csv leaves out."""
    data = make_data(tmp_path / "d")
    rows = [f"train,p{i:02d},t" for i in (0, 1, 2, 7, 8)] + [f"test,p{i:02d},t" for i in range(4)]
    (data / "pairs.csv").write_text("split,id,tile\n" + "\n".join(rows) + "\n")
    (data / "leave_out.csv").write_text("split,id\ntrain,p01\ntest,p99\n")
    train, test = load_splits(data, ("train", "test"), 8, 1)
    assert len(train) == 5 and sorted(capsys.readouterr().out.splitlines()) == [
        f"{data}/leave_out.csv: 1 of 1 ids of test are of no image (the first: p99)",
        f"{data}/pairs.csv: 2 of 5 ids of train are of no image (the first: p07)",
        f"{data}/pairs.csv: 3 of 6 places of train have no row, and each counts as a tile of its own (the first: p03)",
    ]


def test_a_leave_out_csv_that_is_not_utf8(tmp_path):
    data = make_data(tmp_path / "d")
    (data / "leave_out.csv").write_bytes("split,id,reason\ntrain,p00,für später\n".encode("latin-1"))
    with pytest.raises(InputError, match="leave_out.csv cannot be read as CSV in UTF-8"):
        load_splits(data, ("train",), 8, 1)


def test_positions_keep_their_centimetres(tmp_path):
    data = make_data(tmp_path / "d")
    (data / "pairs.csv").write_text("split,id,x_m,y_m\ntest,p01,-13233943.61,4047140.81\n")
    test, = load_splits(data, ("test",), 8, 1)
    assert test.positions[1].tolist() == [-13233943.61, 4047140.81] and test.positions[0].isnan().all()


def test_real_pairs_are_read(real):
    test, = load_splits(real, ("test",), 96, 2)
    assert len(test) == len(test.sar) == 524 and test.opt.shape == (524, 96, 96, 3)
    assert len(set(test.tiles)) == 21 and "175_00" not in test.names, (
        "leave_out.csv leaves out what shows training ground"
    )
    assert Path(real / "test/opt" / f"{test.names[0]}.jpg").is_file()
