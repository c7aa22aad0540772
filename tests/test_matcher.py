"""The dense matcher: its correlation, what it learns by, its network, and where it says that queries are."""
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from baselines import StructureCorrelation, best_position, displacement, gradient_correlation, mutual_information
from graph import FAR, graph_of, vote
from position_loss import cut_queries, displaced_nll, draw_rotations
from queries import draw_queries
from shared.calibration import OUTCOMES, Calibration, conformal_quantile, fit_calibration, radius_by_tile
from shared.localization import EVIDENCE, Map, Search, cut_turned, difference_of_angles, distinct_peaks
from shared.localization import rotations_to_try, turn
from shared.matcher import HALO, STRIDE, Matcher, correlate
from shared.neighbourhoods import Patches, corners_of_patches, views_of
from shared.plumbing.device import autocast
from tiles import Tiles

CPU = torch.device("cpu")


def ground(side=200, seed=0):
    """A picture with detail of all sizes, (side, side, 3) uint8."""
    random = np.random.default_rng(seed)
    image = np.zeros((side, side, 3), np.float32)
    for grain in (2, 5, 12):
        noise = random.standard_normal((side // grain + 2, side // grain + 2, 3)).astype(np.float32)
        image += np.kron(noise, np.ones((grain, grain, 1), np.float32))[:side, :side]
    return np.clip(128 + 30 * image, 0, 255).astype(np.uint8)


class SameEyes:
    """Stands where a Matcher stands: colours less their surroundings as features, alike for both modalities."""

    def __call__(self, opt=None, sar=None):
        return self.features(opt), self.features(sar)

    def features(self, images):
        if images is None:
            return None
        cells = F.avg_pool2d(images.float(), STRIDE)
        detail = cells - F.avg_pool2d(cells, 9, 1, 4, count_include_pad=False)
        return F.normalize(detail + 1e-6, dim=1)


def test_correlation_is_that_of_a_plain_loop():
    generator = torch.Generator().manual_seed(0)
    maps = F.normalize(torch.randn((2, 4, 13, 11), generator=generator), dim=1)
    map_mask = (torch.rand((2, 1, 13, 11), generator=generator) > 0.2).float()
    images, masks = turn(ground(8), [0.0, 30.0], side=10)
    query = F.normalize(torch.randn((2, 4, 5, 5), generator=generator), dim=1)
    query_mask = torch.from_numpy(masks[:, ::2, ::2].copy()).float()[:, None]
    assert 0 < query_mask[1].mean() < 1, "the query that came turned shows a part of its square"
    scores = correlate(query, query_mask, maps, map_mask, least=0.6)
    whole = correlate(query, query_mask, maps)
    assert scores.shape == whole.shape == (2, 2, 9, 7)
    for q in range(2):
        for m in range(2):
            for y in range(9):
                for x in range(7):
                    cosines = (query[q] * maps[m, :, y:y + 5, x:x + 5]).sum(0)
                    both = query_mask[q, 0] * map_mask[m, 0, y:y + 5, x:x + 5]
                    expected = (cosines * both).sum() / both.sum() if both.sum() >= 0.6 * query_mask[q].sum() else -1
                    assert scores[q, m, y, x] == pytest.approx(float(expected), abs=1e-5)
                    plain = (cosines * query_mask[q, 0]).sum() / query_mask[q].sum()
                    assert whole[q, m, y, x] == pytest.approx(float(plain), abs=1e-5)
    with pytest.raises(ValueError, match="a query of"):
        correlate(torch.zeros(1, 4, 20, 5), torch.ones(1, 1, 20, 5), maps)


def test_a_window_gives_the_features_of_the_whole():
    torch.manual_seed(0)
    model = Matcher().eval()
    image = torch.from_numpy(ground(352)).permute(2, 0, 1)[None].float() / 255
    with torch.no_grad():
        whole, _ = model(opt=image)
        part, _ = model(opt=image[..., 16:16 + 272, 32:32 + 272])
    inside = slice(HALO // STRIDE, (272 - HALO) // STRIDE)
    shifted = whole[..., 8 + inside.start:8 + inside.stop, 16 + inside.start:16 + inside.stop]
    assert torch.allclose(part[..., inside, inside], shifted, atol=1e-5)
    assert not torch.allclose(part[..., :8, :8], whole[..., 8:16, 16:24], atol=1e-3), "the edge has a say near it"
    assert whole.shape == (1, 16, 176, 176) and torch.allclose(whole.norm(dim=1), torch.ones(1, 176, 176), atol=1e-4)
    assert model(sar=image[..., :37, :50])[1].shape[-2:] == (19, 25), "any size"


def test_the_displaced_likelihood_is_that_of_a_plain_loop():
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn((2, 2, 2, 6, 7), generator=generator)
    cell = torch.tensor([[0, 3], [4, 6]])
    sigma, total = 1.2, 0.0
    reach = math.ceil(2.5 * sigma)
    offsets = range(-reach, reach + 1)
    norm = sum(math.exp(-(a * a + b * b) / (2 * sigma ** 2)) for a in offsets for b in offsets)
    for i in range(2):
        p, likelihood = logits[i].flatten().softmax(0).view(2, 2, 6, 7), 0.0
        for a in offsets:
            for b in offsets:
                y, x = int(cell[i, 0]) + a, int(cell[i, 1]) + b
                if 0 <= y < 6 and 0 <= x < 7:
                    likelihood += math.exp(-(a * a + b * b) / (2 * sigma ** 2)) / norm * float(p[0, i, y, x])
        total -= math.log(likelihood) / 2
    assert displaced_nll(logits, cell, sigma).item() == pytest.approx(total, rel=1e-5)
    rows = torch.arange(2)
    plain = F.cross_entropy(logits.flatten(1), (rows * 6 + cell[:, 0]) * 7 + cell[:, 1])
    assert displaced_nll(logits, cell, 0.0).item() == pytest.approx(plain.item(), rel=1e-5)


def test_queries_of_training_lie_where_they_say():
    generator = torch.Generator().manual_seed(0)
    sar = torch.stack([torch.from_numpy(ground(64, seed)).permute(2, 0, 1).float() / 255 for seed in range(6)])
    rotations = torch.tensor([[0.0, 90.0]]).repeat(6, 1)
    views, masks, cell = cut_queries(sar, 32, rotations, generator)
    assert views.shape == (6, 2, 3, 32, 32) and masks.shape == (6, 2, 1, 16, 16)
    shares = masks.mean((2, 3, 4))
    assert (shares[:, 0] == 1).any() and (shares[:, 0] < 1).any(), "whole ones, and what is left of turned ones"
    for i in range(6):
        y, x = (cell[i] * STRIDE).tolist()
        window = sar[i, :, y:y + 32, x:x + 32]
        shown = F.interpolate(masks[i], scale_factor=2)
        assert torch.allclose(views[i, 0] * shown[0], window * shown[0], atol=1e-5)
        # Seen turned by 90 degrees clockwise against the window: what is up in the view is east in the window.
        assert torch.allclose(views[i, 1] * shown[1], window.rot90(1, (1, 2)) * shown[1], atol=1e-5)
    drawn = draw_rotations(500, 3, 3.0, generator)
    assert drawn[:, 0].abs().max() <= 3 and np.abs(difference_of_angles(drawn[:, 1:].numpy(), 0)).min() >= 6


def test_turning_a_query_back_undoes_its_cutting():
    image = ground(160)
    straight = cut_turned(image, 80, 70, 60, 0)
    assert (straight == image[40:100, 50:110]).all()
    east_up = cut_turned(image, 80, 80, 60, 90)
    assert np.abs(east_up.astype(int) - np.rot90(image[50:110, 50:110])).max() <= 1, "what is up lies to the east"
    views, masks = turn(east_up, [0.0, 90.0])
    assert masks.all() and np.abs(views[1].astype(int) - image[50:110, 50:110]).max() <= 1
    back, rotations = views_of(east_up, 180)
    assert np.abs(back[list(rotations).index(90.0)].astype(int) - image[50:110, 50:110]).max() <= 1
    views, masks = turn(cut_turned(image, 80, 80, 60, 25), [25.0])
    middle = np.s_[views.shape[1] // 2 - 15:views.shape[1] // 2 + 15]
    error = np.abs(views[0][middle, middle].astype(int) - image[65:95, 65:95]).mean()
    wrong = np.abs(views[0][middle, middle].astype(int) - image[66:96, 68:98]).mean()
    assert error < 0.6 * wrong and 0.4 < masks.mean() < 0.8
    assert turn(image, [0.0], zoom=0.5)[0].shape == (1, 80, 80, 3)


@pytest.mark.parametrize("within, rotation", [(0, 0.0), (15, 11.3), (180, -100.7)])
def test_a_planted_query_is_found(within, rotation):
    image, other = ground(240), ground(240, seed=9)
    maps = [Map(SameEyes().features(torch.from_numpy(i).permute(2, 0, 1)[None] / 255)[0], torch.ones(1, 120, 120),
                number=number) for number, i in enumerate((other, image))]
    query = cut_turned(image, 131, 117, 72, rotation)
    search = Search(SameEyes(), query, rotations_to_try(within), 100.0, CPU, autocast(CPU, "off"))
    for map_ in maps:
        search.look_at(map_)
    answers = search.answers()
    best = answers[0]
    assert best.map == 1 and math.hypot(best.x - 131, best.y - 117) < 1.5
    assert abs(difference_of_angles(best.rotation, rotation)) < 1.5
    evidence = dict(zip(EVIDENCE, search.evidence(answers)))
    assert best.score > 0.5 and evidence["lead"] > 10 and evidence["quarters"] == 4 and evidence["entropy"] < 1
    assert best.probability > 0.9 and abs(search.zoom_of(best) - 1) < 0.03

    away = Search(SameEyes(), query, rotations_to_try(within), 100.0, CPU, autocast(CPU, "off"))
    away.look_at(maps[0])
    nowhere = away.answers()
    unsure = dict(zip(EVIDENCE, away.evidence(nowhere)))
    assert nowhere[0].score < 0.6 * best.score and unsure["quarters"] < 4 and unsure["lead"] < evidence["lead"]


def test_part_of_a_map_keeps_its_coordinates():
    image = ground(240)
    whole = Map(SameEyes().features(torch.from_numpy(image).permute(2, 0, 1)[None] / 255)[0], torch.ones(1, 120, 120))
    part = whole.part(150, 90, 70)
    assert part.origin == (80, 20) and part.features.shape[1:] == (70, 70)
    search = Search(SameEyes(), image[60:124, 110:174], [0.0], 100.0, CPU, autocast(CPU, "off"))
    search.look_at(part)
    assert math.hypot(search.answers()[0].x - 142, search.answers()[0].y - 92) < 0.5


def test_peaks_are_distinct():
    scores = torch.zeros(3, 40, 40)
    scores[0, 10, 10], scores[0, 12, 11], scores[2, 10, 10], scores[0, 30, 30] = 0.9, 0.8, 0.7, 0.6
    peaks = distinct_peaks(scores, np.array([0.0, 6.0, 90.0]), 5, 3)
    assert [peak[1:] for peak in peaks] == [(0, 10, 10), (2, 10, 10), (0, 30, 30)]
    assert difference_of_angles(359, 1) == -2 and len(rotations_to_try(180)) == 60


def test_baselines_find_what_is_there():
    image = ground(160)
    inverted = 255 - image[40:110, 60:130]
    assert best_position(gradient_correlation(inverted, image)) == (40, 60)
    assert best_position(mutual_information(inverted, image)) == (40, 60)
    correlate_structure = StructureCorrelation()
    cosines = correlate_structure(inverted, image)
    assert best_position(cosines) == (40, 60) and cosines.shape == (91, 91) and 0.8 < cosines.max() <= 1
    assert best_position(correlate_structure(inverted, image[10:])) == (30, 60), "another image"
    # Mutual information against a histogram that is counted, at one position.
    smooth = mutual_information(image[40:110, 60:130], image)
    assert smooth[40, 60] == smooth.max() and smooth.min() >= -1e-6
    large = ground(480)
    shift, error = displacement(large, np.roll(large, (3, -5), (0, 1)))
    assert shift.tolist() == [5, -3] and (error < 0.5).all()


def test_queries_of_a_tile_keep_out_of_what_is_hidden():
    image = ground(200)
    tiles = Tiles(["a"], [image], [image], [[(0, 0, 200, 90)]], 10.0)
    queries = draw_queries(tiles, 60, 180, 20, 0)
    assert len(queries) == 20 and all(query.x - 30 >= 90 for query in queries)
    assert {query.image.shape for query in queries} == {(60, 60, 3)}
    assert draw_queries(tiles, 210, 0, 5, 0) == []


def test_patches_cover_a_map_and_neighbours_vote():
    corners = corners_of_patches(100, 130, 40, 20)
    assert corners.max(0).tolist() == [60, 90] and len(corners) == 4 * 6
    centres = np.array([[0.0, 0], [20, 0], [200, 0], [0, 0]])
    patches = Patches(centres, np.array([0, 0, 0, 1]), F.normalize(torch.randn(4, 8), dim=1), 40)
    scores = np.array([0.5, 0.5, 0.6, 0.0])
    voted = vote(scores, patches)
    assert voted == pytest.approx([0.15, 0.15, 0.2, -0.4])
    nodes, edges, rows = graph_of(scores, patches.embeddings[0], patches)
    assert nodes.shape == (4, 10) and edges.diagonal().all() and (edges == edges.T).all() and rows[0] == 2
    assert FAR > 1e5


def test_calibration_tells_right_from_wrong():
    random = np.random.default_rng(0)
    outcomes = random.integers(0, 3, 600)
    evidence = random.standard_normal((600, len(EVIDENCE)))
    evidence[:, 0] += np.array([8.0, 0.0, -4.0])[outcomes]
    errors = np.where(outcomes == 0, np.abs(random.standard_normal(600)), np.where(outcomes == 1, 300.0, np.inf))
    textures = np.where(outcomes == 1, 5.0, 50.0)
    fitted = fit_calibration([100, 400], [50.0, 200.0], evidence, outcomes, errors, np.arange(600) % 40, textures, 10.0)
    confidence = fitted.confidence(evidence)
    assert np.allclose(confidence.sum(1), 1)
    status = np.array([fitted.status(c, 1.0) for c in confidence])
    assert fitted.status(confidence[outcomes == 0][0], 0.3) == "ambiguous", "another place is as likely"
    assert (status[outcomes == 0] == "located").mean() > 0.95
    assert (status[outcomes == 2] == "located").mean() <= 0.05
    assert (status[outcomes == 2] == OUTCOMES[2]).mean() > 0.9
    radius = np.array([fitted.radius(c) for c in confidence])
    assert 0.87 <= (errors <= radius)[outcomes == 0].mean() <= 0.95
    # Queries of a tile are displaced alike: the radius is that of another tile, not of another query.
    shift = np.repeat(np.arange(1.0, 21), 30)
    assert radius_by_tile(shift, np.repeat(np.arange(20), 30)) == 19 and radius_by_tile(np.array([]), np.array([])) == 0
    assert fitted.texture == 5.0 and fitted.scale(200) == pytest.approx(100)
    assert conformal_quantile(range(1, 10), 0.9) == 9 and conformal_quantile(np.arange(1, 100), 0.9) == 90


def test_calibration_is_kept_as_data(tmp_path):
    numbers = {name: [[0.0] * 6] * 3 if name == "weights" else [1.0] * 3 for name in Calibration.NAMES}
    Calibration(**numbers).save(tmp_path / "calibration.json")
    assert "weights" in (tmp_path / "calibration.json").read_text()
