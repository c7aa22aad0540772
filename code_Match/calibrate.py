"""How sure the matcher's answers are: queries of held-out tiles, half of them looked for where they are not."""
import numpy as np
from tqdm import tqdm

from queries import draw_queries
from shared.calibration import OUTCOMES, RIGHT_PX, SCALE_FACTORS, fit_calibration, scale_at, texture_of
from shared.localization import APART_DEGREES, Search, difference_of_angles, map_features, rotations_to_try

SIDES = (100, 200, 400)
MOST_OF_A_TILE = 0.75                                   # a query as large as its tile has only one place to be
# (side, half width of the rotations, queries of a tile): fewer where a search takes longer.
ROUNDS = ((100, 0, 16), (200, 0, 16), (400, 0, 16), (100, 15, 4), (200, 15, 8), (400, 15, 4), (200, 180, 4))


def calibrate(model, tiles, most, device, autocast):
    """The Calibration of a trained model. tiles: held-out Tiles, at least two. most: queries of a round."""
    smallest = min(min(tile.shape[:2]) for tile in tiles.opt)
    sides = [side for side in SIDES if side <= smallest * MOST_OF_A_TILE] or [smallest // 2]
    of_each = max(1, most // len(tiles))
    maps = maps_of(model, tiles, device, autocast)
    scales = np.array([best_scale(model, tiles, maps, side, of_each, device, autocast) for side in sides])
    found = []
    for side, within, count in ROUNDS:
        if side not in sides and side != SIDES[0]:
            continue
        side = side if side in sides else sides[0]
        scale = scale_at(side, sides, scales)
        queries = draw_queries(tiles, side, within, min(count, of_each), seed=1)
        for number, query in enumerate(tqdm(queries, desc=f"calibrate {side} px, {within}°", disable=None)):
            # Every second query is looked for on the next tile, where it is not.
            is_on = number % 2 == 0
            where = query.tile if is_on else (query.tile + 1) % len(tiles)
            search = Search(model, query.image, rotations_to_try(within), scale, device, autocast)
            search.look_at(maps[where])
            answers = search.answers()
            if not answers:
                continue
            error = error_px(answers[0], query) if is_on else np.inf
            outcome = outcome_of(error, answers[0], query) if is_on else OUTCOMES.index("not on this map")
            found.append((search.evidence(answers), outcome, error, query.tile, texture_of(query.image)))
    evidence, outcomes, errors, found_on, textures = (np.array(column) for column in zip(*found))
    return fit_calibration(sides, scales, evidence, outcomes, errors, found_on, textures, tiles.metres)


def maps_of(model, tiles, device, autocast):
    """The Map of each tile."""
    maps = [map_features(model, tile, device, autocast) for tile in tiles.opt]
    for number, map_ in enumerate(maps):
        map_.number = number
    return maps


def error_px(answer, query):
    return float(np.hypot(answer.x - query.x, answer.y - query.y)) if answer.map == query.tile else np.inf


def outcome_of(error, answer, query):
    turned = abs(difference_of_angles(answer.rotation, query.rotation))
    is_right = error <= RIGHT_PX and turned <= APART_DEGREES
    return OUTCOMES.index("located" if is_right else "ambiguous")


def best_scale(model, tiles, maps, side, of_each, device, autocast, count=8):
    """The factor on the scores at which the places within RIGHT_PX of the truth have the highest likelihood."""
    factors = SCALE_FACTORS * float(model.log_scale.detach().exp())
    likelihood = np.zeros(len(factors))
    for query in draw_queries(tiles, side, 0, min(count, of_each), seed=2):
        search = Search(model, query.image, [0.0], 1.0, device, autocast)
        scores, _ = search.scores_on(maps[query.tile])
        scores = scores[0].double()
        rows, columns = (slice(max(0, int((middle - side / 2 - RIGHT_PX) / search.cell)),
                               int((middle - side / 2 + RIGHT_PX) / search.cell) + 1) for middle in (query.y, query.x))
        near = scores[rows, columns].flatten()
        likelihood += [((factor * near).logsumexp(0) - (factor * scores).flatten().logsumexp(0)).item()
                       for factor in factors]
    return factors[likelihood.argmax()]
