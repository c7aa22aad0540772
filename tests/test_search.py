"""tools/search.py gives the answers of the embeddings, from images and from saved embeddings."""
import re

import numpy as np
import pytest
from PIL import Image

from conftest import SMALL, script


@pytest.fixture(scope="module")
def run(demo, tmp_path_factory):
    out = tmp_path_factory.mktemp("search") / "run"
    assert script("code/train.py", "--data_path", demo, "--result_path", out, *SMALL).returncode == 0
    return out


def answers(text):
    return re.findall(r"^ +\d+  (\S+)  (\S+)", text, re.M)


def search(run, *arguments):
    done = script("tools/search.py", "--run", run, "--amp", "off", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_folder_of_images_and_its_saved_embeddings_give_the_same_answers(demo, run, tmp_path):
    queries = [demo / "test/sar/0003.png", demo / "test/sar/0005.png"]
    from_images = search(
        run, "--gallery", demo / "test/opt", "--save_embeddings", tmp_path / "map", "--query", *queries, "-k",
        "4", "--picture", tmp_path / "a.png",
    )
    from_embeddings = search(
        run, "--gallery", tmp_path / "map", "--query", *queries, "-k", "4", "--picture", tmp_path / "b.png"
    )
    assert answers(from_images) == answers(from_embeddings) and len(answers(from_images)) == 8
    assert Image.open(tmp_path / "a.png").size == (5 * 168, 2 * 200)
    assert np.array_equal(np.array(Image.open(tmp_path / "a.png")), np.array(Image.open(tmp_path / "b.png")))

    tested = script("code/test.py", "--run", run, "--save_embeddings", "--amp", "off")
    assert tested.returncode == 0, tested.stderr
    sar, opt = (np.load(run / f"embeddings/{m}_FC.npy") for m in ("sar", "opt"))
    for i, place in enumerate((3, 5)):
        expected = np.sort(sar[place] @ opt.T)[::-1][:4]
        found = [float(score) for score, _ in answers(from_images)[4 * i:4 * i + 4]]
        assert np.allclose(found, expected, atol=2e-4)
    assert (run / "embeddings/opt.csv").read_text().startswith("name\n0000\n")


def test_positions_are_printed_where_known(demo, run, tmp_path):
    import shutil
    data = shutil.copytree(demo, tmp_path / "demo")
    (data / "pairs.csv").write_text("split,id,x_m,y_m\n" + "".join(f"test,{i:04d},{100 * i},7\n" for i in range(12)))
    text = search(run, "--gallery", data / "test/opt", "--query", data / "test/sar/0001.png", "-k", "2")
    name = answers(text)[0][1]
    assert f"{name}  x {100 * int(name)} m, y 7 m" in text


def test_the_approximate_index_prints_its_recall(demo, run, tmp_path):
    pytest.importorskip("faiss", reason="requirements-optional.txt is not installed")
    text = search(run, "--gallery", demo / "train/opt", "--query", demo / "train/sar/0001.png", "--index", "ivf")
    assert "recall of the first 5 against the exact search: 100.0%" in text, "with one cell, all is looked into"


def test_bad_input_is_one_sentence(demo, run, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no image")
    for arguments, words in (
        (["--gallery", tmp_path / "nothing", "--query", demo / "test/sar/0001.png"], "there is no such folder"),
        (
            ["--gallery", tmp_path, "--query", demo / "test/sar/absent.png", tmp_path / "bad.png"],
            "2 image(s) cannot be used",
        ),
        (["--gallery", demo, "--query", demo / "test/sar/0001.png"], "holds neither images"),
    ):
        done = script("tools/search.py", "--run", run, *arguments)
        assert done.returncode == 2 and words in done.stderr and "Traceback" not in done.stderr, done.stderr
