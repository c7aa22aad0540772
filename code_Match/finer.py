"""A finer level for a run's positions: a decoder on its network, which itself stays as it is.

    python code_Match/finer.py --run results/NAME

Writes finer.pt into the run's folder: cells of half the side, by which the best places of a search are told apart
(docs/match.md). It is learned on the run's own training tiles, never on those that it held out, in some 5 minutes of
one core; interrupted it begins again. What was calibrated before has to be calibrated anew (calibrate.py), and each of
its halves needs a finer.pt of its own.
"""
import argparse
import json
import math
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository's root, where shared/ is

import numpy as np
import torch
from torch import nn
from tqdm import trange

from position_loss import displaced_nll
from queries import is_hidden
from scaled import load_tile_network
from tiles import load_tiles
from unseen import require_all_regions
from shared import options
from shared.dataset import to_float
from shared.finished_run import asked_of, is_tested, require_row_of
from shared.mapping.cells import CellMaps, cell_side
from shared.mapping.finer_cells import FINER, FinerCells
from shared.mapping.turned import cut_turned
from shared.optimizers import build_schedule
from shared.plumbing.device import autocast, choose_device
from shared.plumbing.errors import InputError, run_script
from shared.plumbing.files import load_tensors, write_tensors, write_text
from shared.plumbing.run_files import read_settings
from shared.reading.readers import readers_of_run

WINDOW, LEAST_WINDOW = 256, 48                          # px of the map that a query is looked for in
SHARES = (3 / 8, 1 / 2, 5 / 8)                          # of it that a query is large
TILES, LR = 8, 2e-3                                     # of a step
TURN, ZOOM = 3.0, 0.03                                  # degrees, and share, by which a query may deviate
SIGMA = 3.0                                             # px by which the images of a pair are displaced, each way
LOGIT_SCALE = 30.0                                      # of cosines, to begin with: it is learned
TRIES = 100                                             # places of a tile that may show what is left out


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     allow_abbrev=False)
    parser.add_argument("--run", required=True, type=Path, help="the folder of a run of code_Con/train.py")
    parser.add_argument("--data_path", help="what the run learned from, where that has moved")
    parser.add_argument("--steps", type=options.positive, default=600)
    parser.add_argument("--result_path", type=Path, help="a folder for its row of run.sh")
    options.add_reading(parser)
    options.add_device(parser)
    return parser.parse_args()


def main(args):
    if args.run.is_file():
        raise InputError(f"--run {args.run} is packed: give the folder of the run, and pack that")
    settings = read_settings(args.run)
    data_path = args.data_path or settings["data_path"]
    if args.result_path and is_tested(args.result_path) and (args.run / FINER).is_file():
        require_row_of(args.result_path, args.run, data_path, asked_of(args))
        print(f"{args.result_path} is finished")
        return
    device = choose_device(args.device)
    network = load_tile_network(args.run, data_path, device, autocast(device, args.amp))
    if (args.run / FINER).is_file():
        print(f"{args.run / FINER} is there already")
    else:
        require_all_regions(args.run, settings)
        tiles = load_tiles(data_path, "train", args.workers, readers_of_run(args.run, args, args.data_path is None))
        if settings.get("validate"):
            tiles, _ = tiles.hold_out(settings["validate"], settings.get("other_half", False))
        start = time.perf_counter()
        finer = learn(network, tiles, args.steps, settings.get("seed", 0))
        seconds = round(time.perf_counter() - start, 1)
        write_tensors(args.run / FINER, {**finer.saved(), "seconds": seconds})
        print(f"{args.run / FINER}: {args.steps} steps on {len(tiles)} tiles, {seconds:.0f} s")
    if args.result_path:
        args.result_path.mkdir(parents=True, exist_ok=True)
        seconds = load_tensors(args.run / FINER, "--run").get("seconds")
        row = {**settings, "run": str(args.run), "asked": asked_of(args)}
        write_text(args.result_path / "args.json", json.dumps(row, indent=1))
        write_text(args.result_path / "metrics.json", json.dumps({"seconds": seconds, "evaluated_on": "nothing"}))


def learn(network, tiles, steps, seed):
    """The FinerCells of a TileNetwork's model, trained on Tiles to tell where in a window a query lies."""
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    device, mixed = network.network.device, network.network.autocast
    finer = FinerCells(network.network.model).to(device)
    cell = cell_side(finer)
    if cell == network.network.cell:
        raise InputError(f"the cells of --run, of {cell} px, are its first stage's already: there are no finer ones")
    ground = Ground(network, tiles, cell)
    log_scale = nn.Parameter(torch.tensor(math.log(LOGIT_SCALE), device=device))
    optimizer = torch.optim.AdamW([{"params": finer.decoders.parameters()},
                                   {"params": [log_scale], "weight_decay": 0.0}], LR, weight_decay=0.01)
    schedule = build_schedule(optimizer, "cosine", 1, steps)
    finer.train()
    for _ in trange(steps, desc="finer cells", leave=False, disable=None):
        windows, queries, truth = ground.draw(random)
        with mixed():
            maps = finer.cells(opt=to_float(windows, device))         # B x C x h x w
            cells = finer.cells(sar=to_float(queries, device))        # B x C x h' x w'
        cosines = CellMaps(maps).cosines(cells, torch.ones_like(cells[:, :1]))        # B x B x positions
        loss = displaced_nll(cosines * log_scale.exp(), truth, cell, SIGMA)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return finer.eval()


class Ground:
    """What windows and queries are cut from: Tiles as a TileNetwork sees them. cell: px, of which their sides are
    multiples. InputError where the tiles are too small.
    """

    def __init__(self, network, tiles, cell):
        self.opt, self.sar = ([network.seen(tile) for tile in kind] for kind in (tiles.opt, tiles.sar))
        self.hidden = [[[edge * network.factor for edge in rectangle] for rectangle in rectangles]
                       for rectangles in tiles.hidden]
        smallest = min((min(tile.shape[:2]) for tile in self.opt), default=0)
        self.window = min(WINDOW, smallest) // cell * cell
        if self.window < LEAST_WINDOW:
            raise InputError(f"the smallest training tile has {smallest} px as the network sees it, and finer cells "
                             f"need {LEAST_WINDOW}: give a run with larger tiles, or a larger --img_size")
        self.sides = [round(share * self.window / cell) * cell for share in SHARES]

    def draw(self, random):
        """(windows (B, W, W, 3), queries (B, S, S, 3), uint8, truth (B, 2): row and column of a query's first px in its
        window), each of another tile."""
        side, drawn = int(random.choice(self.sides)), []
        for tile in random.permutation(len(self.opt)):
            place = self._place_on(tile, random)
            if place is None:
                continue
            left, top = place
            x, y = random.uniform(0, self.window - side, 2)
            query = cut_turned(self.sar[tile], left + x + side / 2, top + y + side / 2, side,
                               random.uniform(-TURN, TURN), math.exp(random.uniform(-ZOOM, ZOOM)))
            drawn.append((self.opt[tile][top:top + self.window, left:left + self.window], query, [y, x]))
            if len(drawn) == TILES:
                break
        if not drawn:
            raise InputError("leave_out.csv leaves no window of the training tiles to learn finer cells from")
        windows, queries, truth = zip(*drawn)
        return (torch.from_numpy(np.stack(windows)), torch.from_numpy(np.stack(queries)),
                torch.tensor(truth, dtype=torch.float32))

    def _place_on(self, tile, random):
        """(left, top) of a window that, with what a query turned at its edge shows, shows nothing that is left out."""
        height, width = self.opt[tile].shape[:2]
        margin = self.window // 16
        for _ in range(TRIES):
            left, top = (int(random.integers(0, size - self.window + 1)) for size in (width, height))
            if not is_hidden(self.hidden[tile], left - margin, top - margin, self.window + 2 * margin):
                return left, top
        return None


if __name__ == "__main__":
    run_script(main, arguments)
