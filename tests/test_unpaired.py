"""Images without pairs: none can meet its true partner, and draws are apart."""
import pytest
import torch

from shared.adapting.unpaired import load_unpaired
from shared.plumbing.errors import InputError
from test_dataset import make_data


@pytest.fixture
def data(tmp_path):
    """Twelve places of four tiles."""
    data = make_data(tmp_path / "d", train=12)
    rows = "".join(f"train,p{i:02d},tile{i // 3}\n" for i in range(12))
    (data / "pairs.csv").write_text("split,id,tile\n" + rows)
    return data


@pytest.mark.parametrize("seed", range(5))
def test_no_tile_gives_both_modalities(data, seed):
    target = load_unpaired(data, 20, 2, seed)
    assert len(target.opt) == len(target.sar) == 6, "two tiles each"
    assert not set(target.opt_tiles) & set(target.sar_tiles) and len({*target.opt_tiles, *target.sar_tiles}) == 4
    assert not set(target.opt_names) & set(target.sar_names)
    # In this data set both images of a place are the same picture.
    assert not any(torch.equal(opt, sar) for opt in target.opt for sar in target.sar)


def test_without_tiles_places_are_shared_out_and_the_seed_says_how(tmp_path):
    data = make_data(tmp_path / "d", train=12)
    names = [load_unpaired(data, 20, 2, seed).opt_names for seed in (0, 0, 1)]
    assert names[0] == names[1] != names[2] and len(names[0]) == 6


def test_images_that_have_no_partner_are_all_kept(data):
    (data / "pairs.csv").unlink()
    for i in range(6):
        (data / f"train/sar/p{i:02d}.png").unlink()
        (data / f"train/opt/p{i + 6:02d}.png").unlink()
    (data / "leave_out.csv").write_text("split,id\ntrain,p03\n")
    target = load_unpaired(data, 20, 2)
    assert target.opt_names == ["p00", "p01", "p02", "p04", "p05"]
    assert target.sar_names == [f"p{i:02d}" for i in range(6, 12)]


def test_a_batch_tells_which_images_it_holds_and_holds_none_twice(data):
    target = load_unpaired(data, 20, 2)
    flips = 0
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        opt, sar, opt_rows, sar_rows = target.draw(5, generator)
        assert len(set(opt_rows.tolist())) == len(set(sar_rows.tolist())) == 5
        for images, rows, drawn in ((target.opt, opt_rows, opt), (target.sar, sar_rows, sar)):
            for row, image in zip(rows, drawn):
                assert torch.equal(image, images[row]) or torch.equal(image, images[row].flip(1))
                flips += not torch.equal(image, images[row])
        again = target.draw(5, torch.Generator().manual_seed(seed))
        assert torch.equal(again[0], opt) and torch.equal(again[3], sar_rows)
    assert 60 < flips < 140
    assert (opt_rows != sar_rows).any(), "drawn apart"


def test_what_cannot_be_drawn_is_an_error(data, tmp_path):
    target = load_unpaired(data, 20, 2)
    with pytest.raises(InputError, match="7 opt images .* there are 6: give a smaller --batch_size"):
        target.draw(7, torch.Generator())
    one = make_data(tmp_path / "one", train=1)
    with pytest.raises(InputError, match="at least two tiles"):
        load_unpaired(one, 20, 2)
    (data / "train/opt/p00.png").write_bytes(b"no image")
    (data / "train/sar/p00.png").write_bytes(b"no image")
    with pytest.raises(InputError, match="1 image.s. cannot be used"):
        load_unpaired(data, 20, 2)
