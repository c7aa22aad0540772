"""Where a query lies on a map, how it is turned, and how sure that is: candidates by the cosine of its cells, refined.

Positions are (x, y) in px of the map, counted from its upper left corner, so that the middle of the first pixel is
(0.5, 0.5). A rotation is in degrees clockwise: the direction on the map of what is up in the query, 0 north. Maps and
queries are at the scale at which the network learned.
"""
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F

from shared.mapping.cells import CellMaps, cell_mask
from shared.mapping.turned import difference_of_angles, filled, side_of_views, turn

COARSE_SIDE, COARSE_SHARE = 192, 0.64                   # px, or share of a query's side if more, for many rotations
ROTATION_STEP = 15.0                                    # degrees between the rotations that are tried
FINER_SIDE = 256                                        # px of a query by which its rotation is told more finely
AT_ONCE = 12                                            # views of a query that are correlated at once
APART_PX, APART_DEGREES = 10, 20                        # nearer than both, two answers are the same
CANDIDATES = 8                                          # answers that are kept
REFINED, FINAL = 3, 2                                   # of them looked at once more, and of those once again
REACH = 3                                               # cells about a candidate that are looked at once more
ZOOMS = np.linspace(0.9, 1.1, 9)                        # of a query, tried on its answer
LEAST_ON_MAP = 0.9                                      # of a query's cells must lie on the map: fewer fit by chance
LEAST_SHOWN = 0.5                                       # of a quarter of it
MOST_LEAD = 30.0                                        # logits; more says nothing more
# What tells whether an answer is right: lead of its logit over the best other answer, entropy of the probability,
# quarters of the query that agree, its score, and how much was looked at with what.
EVIDENCE = ("lead", "entropy", "quarters", "score", "log_side", "log_rotations")


@dataclass
class Map:
    """The cells of a map, or of a part of it. cells: (C, h, w) float32. mask: (1, h, w), 1 where there is map. cell: px
    to one. origin: (x, y) in px of the first cell's corner. number: of the map, where there are several. finer: a
    function of (x, y, half), the Map of finer cells within `half` px of (x, y), where the network has some."""
    cells: torch.Tensor
    mask: torch.Tensor
    cell: int
    origin: tuple = (0, 0)
    number: int = 0
    finer: Callable = field(default=None, repr=False)
    _ready: dict = field(default_factory=dict, repr=False)

    def ready(self, beyond):
        """The CellMaps of this map, with so many empty cells around it; made once."""
        if beyond not in self._ready:
            cells, mask = (F.pad(x, (beyond,) * 4)[None] for x in (self.cells, self.mask))
            self._ready[beyond] = CellMaps(cells, mask)
        return self._ready[beyond]

    def part(self, x, y, half):
        """The cells within `half` px of (x, y) in both directions; this very map where that is all of it."""
        first_x, first_y = (max(0, int((middle - half - edge) // self.cell))
                            for middle, edge in zip((x, y), self.origin))
        last_x, last_y = (max(0, int(-(-(middle + half - edge) // self.cell)))
                          for middle, edge in zip((x, y), self.origin))
        height, width = self.cells.shape[-2:]
        if first_x == first_y == 0 and last_x >= width and last_y >= height:
            return self
        rows, columns = slice(first_y, last_y), slice(first_x, last_x)
        origin = self.origin[0] + first_x * self.cell, self.origin[1] + first_y * self.cell
        return Map(self.cells[:, rows, columns].clone(), self.mask[:, rows, columns].clone(), self.cell, origin,
                   self.number, self.finer)


@dataclass
class Answer:
    """One place of a query. map: the number of its map. x, y: the query's middle, in px of that map. score: the cosine
    in [-1, 1]. probability: among all positions and rotations. covariance: 2 x 2 of (x, y), px². around: the Map about
    it, as far as it is of use."""
    map: int
    x: float
    y: float
    rotation: float
    score: float
    probability: float = 0.0
    covariance: tuple = ((0.0, 0.0), (0.0, 0.0))
    around: Map = field(default=None, repr=False, compare=False)


@dataclass
class Seen:
    """A query's cells at some rotations. cells: (K, C, h, w). mask: (K, 1, h, w), 1 where the query is shown.
    rotations: (K) degrees. middle: (x, y) of the query's middle, px from the corner of the first cell. cell: px to
    one."""
    cells: torch.Tensor
    mask: torch.Tensor
    rotations: np.ndarray
    middle: tuple
    cell: int

    @property
    def size(self):
        """(rows, columns) of cells."""
        return self.cells.shape[-2:]


def rotations_to_try(within):
    """(K) degrees, at most ROTATION_STEP apart. within: 0 (known), a half width, or 180 (unknown)."""
    if within == 0:
        return np.zeros(1)
    if within >= 180:
        return np.arange(0, 360, ROTATION_STEP)
    count = int(np.ceil(within / ROTATION_STEP))
    return np.linspace(-within, within, 2 * count + 1)


def map_of(network, image, shown=None, number=0):
    """The Map of an optical image (H, W, 3) uint8. shown: (H, W) bool, where it has data (default: all of it).

    network: a CellNetwork. Its finer cells are worked out when they are first asked for.
    """
    shown = np.ones(image.shape[:2], bool) if shown is None else shown
    mask = cell_mask(shown[None], network.cell)[0].to(network.device)
    map_ = Map(network.cells(filled(image, shown)[None], "opt")[0], mask, network.cell, number=number)
    if network.finer:
        whole = cache(lambda: map_of(network.finer, image, shown, number))
        map_.finer = lambda x, y, half: whole().part(x, y, half)
    return map_


class Search:
    """A query against maps: every position and rotation, then the best of them again more finely.

    network: a CellNetwork. query: (h, w, 3) uint8 at the maps' resolution. rotations: (K) degrees, as rotations_to_try
    gives them. scale: the logits' factor on scores (see Calibration), which makes probabilities of them. shown: (h, w)
    bool, where the query shows something (default: all of it). circle: (x, y, radius) px, within which its middle lies
    (default: anywhere).
    """

    def __init__(self, network, query, rotations, scale, shown=None, circle=None):
        self.network, self.cell, self.rotations, self.scale = network, network.cell, np.asarray(rotations, float), scale
        self.circle = circle
        self.shown = np.ones(query.shape[:2], bool) if shown is None else shown
        self.query = filled(query, self.shown)
        self.is_known = len(self.rotations) == 1
        # Where many rotations are tried the middle of the query is enough to begin with.
        self.coarse_side = None
        if not self.is_known:
            self.coarse_side = max(COARSE_SIDE, round(COARSE_SHARE * max(query.shape[:2])))
        self.seen = [self.see(self.rotations, self.coarse_side)]
        if self.is_known:
            self.seen.append(self.see(self.rotations, shift=(self.cell // 2,) * 2))
        self.last = self.seen                                         # by which the best answer was told at last
        self.found = []
        self.log_sum, self.weighted = -np.inf, 0.0                    # of the logits over all that was looked at

    def see(self, rotations, most=None, zoom=1.0, shift=(0, 0), network=None):
        """The query as Seen at these rotations. most: px of its middle that are enough (default: all of it). zoom: map
        px to a px of it. shift: (across, down), px by which the cells begin later. network: that sees it (default: that
        of the search)."""
        network = network or self.network
        side = side_of_views(self.query, rotations, zoom)
        side = min(side, most or side)
        views, masks = turn(self.query, rotations, side, zoom, self.shown)
        across, down = shift
        more = (0, -side % network.cell + down), (0, -side % network.cell + across)   # all shifts have as many cells
        views = np.pad(views[:, down:, across:], ((0, 0), *more, (0, 0)), mode="edge")
        masks = np.pad(masks[:, down:, across:], ((0, 0), *more))
        cells = network.cells(views, "sar")
        mask = cell_mask(masks, network.cell).to(cells.device)
        middle = side / 2 - across, side / 2 - down
        return Seen(cells, mask, np.asarray(rotations, float), middle, network.cell)

    def look_at(self, map_):
        """Score every position on one more Map, and keep the best."""
        for seen in self.seen:
            scores, origin = self.scores_on(map_, seen)
            if scores is None:
                continue
            self._count(self.scale * scores.double()[scores > -1])
            for score, k, row, column in distinct_peaks(scores, seen.rotations, APART_PX / self.cell, CANDIDATES):
                x = origin[0] + column * self.cell + seen.middle[0]
                y = origin[1] + row * self.cell + seen.middle[1]
                self.found.append(Answer(map_.number, x, y, seen.rotations[k], score, around=map_))
        self.found = _without_repetitions(sorted(self.found, key=lambda answer: -answer.score))[:CANDIDATES]
        # The map itself may be one of many that together do not fit the memory.
        half = 2 * max(self.query.shape[:2]) + (REACH + 1) * self.cell
        for answer in self.found:
            if answer.around is map_:
                answer.around = map_.part(answer.x, answer.y, half)

    def _count(self, logits):
        """Take the logits of more positions into the sums that make probabilities and the entropy."""
        if not len(logits):
            return
        total = logits.logsumexp(0).item()
        mean = ((logits - total).exp() * logits).sum().item()
        together = np.logaddexp(self.log_sum, total)
        self.weighted = self.weighted * np.exp(self.log_sum - together) + mean * np.exp(total - together)
        self.log_sum = together

    def scores_on(self, map_, seen):
        """((K, h, w) cosines at every position, -1 where the query cannot be, (x, y) in px of the first): None where
        it does not fit."""
        # A view's corners may lie beyond the map, but not the query.
        rows, columns = seen.size
        size = [side * self.cell for side in (rows, columns)]
        beyond = max(0, *(-(-(whole - part) // self.cell) for whole, part in zip(size, self.query.shape[:2])))
        height, width = (side + 2 * beyond for side in map_.cells.shape[-2:])
        if height < rows or width < columns:
            return None, None
        ready = map_.ready(beyond)
        scores = [ready.cosines(cells, mask, least=LEAST_ON_MAP)[:, 0]
                  for cells, mask in zip(seen.cells.split(AT_ONCE), seen.mask.split(AT_ONCE))]
        scores, origin = torch.cat(scores), tuple(edge - beyond * self.cell for edge in map_.origin)
        if self.circle:
            height, width = scores.shape[-2:]
            xs, ys = (edge + middle + self.cell * np.arange(count)
                      for edge, middle, count in zip(origin, seen.middle, (width, height)))
            # A cell more: from there an answer may be refined to a place within.
            scores[:, torch.from_numpy(~self._is_within(xs, ys[:, None], self.cell)).to(scores.device)] = -1
        return scores, origin

    def _is_within(self, x, y, more=0):
        """Whether positions lie in the circle, widened by so many px."""
        return self.circle is None or np.hypot(x - self.circle[0], y - self.circle[1]) <= self.circle[2] + more

    def heat(self, answer):
        """(scores (h, w) about the answer at the rotation tried that is nearest to its own, extent (left, right,
        bottom, top) in px of the positions of the query's middle)."""
        seen = self.seen[0]
        scores, (left, top) = self.scores_on(answer.around, seen)
        k = np.abs(difference_of_angles(seen.rotations, answer.rotation)).argmin()
        heat = scores[k].cpu().numpy()
        left, top = (edge + middle - self.cell / 2 for edge, middle in zip((left, top), seen.middle))
        height, width = (size * self.cell for size in heat.shape)
        return heat, (left, left + width, top + height, top)

    def entropy(self):
        """Of the probability over all positions and rotations that were looked at, in nats."""
        return self.log_sum - self.weighted

    def answers(self):
        """The best distinct answers, refined, best first, with probabilities and covariances; at most CANDIDATES."""
        return [answer for answer in self._finer(self._refined_answers()) if self._is_within(answer.x, answer.y)]

    def _refined_answers(self):
        if self.is_known:
            # Of what finer cells put in order it has to be known how probable it is.
            count = CANDIDATES if self.network.finer else REFINED
            refined = [self._refined(answer, self.seen) for answer in self.found[:count]] + self.found[count:]
            return _without_repetitions(sorted(refined, key=lambda answer: -answer.score))
        step = self.rotations[1] - self.rotations[0]
        refined = self._at_finer_rotations(self.found[:REFINED], step / 3, self.coarse_side)
        finer_side = min(FINER_SIDE, max(self.query.shape[:2]))
        refined = self._at_finer_rotations(refined[:FINAL], step / 6, finer_side, beside=2)
        return _without_repetitions([self._at_halves(answer) for answer in refined[:1]] + refined[1:])

    def _finer(self, answers):
        """Answers again by the network's finer cells, in the order of their scores by these; without any as they are.

        How probable the places are together is told by all positions, how that is shared among them by these scores.
        """
        finer, seen, refined = self.network.finer, {}, []
        if finer is None or not answers:
            return answers
        reach = max(self.query.shape[:2]) / 2 + 2 * (REACH + 1) * finer.cell
        for answer in answers:
            if answer.rotation not in seen:
                seen[answer.rotation] = self._seen_at(answer.rotation, finer)
            around = answer.around.finer(answer.x, answer.y, reach)
            again = self._refined(replace(answer, around=around), seen[answer.rotation])
            refined.append(replace(again, around=answer.around))
        refined = _without_repetitions(sorted(refined, key=lambda answer: -answer.score))
        together = min(1.0, sum(answer.probability for answer in answers))
        odds = np.exp([self.scale * (answer.score - refined[0].score) for answer in refined])
        for answer, share in zip(refined, odds / odds.sum()):
            answer.probability = float(together * share)
        if refined[0].rotation != self.last[0].rotations[0]:          # by the finer cells another is the best
            self.last = self._seen_at(refined[0].rotation, self.network)
        return refined

    def _at_finer_rotations(self, answers, step, most, beside=1):
        """Answers again at `beside` rotations to each side, `step` degrees apart, by the middle of the query; best
        first."""
        if not answers:
            return []
        count = 2 * beside + 1
        tried = [answer.rotation + step * np.arange(-beside, beside + 1) for answer in answers]
        seen = self.see(np.concatenate(tried), most)
        refined = []
        for number, (answer, rotations) in enumerate(zip(answers, tried)):
            of_answer = slice(count * number, count * (number + 1))
            one = Seen(seen.cells[of_answer], seen.mask[of_answer], rotations, seen.middle, seen.cell)
            refined.append(self._refined(answer, [one]))
        return sorted(refined, key=lambda answer: -answer.score)

    def _at_halves(self, answer):
        """An answer again by all of the query but its corners, at its rotation alone, shifted by half a cell, too."""
        self.last = self._seen_at(answer.rotation, self.network)
        return self._refined(answer, self.last)

    def _seen_at(self, rotation, network):
        """The two Seen of all of the query but its corners at one rotation, the second shifted by half a cell."""
        most, half = max(self.query.shape[:2]), network.cell // 2
        return [self.see([rotation], most, shift=shift, network=network) for shift in ((0, 0), (half, half))]

    def zoom_of(self, answer):
        """How much larger the query shows the ground than its stated resolution says: what the network likes best."""
        scores = [self._near(answer, self.see([answer.rotation], FINER_SIDE, zoom=1 / zoom))[0].max().item()
                  for zoom in ZOOMS]
        best = int(np.clip(np.argmax(scores), 1, len(ZOOMS) - 2))
        return float(ZOOMS[best] + vertex(*scores[best - 1:best + 2]) * (ZOOMS[1] - ZOOMS[0]))

    def _near(self, answer, seen):
        """(scores (K, h, w) within REACH cells of an answer, (x, y) in px of the query's middle at the first)."""
        map_, (rows, columns) = answer.around, seen.size
        first_x, first_y = (round((at - edge - middle) / seen.cell) - REACH for at, edge, middle in
                            zip((answer.x, answer.y), map_.origin, seen.middle))
        cells, mask = (_cut(x, first_y, first_x, rows + 2 * REACH, columns + 2 * REACH)[None]
                       for x in (map_.cells, map_.mask))
        scores = CellMaps(cells, mask).cosines(seen.cells, seen.mask, least=LEAST_ON_MAP)[:, 0]
        return scores, (map_.origin[0] + first_x * seen.cell + seen.middle[0],
                        map_.origin[1] + first_y * seen.cell + seen.middle[1])

    def _refined(self, answer, several):
        """The best answer within REACH cells by several Seen, each at the same rotations.

        A parabola through a cell and its neighbours errs towards the cell; what errs against that is the same of cells
        shifted by half of one, and the mean of both is right. Source: Shimizu and Okutomi, "Precise Sub-pixel
        Estimation on Area-based Matching", ICCV 2001.
        """
        estimates, logits = [], []
        for seen in several:
            scores, (left, top) = self._near(answer, seen)
            k, row, column = np.unravel_index(scores.argmax().item(), scores.shape)
            if min(row, column) == 0 or max(row, column) == 2 * REACH:           # another answer's peak, cut off
                moved = replace(answer, x=left + column * seen.cell, y=top + row * seen.cell)
                scores, (left, top) = self._near(moved, seen)
                k, row, column = np.unravel_index(scores.argmax().item(), scores.shape)
            row_part, column_part = peak_of(scores[k], row, column)
            rotation = seen.rotations[k]
            if 0 < k < len(scores) - 1:
                rotation += vertex(*scores[k - 1:k + 2, row, column].tolist()) * (seen.rotations[1] - seen.rotations[0])
            x, y = left + (column + column_part) * seen.cell, top + (row + row_part) * seen.cell
            estimates.append((scores[k, row, column].item(), float(x), float(y), float(rotation)))
            logits.append((self.scale * scores[k].double().cpu().numpy(), left, top))
        score, x, y, rotation = max(estimates)
        near = [(a, b) for _, a, b, _ in estimates if max(abs(a - x), abs(b - y)) < seen.cell]
        x, y = np.mean(near, axis=0)
        total = np.logaddexp.reduce([np.logaddexp.reduce(values, axis=None) for values, _, _ in logits])
        probability = min(1.0, float(np.exp(total - self.log_sum)))
        covariance = covariance_of(logits, total, several[0].cell)
        return Answer(answer.map, float(x), float(y), rotation, score, probability, covariance, answer.around)

    def evidence(self, answers):
        """What tells whether the first answer is right: (len(EVIDENCE)) floats. answers: as answers() gives them."""
        best = answers[0]
        lead = self.scale * (best.score - answers[1].score) if len(answers) > 1 else MOST_LEAD
        return np.array([min(lead, MOST_LEAD), self.entropy(), self._quarters_agreeing(best), best.score,
                         np.log(min(self.query.shape[:2])), np.log(len(self.rotations))])

    def _quarters_agreeing(self, answer):
        """How many quarters of the query, looked for alone about the answer at its rotation, are found in their place:
        0 to 4, the share of those that show enough."""
        seen = self.last[0]
        rows, columns = seen.size
        quarters = torch.zeros(4, 1, rows, columns, device=seen.mask.device)
        for number in range(4):
            top, left = number // 2 * (rows // 2), number % 2 * (columns // 2)
            quarters[number, :, top:top + -(-rows // 2), left:left + -(-columns // 2)] = 1
        masks = quarters * seen.mask
        enough = masks.sum((1, 2, 3)) >= LEAST_SHOWN * seen.mask.sum() / 4
        if not enough.any():
            return 0.0
        masks = masks[enough]
        beyond = max(rows, columns) // 2                              # a quarter's own cells may lie at the map's edge
        scores = answer.around.ready(beyond).cosines(seen.cells.expand(len(masks), -1, -1, -1), masks,
                                                     least=LEAST_SHOWN)[:, 0]
        best = scores.flatten(1).argmax(1).cpu().numpy()
        row, column = best // scores.shape[-1], best % scores.shape[-1]
        x, y = ((at - beyond) * self.cell + edge + middle for at, edge, middle in
                zip((column, row), answer.around.origin, seen.middle))
        off = np.maximum(np.abs(x - answer.x), np.abs(y - answer.y))
        return 4 * float(np.mean(off <= max(APART_PX, 1.5 * self.cell)))


def distinct_peaks(scores, rotations, apart, count):
    """The best `count` positions (score, k, row, column) of (K, h, w), no two the same.

    Two are the same when they are less than `apart` cells and less than APART_DEGREES from each other.
    """
    scores, peaks = scores.clone(), []
    _, height, width = scores.shape
    reach = int(np.ceil(apart)) - 1
    for _ in range(count):
        index = scores.argmax().item()
        k, row, column = np.unravel_index(index, scores.shape)
        score = scores[k, row, column].item()
        if score <= -1:
            break
        peaks.append((score, int(k), int(row), int(column)))
        near = np.abs(difference_of_angles(rotations, rotations[k])) < APART_DEGREES
        rows = slice(max(0, row - reach), min(height, row + reach + 1))
        columns = slice(max(0, column - reach), min(width, column + reach + 1))
        scores[torch.from_numpy(np.flatnonzero(near)).to(scores.device), rows, columns] = -1
    return peaks


def covariance_of(logits, total, cell):
    """((xx, xy), (xy, yy)) px², of the probability over positions `cell` px apart. logits: [(of (h, w), x, y of the
    first)]. total: their sum's logarithm."""
    weights, xs, ys = [], [], []
    for values, left, top in logits:
        down, across = np.mgrid[:values.shape[0], :values.shape[1]] * float(cell)
        weights.append(np.exp(values - total).ravel())
        xs.append((left + across).ravel())
        ys.append((top + down).ravel())
    (xx, xy), (_, yy) = np.cov(np.concatenate(xs), np.concatenate(ys), aweights=np.concatenate(weights), ddof=0)
    return (xx, xy), (xy, yy)


def peak_of(scores, row, column):
    """Where about the best cell of (h, w) the peak is, (rows, columns) in cells: a parabola's in each direction."""
    height, width = scores.shape
    column_part = row_part = 0.0
    if 0 < column < width - 1:
        column_part = vertex(*scores[row, column - 1:column + 2].tolist())
    if 0 < row < height - 1:
        row_part = vertex(*scores[row - 1:row + 2, column].tolist())
    return row_part, column_part


def vertex(before, at, after):
    """Where the parabola through three neighbours has its top, in [-0.5, 0.5] from the middle one."""
    bend = before - 2 * at + after
    return 0.0 if bend >= 0 else float(np.clip((before - after) / (2 * bend), -0.5, 0.5))


def _cut(x, row, column, height, width):
    """x[..., row:row + height, column:column + width], zeros beyond the edges."""
    below, right = x.shape[-2:]
    inside = x[..., max(0, row):max(0, row + height), max(0, column):max(0, column + width)]
    return F.pad(inside, (max(0, -column), max(0, min(width, column + width - right)), max(0, -row),
                          max(0, min(height, row + height - below))))


def _without_repetitions(answers):
    kept = []
    for answer in answers:
        if not any(is_same(answer, other) for other in kept):
            kept.append(answer)
    return kept


def is_same(a, b):
    """Whether two answers are the same place and rotation, but for APART_PX and APART_DEGREES."""
    near = max(abs(a.x - b.x), abs(a.y - b.y)) < APART_PX
    return a.map == b.map and near and abs(difference_of_angles(a.rotation, b.rotation)) < APART_DEGREES
