"""hubconf.py: a run in three lines, of paths, PIL images, arrays and tensors; the answers are those of the tools."""
import csv
import math
import re
import runpy
import sys

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from rasterio.transform import from_origin

from conftest import ROOT
from shared.plumbing.errors import InputError
from test_locate import LEFT, TOP, locate, write_map
from test_localization import ground


@pytest.fixture(scope="module")
def retriever(run):
    return torch.hub.load(str(ROOT), "optical_sar", source="local", run=run, device="cpu", amp="off")


def kinds(image, folder):
    """The same image as everything that is taken."""
    cv2.imwrite(str(folder / "image.png"), image[..., ::-1])
    as_tensor = torch.from_numpy(image).permute(2, 0, 1)
    return {"path": folder / "image.png", "text": str(folder / "image.png"), "PIL": Image.fromarray(image),
            "array": image, "channels first": image.transpose(2, 0, 1), "tensor": as_tensor,
            "picture": as_tensor / 255}


def test_all_kinds_of_images_embed_alike(retriever, tmp_path):
    image = ground(64, seed=1)
    vectors = {name: retriever.embed(kind, "opt") for name, kind in kinds(image, tmp_path).items()}
    for name, vector in vectors.items():
        assert torch.equal(vector, vectors["path"]), name
    assert vectors["path"].dtype == torch.float32 and vectors["path"].norm(dim=1).item() == pytest.approx(1)
    grey = image[..., 0]
    assert torch.equal(retriever.embed(torch.from_numpy(np.stack([image, image])).permute(0, 3, 1, 2), "opt"),
                       vectors["path"].repeat(2, 1)), "a batch"
    as_decibels = retriever.embed([grey, grey / 20.0 - 25, (grey * 200.0).astype(np.uint16), grey * np.exp(1j)],
                                  "sar")
    assert (as_decibels @ as_decibels.T).min() > 0.9, "stretched as a file's are"


def test_search_finds_the_same_image(retriever):
    images = [ground(64, seed) for seed in range(6)]
    scores, rows = retriever.search(images[2:4], images, k=3)
    assert rows[:, 0].tolist() == [2, 3] and scores.shape == (2, 3) and scores[:, 0].min() > 0.99
    again = retriever.search(images[2], retriever.embed(images, "opt"), k=1)
    assert torch.equal(again[1], torch.tensor([[2]])) and again[0].item() == pytest.approx(scores[0, 0].item())


def test_locate_gives_what_the_tool_gives(retriever, run, tmp_path):
    image = ground(420, seed=3)
    file = write_map(tmp_path / "map.tif", image, from_origin(LEFT, TOP, 10, 10))
    cut = image[200:300, 120:220]
    write_map(tmp_path / "here.tif", cut, from_origin(LEFT + 1200, TOP - 2000, 10, 10))
    assert locate(run, "--query", tmp_path / "here.tif", map_file=file, out=tmp_path / "out").returncode == 0
    with open(tmp_path / "out/answers.csv") as table:
        row = next(csv.DictReader(table))
    answer = retriever.locate(tmp_path / "here.tif", file)
    assert answer["status"] == row["status"] == "located"
    for name in ("x", "y", "rotation", "score", "probability", "radius"):
        assert answer[name] == pytest.approx(float(row[name]), abs=0.06), name
    assert -117.1 < answer["longitude"] < -116.9 and 34.2 < answer["latitude"] < 34.4 and answer["alternatives"]
    # The same of images in memory, whose places are px.
    opened = retriever.open_map(image, resolution=10)
    for kind in kinds(cut, tmp_path).values():
        place = retriever.locate(kind, opened, resolution=10)
        assert place["status"] == "located" and math.hypot(place["x"] - 170, place["y"] - 250) < 0.5
        assert "longitude" not in place
    near = retriever.locate(cut, opened, resolution=10, prior=(190, 250), radius=300)
    assert near["x"] == pytest.approx(place["x"], abs=0.01)
    away = retriever.locate(cut, opened, resolution=10, prior=(300, 100), radius=300)
    assert math.hypot(away["x"] - 300, away["y"] - 100) <= 30 and away["status"] != "located"
    corner = retriever.locate(image[:60, :60], opened, resolution=10, prior=(12, 8), radius=500)
    assert math.hypot(corner["x"] - 30, corner["y"] - 30) < 0.5, "px, however few, and no longitude"
    assert retriever.locate(np.full((90, 90), 80, np.uint8), opened, resolution=10)["status"] == "too little texture"
    # What a mask leaves out is not looked at, in either.
    half, rest = np.ones(cut.shape[:2], bool), np.ones(image.shape[:2], bool)
    half[:, 60:], rest[:, 170:] = False, False
    assert retriever.locate(cut, opened, resolution=10, mask=half)["score"] != place["score"]
    assert retriever.locate(cut, opened, resolution=10, mask=np.zeros_like(half))["status"] == "too much nodata"
    without = retriever.open_map(image, resolution=10, mask=rest)
    assert retriever.locate(cut, without, resolution=10)["x"] < 120


def test_the_three_lines_of_the_readme(retriever, run, tmp_path, monkeypatch):
    block, = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    image = ground(160, seed=3)
    write_map(tmp_path / "map.tif", image, from_origin(LEFT, TOP, 10, 10))
    for name, corner in (("sar", 30), ("a", 60), ("b", 30), ("c", 0)):
        cv2.imwrite(str(tmp_path / f"{name}.png"), image[corner:corner + 90, corner:corner + 90, ::-1])
    load = torch.hub.load
    monkeypatch.setattr(torch.hub, "load", lambda clone, name, source: load(str(ROOT), name, source=source, run=run))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notebook.py").write_text(f"import torch\n{block}")
    names = runpy.run_path("notebook.py")
    assert names["place"]["x"] == pytest.approx(LEFT + 750, abs=5) and names["rows"].tolist() == [[1]]


def test_what_cannot_be_used_is_one_sentence(retriever, tmp_path):
    image = ground(64)
    georeferenced = write_map(tmp_path / "map.tif", image, from_origin(LEFT, TOP, 10, 10))
    (tmp_path / "text.png").write_text("no image")
    calls = [
        (lambda: retriever.embed(image, "radar"), "modality 'radar'"),
        (lambda: retriever.embed([], "sar"), "no sar image"),
        (lambda: retriever.embed(np.zeros((5, 64, 64)), "sar"), "5 channels"),
        (lambda: retriever.embed(np.zeros((2, 2, 64, 64)), "sar"), "2 channels"),
        (lambda: retriever.embed(np.array("text"), "sar"), "give .H, W."),
        (lambda: retriever.embed([image, np.full((64, 64), np.nan), np.full((64, 64), 7)], "sar"),
         "(?s)2 image.*image 1: shows nothing.*image 2: shows nothing"),
        (lambda: retriever.embed(["none.png", tmp_path / "text.png"], "sar"), "(?s)none.png.*text.png"),
        (lambda: retriever.search(image, [image], k=2), "the gallery has 1 images"),
        (lambda: retriever.search(image, torch.ones(4, 7), k=1), "embed both by this run"),
        (lambda: retriever.open_map(image), "no CRS"),
        (lambda: retriever.open_map(georeferenced, resolution=5), "leave resolution out"),
        (lambda: retriever.locate(image, georeferenced), "resolution"),
        (lambda: retriever.locate(image, georeferenced, resolution=10, rotation="90"), "rotation '90'"),
        (lambda: retriever.locate(image, georeferenced, resolution="10"), "resolution '10': give a number above zero"),
        (lambda: retriever.locate(image, georeferenced, resolution=math.nan), "resolution nan"),
        (lambda: retriever.open_map(image, resolution=-1), "resolution -1"),
        (lambda: retriever.locate(image, georeferenced, resolution=10, prior=5, radius=9), "prior 5: give"),
        (lambda: retriever.locate(image, georeferenced, resolution=10, prior=(0, "a"), radius=9), "prior .0, 'a'."),
        (lambda: retriever.locate(image, georeferenced, resolution=10, prior=(0, 1), radius="5"), "radius '5'"),
        (lambda: torch.hub.load(str(ROOT), "optical_sar", source="local", amp="yes"), "--amp yes: give one of auto"),
        (lambda: retriever.locate(image, georeferenced, resolution=10, prior=(1, 2)), "go together"),
        (lambda: retriever.locate(image, georeferenced, resolution=10, prior=(1, 2), radius=9), "outside the map"),
        (lambda: torch.hub.load(str(ROOT), "optical_sar", source="local", run=tmp_path), "holds no run"),
    ]
    for call, words in calls:
        with pytest.raises(InputError, match=words):
            call()


def test_another_module_of_that_name_is_said(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] in ("shared", "hubconf")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "shared", type(sys)("shared"))
    with pytest.raises(ImportError, match="another module called shared"):
        torch.hub.load(str(ROOT), "optical_sar", source="local", run="x")
