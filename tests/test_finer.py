"""Finer cells of a network that stays as it is: how they are learned, and how they order the answers of a search."""
import json
import math
import shutil
from argparse import Namespace
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch

from conftest import ROOT
from position_loss import displaced_nll
from scaled import TileNetwork
from shared.mapping.calibration import CALIBRATION, load_calibration
from shared.mapping.cells import CellMaps, cell_side, load_cell_network
from shared.mapping.finer_cells import FINER, FinerCells, identity_of
from shared.mapping.localization import REACH, Search, covariance_of, map_of
from shared.model import PseudoSiamese
from shared.plumbing.errors import InputError
from shared.plumbing.files import write_tensors
from test_dataset import make_data
from test_localization import CPU, NUMBERS, ground, structure_network
from tiles import Tiles
from tools.bench import load_script
from tools.pack import pack

finer_script, calibrate_script, test_script = (load_script(ROOT / f"code_Match/{name}.py")
                                               for name in ("finer", "calibrate", "test"))


# What is learned -----------------------------------------------------------------------------------------------------

def nll_by_loop(logits, truth, cell, sigma):
    """Every position of every window, one at a time."""
    total = 0.0
    for i, (row, column) in enumerate(truth.tolist()):
        everything = sum(math.exp(value) for value in logits[i].flatten().tolist())
        near, weights = 0.0, 0.0
        for y in range(logits.shape[2]):
            for x in range(logits.shape[3]):
                weight = math.exp(-((cell * y - row) ** 2 + (cell * x - column) ** 2) / (2 * sigma ** 2))
                near += weight * math.exp(logits[i, i, y, x].item()) / everything
                weights += weight
        total -= math.log(near / weights) / len(truth)
    return total


@pytest.mark.parametrize("cell, sigma", [(4, 3.0), (8, 3.0), (4, 10.0)])
def test_the_likelihood_of_positions_equals_a_loop(cell, sigma):
    torch.manual_seed(0)
    logits, truth = torch.randn(3, 3, 5, 4), cell * torch.tensor([[0.0, 3.0], [2.4, 1.7], [4.0, 0.3]])
    value = displaced_nll(logits, truth, cell, sigma)
    assert value.item() == pytest.approx(nll_by_loop(logits, truth, cell, sigma), rel=1e-5)


def test_without_displacement_it_is_the_cross_entropy_of_the_nearest_position():
    torch.manual_seed(0)
    logits = torch.randn(2, 2, 5, 5)
    value = displaced_nll(logits, torch.tensor([[8.3, 4.2], [0.0, 15.5]]), 4, 0.1)
    nearest = torch.tensor([0 * 25 + 2 * 5 + 1, 1 * 25 + 0 * 5 + 4])
    assert value.item() == pytest.approx(torch.nn.functional.cross_entropy(logits.flatten(1), nearest).item(), rel=1e-5)


def small_model(seed=0):
    """With BatchNorm's statistics of its own, and cells of 8 px."""
    torch.manual_seed(seed)
    model = PseudoSiamese("resnet18", 1, pooling="cells", stages=3, input="both")
    images = torch.rand(2, 3, 64, 64)
    model.train()(images, images)
    return model.eval()


def test_finer_cells_learn_and_leave_the_network_as_it_was():
    model, images = small_model(), torch.rand(2, 3, 64, 64)
    before = identity_of(model)
    pool5, fc, _ = model(images, images)
    finer = FinerCells(model)
    assert cell_side(model) == 8 and cell_side(finer) == 4
    cells = finer.eval().cells(opt=images[:1], sar=images[1:])
    assert cells.shape == (2, 16, 16, 16) and torch.allclose(cells[:1], finer.cells(opt=images[:1]), atol=1e-5)
    finer.train()
    optimizer = torch.optim.AdamW(finer.decoders.parameters(), 1e-2)
    losses = []
    for _ in range(8):
        maps, query = finer.cells(opt=images), finer.cells(sar=images[..., 8:56, 12:60])
        cosines = CellMaps(maps).cosines(query, torch.ones_like(query[:, :1]))
        loss = displaced_nll(20 * cosines, torch.tensor([[8.0, 12.0]] * 2), 4, 1.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 3
    assert identity_of(model) == before
    assert all(torch.equal(*pair) for pair in zip((pool5, fc), model(images, images)))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that held half of its six tiles out."""
    root = tmp_path_factory.mktemp("finer")
    data, folder = make_data(root / "data", size=64), root / "run"
    folder.mkdir()
    model = small_model()
    write_tensors(folder / "weights.pt", {**model.settings, "img_size": 64, "model": model.state_dict()})
    settings = {"data_path": str(data), "validate": 0.5, "seed": 3}
    (folder / "args.json").write_text(json.dumps(settings))
    (folder / "metrics.json").write_text(json.dumps({"seconds": 7.0}))
    return folder


def learn(run, data_path=None, result_path=None):
    finer_script.main(Namespace(run=run, data_path=data_path, steps=2, result_path=result_path, workers=1, bands=None,
                                sar_bands=None, scale=None, device="cpu", amp="off"))


def learned(run, folder, data_path=None):
    """The folder of a copy of the run that has a finer.pt of two steps."""
    shutil.copytree(run, folder)
    learn(folder, data_path)
    return folder


@pytest.fixture(scope="module")
def with_finer(run):
    return learned(run, run.parent / "with_finer")


def identity(folder):
    return load_cell_network(folder, CPU, nullcontext)[0].finer_identity


def test_it_is_learned_from_the_tiles_that_the_run_kept(run, with_finer, tmp_path, capsys):
    names = [f"p{i:02d}" for i in range(6)]
    images = [ground(64)] * 6
    kept, held_out = Tiles(names, images, images, [[]] * 6, 10.0).hold_out(0.5)
    data = json.loads((run / "args.json").read_text())["data_path"]
    other = make_data(tmp_path / "other", size=64, seed=1)
    for tiles, is_same in ((held_out, True), (kept, False)):
        mixed = tmp_path / f"mixed{is_same}"
        shutil.copytree(data, mixed)
        for name in tiles.names:
            for modality in ("opt", "sar"):
                shutil.copy(other / "train" / modality / f"{name}.png", mixed / "train" / modality)
        there = learned(run, tmp_path / f"run{is_same}", mixed)
        assert (identity(there) == identity(with_finer)) == is_same, "what was held out says nothing: bit for bit"
    before = (with_finer / FINER).read_bytes()
    capsys.readouterr()
    for _ in range(2):
        learn(with_finer, result_path=tmp_path / "row")
    assert capsys.readouterr().out.split("\n")[:2] == [f"{with_finer / FINER} is there already",
                                                       f"{tmp_path / 'row'} is finished"]
    assert (with_finer / FINER).read_bytes() == before


def test_windows_show_nothing_that_is_left_out():
    image = np.zeros((200, 200, 3), np.uint8)
    image[:, :120] = 255
    tiles = Tiles(["a", "b"], [image, image], [image, image], [[(0, 0, 200, 120)], [(0, 0, 200, 200)]], 10.0)
    drawn = finer_script.Ground(TileNetwork(structure_network(), 0.5), tiles, 4)
    assert drawn.window == 100 and drawn.sides == [36, 48, 64]
    with pytest.raises(InputError, match="leave_out.csv leaves no window"):
        drawn.draw(np.random.default_rng(0))
    drawn.window, drawn.sides = 32, [12, 16, 20]
    for seed in range(5):
        windows, queries, truth = drawn.draw(np.random.default_rng(seed))
        assert len(windows) == 1 and windows.max() == queries.max() == 0 and (truth >= 0).all()
    tiny = Tiles(["a"], [image[:80]], [image[:80]], [[]], 10.0)
    with pytest.raises(InputError, match="the smallest training tile has 40 px"):
        finer_script.Ground(TileNetwork(structure_network(), 0.5), tiny, 4)


# What is done with it ------------------------------------------------------------------------------------------------

def by_loop(search, answer, network, image):
    """(score, x, y) of the best position within REACH finer cells of an answer, by one product after the other."""
    cells, best = map_of(network, image).cells, (-1.0, 0, 0)
    for seen in search._seen_at(0.0, network):
        query, mask = seen.cells[0], seen.mask[0]
        rows, columns = seen.size
        own = (query * mask).square().sum()
        middle = [round((at - of_query) / network.cell) for at, of_query in zip((answer.x, answer.y), seen.middle)]
        for row in range(middle[1] - REACH, middle[1] + REACH + 1):
            for column in range(middle[0] - REACH, middle[0] + REACH + 1):
                if 0 <= row <= cells.shape[1] - rows and 0 <= column <= cells.shape[2] - columns:
                    below = cells[:, row:row + rows, column:column + columns] * mask
                    score = ((query * below).sum() / (own * below.square().sum()).sqrt()).item()
                    best = max(best, (score, column * network.cell + seen.middle[0],
                                      row * network.cell + seen.middle[1]))
    return best


def test_the_answers_are_those_of_a_plain_loop_over_finer_cells():
    """Of two places that coarse cells hardly tell apart the finer ones take the right one."""
    image = ground(240, seed=2)
    query = image[40:104, 50:114]
    likeness = query.reshape(8, 8, 8, 8, 3).mean((1, 3)).repeat(8, 0).repeat(8, 1)
    image[144:208, 136:200] = (0.55 * query + 0.45 * likeness).round()
    coarse = structure_network(8)
    network = replace(coarse, finer=structure_network(4))
    searches = [Search(its, query, [0.0], 20.0) for its in (coarse, network)]
    for search in searches:
        search.look_at(map_of(network, image))
    plain, search = searches
    assert plain.found == search.found and plain.entropy() == search.entropy()
    answers, before = search.answers(), plain.answers()
    assert len(answers) >= 2
    for answer in answers:
        score, x, y = max(by_loop(search, other, network.finer, image) for other in before
                          if max(abs(other.x - answer.x), abs(other.y - answer.y)) < 16)
        assert answer.score == pytest.approx(score, abs=1e-5)
        assert max(abs(answer.x - x), abs(answer.y - y)) < 4, "less than a cell away from the best one"
    assert math.hypot(answers[0].x - 82, answers[0].y - 72) < 1
    scores = [answer.score for answer in answers]
    assert scores == sorted(scores, reverse=True)
    assert answers[1].probability / answers[0].probability == pytest.approx(math.exp(20 * (scores[1] - scores[0])))
    assert 0.5 < sum(answer.probability for answer in answers) <= 1 + 1e-9
    assert answers[0].around.cell == 8 and np.all(np.linalg.eigvalsh(answers[0].covariance) >= 0)


def test_with_rotations_the_evidence_is_of_the_answer_that_finer_cells_put_first(monkeypatch):
    image = ground(240, seed=4)
    network = replace(structure_network(8), finer=structure_network(4))
    search = Search(network, image[60:160, 70:170], np.linspace(-15, 15, 3), 50.0)
    search.look_at(map_of(network, image))
    first = search._refined_answers()[0]
    other = replace(first, rotation=first.rotation + 7, x=first.x + 30)
    monkeypatch.setattr(search, "_refined_answers", lambda: [other, first])
    answers = search.answers()
    assert (answers[0].x, answers[0].y) == pytest.approx((120, 110), abs=1) and search.evidence(answers)[2] >= 3
    assert search.last[0].rotations[0] == answers[0].rotation == first.rotation


def test_the_covariance_of_two_positions():
    (xx, xy), (_, yy) = covariance_of([(np.log([[0.5, 0.5]]), 3.0, 7.0)], 0.0, 4)
    assert (xx, xy, yy) == pytest.approx((4.0, 0.0, 0.0))


def test_a_run_without_it_has_none_and_one_that_does_not_fit_is_refused(run, with_finer, tmp_path):
    assert load_cell_network(run, CPU, None)[0].finer is None and identity(run) is None
    network, _ = load_cell_network(with_finer, CPU, nullcontext)
    assert network.cell == 8 and network.finer.cell == 4 and network.finer.finer is None
    bad = shutil.copytree(with_finer, tmp_path / "bad")
    contents = {"cut": ((bad / FINER).read_bytes()[:-200], "finer.pt cannot be read as tensors"),
                "weights": ((bad / "weights.pt").read_bytes(), "finer.pt holds no decoder of this network: remove it")}
    write_tensors(bad / FINER, FinerCells(small_model(1)).saved())
    contents["other"] = ((bad / FINER).read_bytes(), "finer.pt was learned on another network")
    for content, words in contents.values():
        (bad / FINER).write_bytes(content)
        with pytest.raises(InputError, match=words):
            load_cell_network(bad, CPU, nullcontext)


def test_a_packed_run_gives_the_same_positions(with_finer, tmp_path):
    write_tensors(tmp_path / "packed.pt", pack(with_finer))
    networks = [load_cell_network(run, CPU, nullcontext)[0] for run in (tmp_path / "packed.pt", with_finer)]
    assert networks[0].finer_identity == networks[1].finer_identity is not None
    image = ground(128, seed=1)
    answers = []
    for network in networks:
        search = Search(network, image[32:80, 40:88], [0.0], 50.0)
        search.look_at(map_of(network, image))
        answers.append(search.answers()[0])
    assert (answers[0].x, answers[0].y) == pytest.approx((answers[1].x, answers[1].y), abs=0.05)
    assert answers[0].score == pytest.approx(answers[1].score, abs=2e-3)


def test_a_calibration_belongs_to_the_finer_cells_that_it_was_made_with(run, with_finer, tmp_path):
    networks = [load_cell_network(folder, CPU, nullcontext)[0] for folder in (run, with_finer)]
    folder = shutil.copytree(with_finer, tmp_path / "run")
    for made_with, fits, words in ((None, networks[0], "was made with no finer.pt, and the run has the finer.pt"),
                                   (networks[1].finer_identity, networks[1], "was made with the finer.pt .* has none")):
        numbers = NUMBERS if made_with is None else {**NUMBERS, "finer": made_with}
        (folder / CALIBRATION).write_text(json.dumps(numbers))
        assert load_calibration(folder, fits).finer == load_calibration(folder).finer == made_with
        other, = [network for network in networks if network is not fits]
        with pytest.raises(InputError, match=words):
            load_calibration(folder, other)
    load_calibration(folder).save(folder / CALIBRATION)
    assert load_calibration(folder).finer == networks[1].finer_identity
    calibrate_script.require_finer_alike(folder, networks[1], [("a", networks[1]), ("b", networks[1])])
    with pytest.raises(InputError, match="has a finer.pt, and b has none: python code_Match/finer.py --run b makes"):
        calibrate_script.require_finer_alike(folder, networks[1], [("a", networks[1]), ("b", networks[0])])
    with pytest.raises(InputError, match="a has a finer.pt, and .*run has none"):
        calibrate_script.require_finer_alike(folder, networks[0], [("a", networks[1])])


def test_a_finished_row_belongs_to_the_finer_cells_that_it_was_asked_by(run, with_finer, tmp_path):
    data, row = json.loads((run / "args.json").read_text())["data_path"], tmp_path / "row"
    row.mkdir()
    (row / "metrics.json").write_text("{}")
    for settings, fits, other in (({}, run, with_finer), ({"finer": identity(with_finer)}, with_finer, run)):
        for method in ("cells", "trust", "voting"):
            (row / "args.json").write_text(json.dumps({"data_path": data, "method": method, **settings}))
            args = Namespace(result_path=row, data_path=None, method=method)
            test_script.test(Namespace(run=fits, **vars(args)))
            if method == "voting":
                test_script.test(Namespace(run=other, **vars(args)))
                continue
            with pytest.raises(InputError, match="was asked by other finer cells, or without: remove it"):
                test_script.test(Namespace(run=other, **vars(args)))
