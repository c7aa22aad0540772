"""tools/search.py gives the answers of the embeddings, from images and from saved embeddings, and of no others."""
import csv
import io
import json
import os
import re
import shutil
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import ROOT
from shared.evaluate import FEATURES
from shared.model import PseudoSiamese
from shared.plumbing import embeddings
from shared.plumbing.errors import InputError, run_script
from shared.plumbing.files import write_tensors
from shared.reading.readers import READERS, flags_of
from tools import search_picture
from tools.bench import load_script
from without_training import ways_taken

SEARCH, TEST = load_script(ROOT / "tools/search.py"), load_script(ROOT / "code/test.py")
SIZE, PLACES = 16, 12


def make_run(folder, data, seed=0, spoil=None):
    """A run as train.py leaves it, of a network that has learned nothing. spoil: a function of its state."""
    folder.mkdir(exist_ok=True)
    torch.manual_seed(seed)
    model = PseudoSiamese("resnet18", stages=2, embedding_dim=32)
    state = model.state_dict()
    if spoil:
        spoil(state)
    write_tensors(folder / "weights.pt", {**model.settings, "img_size": SIZE, "model": state})
    (folder / "args.json").write_text(json.dumps({"data_path": str(data)}))
    return folder


@pytest.fixture
def data(tmp_path):
    """A test split whose SAR images are the optical ones: each finds itself."""
    random = np.random.default_rng(0)
    for modality in ("opt", "sar"):
        (tmp_path / "data/test" / modality).mkdir(parents=True)
    for i in range(PLACES):
        image = Image.fromarray(random.integers(0, 256, (SIZE, SIZE, 3), np.uint8))
        for modality in ("opt", "sar"):
            image.save(tmp_path / f"data/test/{modality}/{i:04d}.png")
    return tmp_path / "data"


@pytest.fixture
def run(tmp_path, data):
    return make_run(tmp_path / "run", data)


@pytest.fixture
def call(run, monkeypatch, capsys):
    """Run tools/search.py here: (exit status, what it printed, its errors), with `run` unless another is given."""
    def call(*arguments, run=run, script=SEARCH, main="search"):
        monkeypatch.setattr("sys.argv", ["script", "--run", *map(str, [run, "--amp", "off", *arguments])])
        status = 0
        try:
            run_script(getattr(script, main), script.arguments)
        except SystemExit as end:
            status = end.code
        return status, *capsys.readouterr()
    return call


@pytest.fixture
def search(call):
    """The same where it has to succeed: what it printed."""
    def search(*arguments, **settings):
        status, out, err = call(*arguments, **settings)
        assert status == 0, err
        return out
    return search


@pytest.fixture
def refused(call):
    """The same where it has to be refused, in one sentence."""
    def refused(words, *arguments, **settings):
        status, out, err = call(*arguments, **settings)
        assert status == 2 and err.startswith("error: ") and re.search(words, err), (out, err)
        return err
    return refused


def answers(text):
    return re.findall(r"^ +\d+  (\S+)  (\S+)", text, re.M)


def test_a_folder_of_images_and_its_saved_embeddings_give_the_same_answers(data, run, search, tmp_path):
    queries = [data / "test/sar/0003.png", data / "test/sar/0005.png"]
    ask = ["--query", *queries, "-k", "4", "--picture"]
    plain = search("--gallery", data / "test/opt", *ask, tmp_path / "a.png")
    saved = search("--gallery", data / "test/opt", "--save_embeddings", tmp_path / "map", *ask, tmp_path / "b.png")
    from_embeddings = search("--gallery", tmp_path / "map", *ask, tmp_path / "c.png")
    assert answers(plain) == answers(saved) == answers(from_embeddings) and len(answers(plain)) == 8
    assert [name for _, name in answers(plain)][::4] == ["0003", "0005"]
    pictures = [np.array(Image.open(tmp_path / f"{name}.png")) for name in "abc"]
    assert pictures[0].shape == (2 * 200, 5 * 168, 3)
    assert np.array_equal(pictures[0], pictures[1]) and np.array_equal(pictures[0], pictures[2])

    search("--save_embeddings", script=TEST, main="test")
    sar, opt = (np.load(run / f"embeddings/{m}_FC.npy") for m in ("sar", "opt"))
    for i, place in enumerate((3, 5)):
        expected = np.sort(sar[place] @ opt.T)[::-1][:4]
        assert np.allclose([float(score) for score, _ in answers(plain)[4 * i:4 * i + 4]], expected, atol=2e-4)
    of_test = search("--gallery", run / "embeddings", *ask, tmp_path / "d.png")
    assert answers(of_test) == answers(plain)
    assert np.array_equal(pictures[0], np.array(Image.open(tmp_path / "d.png")))


def test_positions_are_printed_where_known(data, search, tmp_path):
    rows = "".join(f"test,{i:04d},{100 * i},7\n" for i in range(PLACES))
    (data / "pairs.csv").write_text("split,id,x_m,y_m\n" + rows)
    gallery = ["--gallery", data / "test/opt", "--save_embeddings", tmp_path / "map"]
    query = ["--query", data / "test/sar/0001.png", "--picture", "none"]
    assert "0001  x 100 m, y 7 m" in search(*gallery, *query)
    assert "0001  x 100 m, y 7 m" in search("--gallery", tmp_path / "map", *query)


def test_the_approximate_index_prints_its_recall(data, search):
    pytest.importorskip("faiss", reason="requirements-optional.txt is not installed")
    text = search("--gallery", data / "test/opt", "--query", data / "test/sar/0001.png", "--index", "ivf")
    assert "recall of the first 5 against the exact search: 100.0%" in text, "with one cell, all is looked into"


def test_a_gallery_directly_under_the_root_has_no_data_set_above_it():
    assert SEARCH.positions_of([Path("/no-such-map/a.png")]) == [{}]


# Embeddings of nothing else ------------------------------------------------------------------------------------------

@pytest.fixture
def kept(data, run, search, tmp_path):
    """Embeddings of the gallery, written by the tool."""
    search("--gallery", data / "test/opt", "--save_embeddings", tmp_path / "map", "--query", data / "test/sar",
           "--picture", "none")
    return tmp_path / "map"


def test_embeddings_of_another_run_are_refused_and_made_again_where_the_images_are(data, kept, search, refused,
                                                                                   tmp_path):
    other = make_run(tmp_path / "other", data, seed=1)
    query = ["--query", data / "test/sar", "-k", "1", "--picture", "none"]
    refused("map holds embeddings that were made otherwise .other weights.: embed the images again", "--gallery", kept,
            *query, run=other)
    images = ["--gallery", data / "test/opt", "--save_embeddings", kept]
    made_again = search(*images, *query, run=other)
    assert "made otherwise (other weights): they are made again" in made_again
    assert [name for _, name in answers(made_again)] == [f"{i:04d}" for i in range(PLACES)]
    before = (kept / "opt_FC.npy").stat()
    taken = search(*images, *query, run=other)
    assert answers(taken) == answers(made_again) and "made again" not in taken
    assert (kept / "opt_FC.npy").stat() == before, "what fits is not embedded again"


def test_embeddings_of_another_run_s_test_are_refused(data, run, search, refused, tmp_path):
    search("--save_embeddings", script=TEST, main="test")
    refused("other weights", "--gallery", run / "embeddings", "--query", data / "test/sar",
            run=make_run(tmp_path / "other", data, seed=1))


def test_query_and_gallery_are_embedded_as_the_same_views(data, run, kept, search, refused):
    query = ["--query", data / "test/sar/0001.png", "--picture", "none"]
    refused("--tta none there, flip here", "--gallery", kept, "--tta", "flip", *query)
    search("--save_embeddings", "--tta", "flip", script=TEST, main="test")
    refused("--tta flip there, none here", "--gallery", run / "embeddings", *query)
    flipped = search("--gallery", run / "embeddings", "--tta", "flip", *query)
    sar, opt = (np.load(run / f"embeddings/{m}_FC.npy") for m in ("sar", "opt"))
    assert answers(flipped)[0] == (f"{sar[1] @ opt[1]:.4f}", "0001")
    assert answers(search("--gallery", data / "test/opt", "--tta", "flip", *query)) == answers(flipped)


def test_embeddings_of_an_adapted_network_are_not_the_run_s(data, run, tmp_path, refused):
    vectors = {feature: torch.eye(PLACES, 32) for feature in FEATURES}
    rows = [{"name": file.stem, "file": str(file)} for file in sorted((data / "test/opt").iterdir())]
    assert ways_taken(Namespace(batchnorm="source", whiten=False, querybank=False)) == {}
    ways = ways_taken(Namespace(batchnorm="target", whiten=True, querybank=False))
    source = embeddings.made_by(run, tta="none", **flags_of(READERS), **ways)
    embeddings.save_embeddings(tmp_path / "map", "opt", [vectors], rows, source)
    refused("--batchnorm target there, not given here; --whiten True there, not given here", "--gallery",
            tmp_path / "map", "--query", data / "test/sar")


def test_embeddings_of_tensor_files_know_them(tmp_path, search, refused):
    images = torch.randint(256, (4, SIZE, SIZE, 3), dtype=torch.uint8)
    (tmp_path / "tensors").mkdir()
    for modality in ("opt", "sar"):
        torch.save(images, tmp_path / f"tensors/{modality}_ori_test.pt")
    run = make_run(tmp_path / "of_tensors", tmp_path / "tensors")
    Image.fromarray(images[2].numpy()).save(tmp_path / "sar.png")
    search("--save_embeddings", run=run, script=TEST, main="test")
    ask = ["--gallery", run / "embeddings", "--query", tmp_path / "sar.png"]
    assert answers(search(*ask, run=run))[0] == ("1.0000", "000002")
    torch.save(images.flip(0), tmp_path / "tensors/opt_ori_test.pt")
    refused("images that have changed since", *ask, run=run)


def cut_csv(kept, data):
    (kept / "opt.csv").write_text("".join((kept / "opt.csv").read_text().splitlines(True)[:-1]))


def cut_array(kept, data):
    os.truncate(kept / "opt_FC.npy", 300)


def spoil_array(kept, data):
    array = np.load(kept / "opt_FC.npy")
    array[3, 5] = np.nan
    np.save(kept / "opt_FC.npy", array)


def change_image(kept, data):
    Image.new("RGB", (SIZE, SIZE), "red").save(data / "test/opt/0004.png")


@pytest.mark.parametrize("spoil, words", [
    (lambda kept, data: (kept / "opt.csv").unlink(), "holds no whole embeddings .*opt.csv"),
    (cut_csv, "holds 12 embeddings, and 11 names in opt.csv"),
    (lambda kept, data: (kept / "opt.csv").write_bytes(b""), "no names in opt.csv"),
    (lambda kept, data: (kept / "opt.json").unlink(), "holds no whole embeddings .*opt.json"),
    (lambda kept, data: (kept / "opt.json").write_text("[]"), "holds no whole embeddings"),
    (cut_array, "holds no whole embeddings"),
    (lambda kept, data: (kept / "opt_FC.npy").write_bytes(b""), "holds no whole embeddings"),
    (lambda kept, data: np.save(kept / "opt_FC.npy", np.zeros((12, 7), "f4")), "7 numbers, the run gives 32"),
    (spoil_array, "NaN or infinity in 1 embedding.s., first in that of 0003"),
    (change_image, "images that have changed since"),
    (lambda kept, data: os.utime(data / "test/opt/0004.png", (1, 1)), "images that have changed since"),
    (lambda kept, data: (data / "test/opt/0004.png").unlink(), "12 images, of which 1 are no longer there"),
])
def test_embeddings_that_are_not_whole_or_no_longer_true_are_one_sentence(data, kept, refused, spoil, words):
    spoil(kept, data)
    err = refused(words, "--gallery", kept, "--query", data / "test/sar/0001.png")
    assert "embed the images again" in err


def test_a_changed_map_is_embedded_again(data, kept, search):
    shutil.copy(data / "test/opt/0004.png", data / "test/opt/new.png")
    (data / "test/opt/0004.png").unlink()
    out = search("--gallery", data / "test/opt", "--save_embeddings", kept, "--query", data / "test/sar/0004.png")
    assert "they are made again" in out and answers(out)[0][1] == "new"


def test_embeddings_are_taken_where_their_images_are_gone(data, kept, search):
    shutil.rmtree(data / "test/opt")
    out = search("--gallery", kept, "--query", data / "test/sar/0004.png")
    assert "the images are not here" in out and answers(out)[0][1] == "0004"


def test_what_was_there_stays_until_the_new_embeddings_are_whole(data, run, kept):
    source = embeddings.made_by(run, tta="none", **flags_of(READERS))
    before = embeddings.read_embeddings(kept, "opt", "FC", source)[0].clone()
    rows = [{"name": file.stem, "file": str(file)} for file in sorted((data / "test/opt").iterdir())]

    def killed():
        yield {feature: torch.zeros(5, 32) for feature in FEATURES}
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        embeddings.save_embeddings(kept, "opt", killed(), rows, source)
    assert torch.equal(embeddings.read_embeddings(kept, "opt", "FC", source)[0], before)
    assert not list(kept.glob("*.part"))


def test_embeddings_that_the_disk_does_not_take_are_one_sentence(data, run, tmp_path):
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")
    rows = [{"name": "0001", "file": str(data / "test/opt/0001.png")}]
    (tmp_path / "map").mkdir()
    os.symlink("/dev/full", tmp_path / "map/opt_FC.npy.part")
    portions = [{"FC": torch.zeros(1, 100_000)}]
    with pytest.raises(InputError, match="map cannot be written .No space left on device."):
        embeddings.save_embeddings(tmp_path / "map", "opt", portions, rows, embeddings.made_by(run))
    assert not (tmp_path / "map/opt.json").exists()


def test_embeddings_do_not_replace_a_file_of_the_user(data, refused, tmp_path):
    (tmp_path / "map").mkdir()
    (tmp_path / "map/opt.csv").write_text("mine")
    query = ["--query", data / "test/sar/0001.png"]
    refused("opt.csv is there already", "--gallery", data / "test/opt", "--save_embeddings", tmp_path / "map", *query)
    refused("one of its own", "--gallery", data / "test/opt", "--save_embeddings", data / "test/opt", *query)
    (tmp_path / "file").write_text("in the way")
    refused("cannot be made", "--gallery", data / "test/opt", "--save_embeddings", tmp_path / "file/map", *query)
    assert (tmp_path / "map/opt.csv").read_text() == "mine"


def test_a_network_that_gives_nan_is_one_sentence(data, refused, tmp_path):
    def spoil(state):
        state["embedding.1.running_var"][3] = -1.0      # its root is not a number

    spoilt = make_run(tmp_path / "spoilt", data, spoil=spoil)
    refused("the FC vector of .*0000.png holds NaN", "--gallery", data / "test/opt", "--query",
            data / "test/sar/0000.png", run=spoilt)


# Many queries, large galleries ---------------------------------------------------------------------------------------

def test_a_folder_and_a_glob_of_queries_give_a_table(data, search, tmp_path):
    (data / "test/sar/readme.txt").write_text("no image")
    rows = "".join(f"test,{i:04d},{100 * i},7\n" for i in range(PLACES))
    (data / "pairs.csv").write_text("split,id,x_m,y_m\n" + rows)
    tables = []
    for query in (data / "test/sar", data / "test/s?r/*.png"):
        search("--gallery", data / "test/opt", "--query", query, "-k", "2", "--csv", tmp_path / "new/answers.csv",
               "--picture", "none")
        with open(tmp_path / "new/answers.csv", newline="") as file:
            tables.append(list(csv.DictReader(file)))
    assert tables[0] == tables[1] and len(tables[0]) == 2 * PLACES
    first = tables[0][6]
    assert list(first) == ["query", "rank", "name", "score", "x", "y"]
    assert first["query"] == str(data / "test/sar/0003.png") and first["name"] == "0003" and first["rank"] == "1"
    assert float(first["score"]) == pytest.approx(1, abs=1e-5) and (first["x"], first["y"]) == ("300.0", "7.0")
    assert not (tmp_path / "run/search.png").exists()


def test_a_picture_of_many_queries_stays_small_and_says_so(data, search, tmp_path, monkeypatch):
    monkeypatch.setattr(search_picture, "MOST_QUERIES", 4)
    monkeypatch.setattr(search_picture, "MOST_ANSWERS", 3)
    out = search("--gallery", data / "test/opt", "--query", data / "test/sar", "-k", "6")
    said = "4 of 12 queries, evenly chosen; the first 3 of 6 answers"
    assert out.endswith(f"search.png ({said})\n")
    assert Image.open(tmp_path / "run/search.png").size == (4 * 168, 24 + 4 * 200)
    drawn = []

    def decode(files, modality, side):
        drawn.extend(file.stem for file in files)
        return torch.zeros(len(files), side, side, 3, dtype=torch.uint8)

    queries, found = sorted((data / "test/sar").iterdir()), [[(1, 0, 1.0)]] * PLACES
    sheet = search_picture.draw(queries, found, [{"name": "caf\udce9"}], decode)
    assert sheet.getpixel((168 + 4, 24 + 4)) == (128, 128, 128), "where the answer's image is not known, a frame"
    assert drawn == ["0000", "0003", "0007", "0011"]


def test_images_are_decoded_a_portion_at_a_time(data, search, monkeypatch):
    ask = ["--gallery", data / "test/opt", "--query", data / "test/sar", "--picture", "none"]
    whole = search(*ask)
    portions = []
    decode_images = SEARCH.decode_images

    def recorded(files, *arguments):
        portions.append(len(files))
        return decode_images(files, *arguments)

    monkeypatch.setattr(SEARCH, "decode_images", recorded)
    monkeypatch.setattr(SEARCH, "IMAGES_AT_ONCE", 5)
    assert answers(search(*ask)) == answers(whole)
    assert max(portions) == 5 and sum(portions) == 4 * PLACES


def test_all_bad_files_are_named_before_anything_is_embedded(data, refused, tmp_path, monkeypatch):
    monkeypatch.setattr(SEARCH, "IMAGES_AT_ONCE", 3)
    monkeypatch.setattr(SEARCH, "embed", lambda *_, **__: pytest.fail("too early"))
    (data / "test/sar/0002.png").write_bytes(b"no image")
    (data / "test/opt/0009.png").write_bytes(b"")
    err = refused("4 image.s. cannot be used", "--gallery", data / "test/opt", "--query", data / "test/sar",
                  tmp_path / "absent.png", tmp_path / "*.tif")
    assert err.count("\n") == 5
    for name in ("sar/0002.png", "opt/0009.png", "absent.png", "*.tif: no file is called so"):
        assert name in err


def test_bad_input_is_one_sentence(data, refused, tmp_path):
    query = ["--query", data / "test/sar/0001.png"]
    refused("there is no such folder", "--gallery", tmp_path / "nothing", *query)
    refused("holds neither images", "--gallery", data, *query)
    refused("there is no image", "--gallery", data / "test/opt", "--query", data)


# Where it writes, and what it prints ---------------------------------------------------------------------------------

def test_pictures_are_written_where_they_can_be(data, search, refused, tmp_path, monkeypatch):
    ask = ["--gallery", data / "test/opt", "--query", data / "test/sar/0001.png", "--picture"]
    for name, kind in (("new/folder/a.png", "PNG"), ("no_suffix", "PNG"), ("b.JPG", "JPEG")):
        for _ in range(2):                              # its own it writes again
            assert search(*ask, tmp_path / name).endswith(f"{name}\n")
        assert Image.open(tmp_path / name).format == kind
    refused("ends in .png or .jpg, or none", *ask, tmp_path / "a.webp")
    before = (data / "test/sar/0001.png").read_bytes()
    refused("0001.png is there already, and not of this script", *ask, data / "test/sar/0001.png")
    refused("0001.png is there already, and not of this script", *ask, "none", "--csv", data / "test/sar/0001.png")
    assert (data / "test/sar/0001.png").read_bytes() == before


def test_the_picture_of_a_read_only_run_lies_in_the_current_folder(monkeypatch, tmp_path):
    if not Path("/proc/self").exists():
        pytest.skip("no folder here that root cannot write to")
    monkeypatch.chdir(tmp_path)
    assert SEARCH.choose_picture(None, Path("/proc")) == Path("search.png")
    (tmp_path / "search.png").write_bytes(b"mine")
    with pytest.raises(InputError, match="search.png is there already"):
        SEARCH.choose_picture(None, Path("/proc"))
    monkeypatch.chdir("/proc")
    with pytest.raises(InputError, match="cannot be written to; give another place"):
        SEARCH.choose_picture(None, Path("/proc"))


def test_any_name_is_searched_printed_and_kept_in_an_ascii_locale(data, run, search, tmp_path, monkeypatch):
    latin = os.fsencode(data / "test/opt") + b"/caf\xe9.png"
    try:
        os.rename(data / "test/opt/0001.png", latin)
    except OSError:
        pytest.skip("this disk takes no name that is not UTF-8")
    os.rename(data / "test/opt/0002.png", data / "test/opt/图.png")
    os.rename(data / "test/sar/0001.png", os.fsencode(data / "test/sar") + b"/caf\xe9.png")
    out = io.TextIOWrapper(io.BytesIO(), "ascii")       # as PYTHONIOENCODING=ascii makes it
    monkeypatch.setattr(sys, "stdout", out)
    search("--gallery", data / "test/opt", "--query", data / "test/sar", "-k", "1", "--save_embeddings",
           tmp_path / "map", "--csv", tmp_path / "a.csv")
    assert b"  caf\xe9\n" in out.buffer.getvalue() and b"  \\u56fe\n" in out.buffer.getvalue()
    table = (tmp_path / "a.csv").read_bytes()
    assert b"caf\xe9.png,1,caf\xe9,1.000000" in table and ",1,图,1.0000".encode() in table
    source = embeddings.made_by(run, tta="none", **flags_of(READERS))
    rows = embeddings.read_embeddings(tmp_path / "map", "opt", "FC", source)[1]
    assert {os.fsencode(row["name"]) for row in rows} >= {b"caf\xe9", "图".encode()}


def test_a_reader_that_has_seen_enough_ends_a_script_quietly(monkeypatch, capsys):
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as out:
        monkeypatch.setattr(sys, "stdout", out)
        with pytest.raises(SystemExit) as caught:
            run_script(lambda: print("answers"))
        monkeypatch.undo()
    assert caught.value.code == 141 and capsys.readouterr().err == ""
