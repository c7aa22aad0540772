"""How sure the answers of a run are: queries of tiles that it did not see, half of them looked for where they are not.

    python code_Match/calibrate.py --run results/NAME --halves results/HALF results/OTHER_HALF
    python code_Match/calibrate.py --run results/NAME                   a run with --validate: on what it held out

Writes calibration.json into the run's folder, which test.py --method trust and tools/locate.py read. The halves are
runs of the same recipe, trained with `--validate 0.5` and with `--validate 0.5 --other_half`: of all training tiles,
each is asked for by a network that did not see it, and the network that was trained on all is taken to be as sure.
"""
import argparse
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository's root, where shared/ is

import numpy as np
from tqdm import tqdm

from queries import draw_queries
from scaled import load_tile_network
from tiles import add_crs, load_tiles
from unseen import add_halves, unseen_by
from shared import options
from shared.finished_run import asked_of, is_tested, require_row_of
from shared.mapping.calibration import (CALIBRATION, OUTCOMES, RIGHT_DEGREES, RIGHT_PX, SCALES, fit_calibration,
                                        load_calibration, scale_at, texture_of)
from shared.mapping.finer_cells import FINER
from shared.mapping.turned import difference_of_angles
from shared.plumbing.device import autocast, choose_device
from shared.plumbing.errors import InputError, run_script
from shared.plumbing.files import write_text
from shared.plumbing.run_files import read_settings
from shared.reading.readers import readers_of_run

SIDES = (100, 200, 400)
MOST_OF_A_TILE = 0.75                                   # a query as large as its tile has only one place to be
# (side, half width of the rotations, queries of a tile): fewer where a search takes longer.
ROUNDS = ((100, 0, 8), (200, 0, 8), (400, 0, 8), (100, 15, 2), (200, 15, 4), (400, 15, 2), (200, 180, 2))
FOR_THE_SCALE = 4                                       # queries of a tile and side


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     allow_abbrev=False)
    parser.add_argument("--run", required=True, type=Path, help="the folder of a run of code_Con/train.py")
    add_halves(parser)
    parser.add_argument("--data_path", help="what the run learned from, where that has moved")
    add_crs(parser)
    parser.add_argument("--queries", type=options.positive, default=8, help="of each tile, at most")
    parser.add_argument("--result_path", type=Path, help="write it there, too, as a row of run.sh")
    options.add_reading(parser)
    options.add_device(parser)
    return parser.parse_args()


def main(args):
    if args.run.is_file():
        raise InputError(f"--run {args.run} is packed: calibrate the folder of the run, and pack that")
    settings = read_settings(args.run)
    data_path = args.data_path or settings["data_path"]
    start = time.perf_counter()
    device = choose_device(args.device)
    mixed = autocast(device, args.amp)
    network = load_tile_network(args.run, data_path, device, mixed).network       # raises where it gives no cells
    is_finished = args.result_path and is_tested(args.result_path)
    is_calibrated = is_finished and (args.run / CALIBRATION).is_file()
    if is_calibrated and load_calibration(args.run).finer == network.finer_identity:
        require_row_of(args.result_path, args.run, data_path, asked_of(args))
        print(f"{args.result_path} is finished")
        return
    tiles = load_tiles(data_path, "train", args.workers, readers_of_run(args.run, args, args.data_path is None),
                       args.crs)
    unseen = unseen_by(args.run, args.halves, tiles)
    asked = [(load_tile_network(part.run, data_path, device, mixed), part.tiles) for part in unseen]
    require_finer_alike(args.run, network, [(part.run, half.network) for part, (half, _) in zip(unseen, asked)])
    calibration, count = calibrate(asked, args.queries)
    calibration.finer = network.finer_identity          # that of the run itself, as the halves stand for it
    calibration.save(args.run / CALIBRATION)
    print(f"{args.run / CALIBRATION}: {count} queries of {sum(len(tiles) for _, tiles in asked)} tiles, "
          f"{time.perf_counter() - start:.0f} s")
    if args.result_path:
        args.result_path.mkdir(parents=True, exist_ok=True)
        calibration.save(args.result_path / CALIBRATION)
        row = {**settings, "run": str(args.run), "asked": asked_of(args)}
        write_text(args.result_path / "args.json", json.dumps(row, indent=1))
        write_text(args.result_path / "metrics.json", json.dumps(
            {"queries": count, "seconds": round(time.perf_counter() - start, 1), "evaluated_on": "nothing"}, indent=1))


def require_finer_alike(run, network, halves):
    """InputError where a run has finer cells and its halves, [(folder, CellNetwork)], have none, or the other way
    round."""
    for folder, half in halves:
        if bool(half.finer) != bool(network.finer):
            with_it, without = (run, folder) if network.finer else (folder, run)
            raise InputError(f"{with_it} has a {FINER}, and {without} has none: python code_Match/finer.py --run "
                             f"{without} makes one, or remove the other")


def calibrate(asked, most):
    """(the Calibration, how many queries it was made of).

    asked: (TileNetwork, Tiles that it did not see), each at least two tiles. most: queries of a tile in a round. The
    numbers are those of the network's px, not the tiles'.
    """
    for _, tiles in asked:
        if len(tiles) < 2:
            raise InputError("--run or one of --halves held 1 tile out, and each query is looked for on another tile, "
                             "too: give a run with a larger --validate")
    smallest = min(min(tile.shape[:2]) for _, tiles in asked for tile in tiles.opt)
    sides = [side for side in SIDES if side <= smallest * MOST_OF_A_TILE] or [smallest // 2]
    asked = [(network, tiles, network.maps_of(tiles)) for network, tiles in asked]
    factor = asked[0][0].factor
    scales = [best_scale(asked, side, min(most, FOR_THE_SCALE)) for side in sides]
    found = []
    for side, within, count in ROUNDS:
        if side not in sides and side != SIDES[0]:
            continue
        side = side if side in sides else sides[0]
        scale = scale_at(side, sides, scales)
        for network, tiles, maps in asked:
            found += ask(network, tiles, maps, side, within, min(count, most), scale)
    evidence, outcomes, errors, found_on, textures = (np.array(column) for column in zip(*found))
    metres = asked[0][1].metres / factor
    return fit_calibration(np.array(sides) * factor, scales, evidence, outcomes, errors * factor, found_on, textures,
                           metres), len(found)


def ask(network, tiles, maps, side, within, count, scale):
    """[(evidence, outcome, error in px, name of the tile, texture)] of queries, every second of them looked for on the
    next tile, where it is not."""
    found = []
    queries = draw_queries(tiles, side, within, count, seed=1)
    for number, query in enumerate(tqdm(queries, desc=f"calibrate {side} px, {within}°", leave=False, disable=None)):
        is_on = number % 2 == 0
        search = network.search(query, within, scale)
        search.look_at(maps[query.tile if is_on else (query.tile + 1) % len(tiles)])
        answers = search.answers()
        if not answers:
            continue
        error, outcome = np.inf, OUTCOMES.index("not on this map")
        if is_on:
            answer = network.in_tile(answers[0], tiles)
            error = error_px(answer, query)
            outcome = outcome_of(error, answer, query)
        found.append((search.evidence(answers), outcome, error, tiles.names[query.tile], texture_of(query.image)))
    return found


def error_px(answer, query):
    return float(np.hypot(answer.x - query.x, answer.y - query.y)) if answer.map == query.tile else np.inf


def outcome_of(error, answer, query):
    turned = abs(difference_of_angles(answer.rotation, query.rotation))
    is_right = error <= RIGHT_PX and turned <= RIGHT_DEGREES
    return OUTCOMES.index("located" if is_right else "ambiguous")


def best_scale(asked, side, count):
    """The factor on the scores at which the places within RIGHT_PX of the truth have the highest likelihood."""
    likelihood = np.zeros(len(SCALES))
    for network, tiles, maps in asked:
        cell, factor = network.network.cell, network.factor
        for query in draw_queries(tiles, side, 0, count, seed=2):
            search = network.search(query, 0, 1.0)
            seen = search.seen[0]
            scores, origin = search.scores_on(maps[query.tile], seen)
            scores = scores[0].double()
            rows, columns = (slice(max(0, int(((at - RIGHT_PX) * factor - middle - edge) / cell)),
                                   max(0, int(((at + RIGHT_PX) * factor - middle - edge) / cell)) + 1)
                             for at, middle, edge in zip((query.y, query.x), seen.middle[::-1], origin[::-1]))
            near, all_of_it = scores[rows, columns].flatten(), scores[scores > -1]
            likelihood += [((scale * near).logsumexp(0) - (scale * all_of_it).logsumexp(0)).item() for scale in SCALES]
    return SCALES[likelihood.argmax()]


if __name__ == "__main__":
    run_script(main, arguments)
