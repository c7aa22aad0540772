"""The dense search of cells: correlation, the views of a window, where it is found, and what worlds ask for."""
import argparse
import csv
import itertools
import json
import math
import shutil
from contextlib import nullcontext

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from conftest import ROOT, script
from shared.dataset import load_splits
from shared.evaluate import embed, retrieval_metrics
from shared.mapping.cells import CellMaps, StructureCells, cell_side, embed_cells, find_window, query_views
from shared.mapping.turned import cut_turned
from shared.model import PseudoSiamese
from shared.plumbing.errors import InputError
from shared.plumbing.lines import Lines
from test_localization import ground
from tools.bench import load_script
from tools.worlds import WINDOW, draw_windows

CPU, ON_CPU = torch.device("cpu"), ("--device", "cpu", "--amp", "off")
join = load_script(ROOT / "code_Structure/fusion.py").join


def cells_of(model, images, modality):
    return embed_cells(model, torch.from_numpy(np.stack(images)), modality, CPU, nullcontext)


def test_cosines_are_those_of_a_plain_loop():
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn((3, 4, 9, 11), generator=generator) * torch.tensor([1.0, 5.0, 0.2]).view(3, 1, 1, 1)
    query = torch.randn((2, 4, 5, 4), generator=generator)
    mask = torch.ones(2, 1, 5, 4)
    mask[1, :, 3:] = 0
    cosines = CellMaps(maps).cosines(query, mask)
    assert cosines.shape == (2, 3, 5, 8)
    for q, m, y, x in itertools.product(range(2), range(3), range(5), range(8)):
        shown = mask[q, 0].bool()
        under = maps[m, :, y:y + 5, x:x + 4]
        expected = F.cosine_similarity(query[q][:, shown].flatten(), under[:, shown].flatten(), dim=0)
        assert cosines[q, m, y, x].item() == pytest.approx(expected.item(), abs=1e-5)
    maps[0, :, :, :6] = 0
    empty = CellMaps(maps).cosines(query, mask)[:, 0, :, :3]
    assert empty.abs().max() < 1e-3, "where there is nothing, nothing fits"
    with pytest.raises(ValueError, match="a query of"):
        CellMaps(maps).cosines(torch.zeros(1, 4, 10, 4), torch.ones(1, 1, 10, 4))


@pytest.mark.parametrize("model, side", [
    (StructureCells(4), 4),
    (StructureCells(8), 8),
    (PseudoSiamese("resnet18", 1, pooling="cells", stages=3), 8),
    (PseudoSiamese("resnet18", 1, pooling="cells", stages=1), 4),
])
def test_cells_are_what_the_vector_is_made_of(model, side):
    images = [ground(72, seed) for seed in (1, 2)]
    cells = cells_of(model, images, "sar")
    vectors = embed(model, torch.from_numpy(np.stack(images)), "sar", CPU, nullcontext)
    assert cell_side(model) == side and cells.shape[-2:] == (72 // side, 72 // side)
    assert torch.allclose(F.normalize(cells.flatten(1)), vectors["FC"], atol=1e-6)
    assert vectors["POOL5"].shape == (2, 9 * (model.pool5_dim // 9 if hasattr(model, "pool5_dim") else 9))


def test_a_window_is_found_where_a_plain_loop_finds_it():
    """Every image, every view, every position, one after the other."""
    model, images = StructureCells(8), [ground(96, seed) for seed in range(3)]
    window = cv2.GaussianBlur(ground(96, 1)[9:9 + 60, 27:27 + 60], (0, 0), 1.0)
    maps = cells_of(model, images, "opt")
    found = find_window(model, window, CellMaps(maps), 8, CPU, nullcontext)
    views, masks, tries = query_views(window, 8)
    assert len(views) == 4 and [(x, y) for _, _, x, y in tries] == [(30, 30), (26, 30), (30, 26), (26, 26)]
    query = embed_cells(model, views, "sar", CPU, nullcontext)
    for m in range(3):
        best = (-2.0, 0, 0)
        for v, (_, _, middle_x, middle_y) in enumerate(tries):
            shown = torch.zeros(8, 8, dtype=torch.bool)
            for i, j in itertools.product(range(8), range(8)):
                shown[i, j] = masks[v, 8 * i:8 * i + 8, 8 * j:8 * j + 8].all()
            for y, x in itertools.product(range(5), range(5)):
                under = maps[m, :, y:y + 8, x:x + 8]
                score = F.cosine_similarity(query[v][:, shown].flatten(), under[:, shown].flatten(), dim=0).item()
                best = max(best, (score, 8 * x + middle_x, 8 * y + middle_y))
        assert found.scores[m] == pytest.approx(best[0], abs=1e-5)
        assert (found.x[m], found.y[m]) == best[1:]
    assert found.scores.argmax() == 1
    assert math.hypot(found.x[1] - 57, found.y[1] - 39) <= 2 * 2 ** 0.5, "half a cell is four px, and two at most off"


def test_a_mark_in_a_drawn_window_lies_where_the_window_says():
    """Places, rotations and scales are true: a white dot of the image is where they put it in the window."""
    for seed in range(6):
        image = np.zeros((128, 128, 3), np.uint8)
        cv2.circle(image, (66, 61), 2, (255, 255, 255), -1)
        window, = draw_windows(torch.from_numpy(image)[None], 10.0, 0.1, count=1, seed=seed)
        side = round(128 * WINDOW)
        assert window.image.shape == (side, side, 3)
        angle = math.radians(window.rotation)
        dx, dy = 66.5 - window.x, 61.5 - window.y
        # Seen turned clockwise by `rotation`, what lies there goes counter-clockwise about the middle.
        x = (math.cos(angle) * dx + math.sin(angle) * dy) / window.zoom + side / 2
        y = (-math.sin(angle) * dx + math.cos(angle) * dy) / window.zoom + side / 2
        rows, columns = np.nonzero(window.image[..., 0] > 60)
        assert columns.mean() + 0.5 == pytest.approx(x, abs=0.5) and rows.mean() + 0.5 == pytest.approx(y, abs=0.5)
        # And back: the view at that rotation and scale shows it where the image has it.
        views, masks, tries = query_views(window.image, 8, (window.rotation,), (window.zoom,))
        for view, (_, _, middle_x, middle_y) in zip(views.numpy(), tries):
            rows, columns = np.nonzero(view[..., 0] > 60)
            assert columns.mean() + 0.5 == pytest.approx(middle_x + dx, abs=0.6)
            assert rows.mean() + 0.5 == pytest.approx(middle_y + dy, abs=0.6)
    upright = draw_windows(torch.from_numpy(ground(128)[None]), 0.0, 0.0, count=40)
    for window in upright:
        top, left = (int(middle - side / 2) for middle in (window.y, window.x))
        assert (window.image == ground(128)[top:top + side, left:left + side]).all()
    lefts = [window.x - side / 2 for window in upright]
    assert min(lefts) < 6 and max(lefts) > 128 - side - 6, "anywhere"


def test_views_show_the_window_alone():
    window = ground(48)
    views, masks, tries = query_views(window, 8, (0.0, 8.0), (1.0, 0.9))
    assert len(tries) == 16 and (views[0].numpy() == window).all() and masks[0].all()
    assert (views[3, :-4, :-4].numpy() == window[4:, 4:]).all() and masks[3].sum() == 44 * 44
    smaller = masks[4]
    assert smaller.float().mean().sqrt().item() == pytest.approx(0.9, abs=0.03), "0.9 px of the map to a px"
    turned = masks[8]
    assert not turned[0, 0] and turned[24, 24] and 0.8 < turned.float().mean() < 1


@pytest.mark.parametrize("rotation, zoom", [(0.0, 1.0), (8.0, 1.0), (-8.0, 1.07)])
def test_a_planted_window_is_found(rotation, zoom):
    """In the other modality, whose contrast is the reverse, at the rotation and scale that it was planted with."""
    model, images = StructureCells(4), [ground(128, seed) for seed in range(4)]
    maps = CellMaps(cells_of(model, images, "opt"))
    random = np.random.default_rng(0)
    for number, image in enumerate(images):
        x, y = random.uniform(54, 74, 2)
        window = cut_turned(255 - image, x, y, 75, rotation, zoom)
        found = find_window(model, window, maps, 4, CPU, nullcontext, (-8.0, 0.0, 8.0), (0.93, 1.0, 1.07))
        best = found.scores.argmax()
        assert best == number and (found.rotations[best], found.zooms[best]) == (rotation, zoom)
        assert math.hypot(found.x[best] - x, found.y[best] - y) <= 2.0, "half a cell"


# The tool ------------------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def run(demo, tmp_path_factory):
    """A run of cells on the demo pairs, with tiles held out."""
    folder = tmp_path_factory.mktemp("run") / "seed0"
    done = script("code_Con/train.py", "--data_path", demo, "--symmetries", "--recipe", "cpu", "--img_size", "64",
                  "--part", "32", "--batch_size", "8", "--epochs", "2", "--validate", "0.2", "--result_path", folder,
                  *ON_CPU)
    assert done.returncode == 0, done.stderr
    return folder


def test_worlds_are_asked_aligned_and_anywhere(demo, run, tmp_path):
    shutil.copytree(demo / "test", tmp_path / "worlds/elsewhere/test")
    (tmp_path / "worlds/no_data_set").mkdir()
    results = tmp_path / "results/demo"
    for name, flags in (("worlds-structure", ["--data_path", demo]), ("worlds-run", ["--run", run])):
        command = ["tools/worlds.py", *flags, "--worlds", tmp_path / "worlds", *ON_CPU,
                   "--queries", "4", "--result_path", results / name / "seed0"]
        done = script(*command)
        assert done.returncode == 0, done.stderr
        assert "is finished" in script(*command).stdout
        other = script(*command, "--turn_and_scale")
        assert other.returncode == 2 and "turn_and_scale False there, True here" in other.stderr
        lines = json.loads((results / name / "seed0/metrics.json").read_text())["lines"]
        assert [(line["world"], line["windows"]) for line in lines] == list(itertools.product(
            ("demo", "elsewhere"), ("aligned", "upright", "turned", "turned and scaled")))
        for line in lines:
            assert line["queries"] == (12 if line["windows"] == "aligned" else 4) and line["images"] == 12
            assert line["low"] <= line["right"] <= min(line["high"], line["image"])
        here, there = ([line["right"] for line in lines if line["world"] == world] for world in ("demo", "elsewhere"))
        assert here == there, "the same images"
    shutil.copytree(demo / "test", tmp_path / "worlds/later/test")
    other = script(*command)
    assert other.returncode == 2 and "in_worlds" in other.stderr and "later" in other.stderr
    done = script("tools/results.py", results, "--table", "worlds", "worlds-structure", "worlds-run")
    assert done.returncode == 0, done.stderr
    with open(results / "worlds.csv") as file:
        assert [row["row"] for row in csv.DictReader(file)] == ["worlds-structure"] * 8 + ["worlds-run"] * 8


def test_a_world_that_cannot_be_read_is_told_before_the_first_is_asked(demo, tmp_path):
    shutil.copytree(demo / "test", tmp_path / "worlds/elsewhere/test")
    (tmp_path / "worlds/elsewhere/test/opt/broken.png").write_bytes(b"no image")
    done = script("tools/worlds.py", "--data_path", demo, "--worlds", tmp_path / "worlds", "--result_path",
                  tmp_path / "out", *ON_CPU)
    assert done.returncode == 2 and "broken.png" in done.stderr and not (tmp_path / "out").exists()


def test_lines_that_are_damaged_are_told(tmp_path):
    (tmp_path / "lines.json").write_text('{"lines": [')
    with pytest.raises(InputError, match="lines.json is damaged: remove it"):
        Lines(tmp_path / "lines.json", argparse.Namespace())


def test_what_is_refused(demo, run, tmp_path):
    cases = [
        (["tools/worlds.py"], "give --run RUN, or --data_path DATA"),
        (["tools/worlds.py", "--run", run, "--worlds", tmp_path], "no data set is in it"),
        (["code_Structure/test.py", "--data_path", demo, "--target_region", "moon"], "--target_region moon"),
        (["code_Structure/fusion.py", "--run", tmp_path], "holds no run"),
    ]
    for command, words in cases:
        done = script(*command, "--result_path", tmp_path / "out", "--device", "cpu")
        assert done.returncode == 2 and words in done.stderr and "Traceback" not in done.stderr, done.stderr


# The rows that learn nothing -----------------------------------------------------------------------------------------

def test_structure_alone_is_a_row(demo, tmp_path):
    results = tmp_path / "results/demo"
    command = ["code_Structure/test.py", "--data_path", demo, "--result_path", results / "structure/seed0",
               "--device", "cpu"]
    done = script(*command)
    assert done.returncode == 0, done.stderr
    metrics = json.loads((results / "structure/seed0/metrics.json").read_text())
    pairs, = load_splits(demo, ("test",), 200, 1)
    vectors = [F.normalize(cells_of(StructureCells(), list(images.numpy()), modality).flatten(1))
               for images, modality in ((pairs.sar, "sar"), (pairs.opt, "opt"))]
    expected = retrieval_metrics(*vectors, pairs.sar_place, torch.arange(12))
    assert metrics["FC"] == pytest.approx(expected) and metrics["seconds"] == 0
    assert "is finished" in script(*command).stdout
    done = script("tools/results.py", results)
    assert "| structure | FC | 1 |" in done.stdout and "nothing is learned" in done.stdout, done.stderr


def test_a_networks_scores_and_structures(demo, run, tmp_path):
    a, b, c, d = (F.normalize(torch.randn(5, 7, generator=torch.Generator().manual_seed(i))) for i in range(4))
    scores = join(a, b, 0.25) @ join(c, d, 0.25).T
    assert torch.allclose(scores, (a @ c.T + 0.25 * b @ d.T) / 1.25, atol=1e-6)
    figures = {}
    for weight in ("0", "1000000"):
        done = script("code_Structure/fusion.py", "--run", run, "--weight", weight, "--result_path",
                      tmp_path / weight, *ON_CPU)
        assert done.returncode == 0, done.stderr
        figures[weight] = json.loads((tmp_path / weight / "metrics.json").read_text())["FC"]
    done = script("code_Con/test.py", "--run", run, "--result_path", tmp_path / "run", *ON_CPU)
    assert done.returncode == 0 and figures["0"] == json.loads((tmp_path / "run/metrics.json").read_text())["FC"]
    done = script("code_Structure/test.py", "--data_path", demo, "--result_path", tmp_path / "structure",
                  "--device", "cpu")
    alone = json.loads((tmp_path / "structure/metrics.json").read_text())["FC"]
    assert done.returncode == 0 and figures["1000000"]["top1"] == alone["top1"]
    done = script("code_Structure/fusion.py", "--run", run, "--choose", *ON_CPU)
    assert done.returncode == 0 and done.stdout.count("\nweight ") == 6, done.stderr
    held_out = json.loads((run / "metrics.json").read_text())["FC"]
    assert f"weight 0.0: FC: top-1: {held_out['top1']:.2f}%" in done.stdout
    assert not (run / "test.json").exists(), "the test split is not looked at"
