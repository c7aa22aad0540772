"""Where a query lies on a map and how it is turned: candidates by the dense matcher, refined, with how sure that is.

Positions are (x, y) in px of the map, counted from its upper left corner, so that the middle of the first pixel is
(0.5, 0.5). A rotation is in degrees clockwise: the direction on the map of what is up in the query, 0 north.
"""
from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as F

from shared.matcher import STRIDE, correlate

COARSE_SIDE = 256                                       # px of a query that are looked at while rotations are unknown
ROTATION_STEP = 6.0                                     # degrees between the rotations that are tried
AT_ONCE = 12                                            # views of a query that are correlated at once
APART_PX, APART_DEGREES = 10, 10                        # nearer than both, two answers are the same
CANDIDATES = 8                                          # answers that are kept
REFINED = 4                                             # of them looked at once more, at steps of a degree
REACH = 5                                               # cells about a candidate that are looked at once more
ZOOMS = np.linspace(0.9, 1.1, 9)                        # of a query, tried on its answer
LEAST_SHOWN = 0.5                                       # of a query must lie on the map
MOST_LEAD = 30.0                                        # logits; more says nothing more
# What tells whether an answer is right: lead of its logit over the best other answer, entropy of the probability,
# quarters of the query that agree, its score, and how much was looked at with what.
EVIDENCE = ("lead", "entropy", "quarters", "score", "log_side", "log_rotations")


@dataclass
class Map:
    """Features of a map, or of a part of it. features: (C, h, w) float32, at STRIDE px a cell. mask: (1, h, w), 1 where
    there is map. origin: (x, y) in px of the first cell's corner. number: of the map, where there are several."""
    features: torch.Tensor
    mask: torch.Tensor
    origin: tuple = (0, 0)
    number: int = 0

    def part(self, x, y, half):
        """The cells within `half` px of (x, y) in both directions."""
        first_x, first_y = (max(0, int((middle - half - edge) // STRIDE)) for middle, edge in zip((x, y), self.origin))
        last_x, last_y = (int(-(-(middle + half - edge) // STRIDE)) for middle, edge in zip((x, y), self.origin))
        rows, columns = slice(first_y, max(last_y, 0)), slice(first_x, max(last_x, 0))
        origin = self.origin[0] + first_x * STRIDE, self.origin[1] + first_y * STRIDE
        return Map(self.features[:, rows, columns], self.mask[:, rows, columns], origin, self.number)


@dataclass
class Answer:
    """One place of a query. map: the number of its map. x, y: the query's middle, in px of that map. score: the mean
    cosine in [-1, 1]. probability: among all positions and rotations. covariance: 2 x 2 of (x, y), px². part: which of
    the Maps that were looked at."""
    map: int
    part: int
    x: float
    y: float
    rotation: float
    score: float
    probability: float = 0.0
    covariance: tuple = ((0.0, 0.0), (0.0, 0.0))


def rotations_to_try(within):
    """(K) degrees, at most ROTATION_STEP apart. within: 0 (known), a half width, or 180 (unknown)."""
    if within == 0:
        return np.zeros(1)
    if within >= 180:
        return np.arange(0, 360, ROTATION_STEP)
    count = int(np.ceil(within / ROTATION_STEP))
    return np.linspace(-within, within, 2 * count + 1)


def turn(image, rotations, side=None, zoom=1.0, shown=None):
    """A query as it would lie on a map that has north up: at each rotation, in the middle of a black square.

    image: (h, w, 3) uint8. rotations: (K) degrees clockwise. side: of the square in px (default: what holds all views);
    made a multiple of STRIDE. zoom: map px to a px of the image. shown: (h, w) bool, where the image shows something
    (default: all of it). Returns views (K, S, S, 3) uint8 and masks (K, S, S) bool, where the query shows something.
    """
    height, width = image.shape[:2]
    angles = np.deg2rad(rotations)
    if side is None:
        most = zoom * max((np.abs(np.cos(angles)) * size + np.abs(np.sin(angles)) * other).max()
                          for size, other in ((width, height), (height, width)))
        side = int(np.ceil(most - 1e-6))
    side += -side % STRIDE
    views = np.zeros((len(angles), side, side, 3), np.uint8)
    masks = np.zeros((len(angles), side, side), bool)
    whole = np.full((height, width), 255, np.uint8) if shown is None else shown.astype(np.uint8) * 255
    for view, mask, angle in zip(views, masks, angles):
        cos, sin = np.cos(angle) / zoom, np.sin(angle) / zoom
        # A px of the view, from its middle, to one of the image: pixel centres lie at halves.
        turned = np.array([[cos, sin], [-sin, cos]])
        offset = np.array([width, height]) / 2 - 0.5 - turned @ np.full(2, side / 2 - 0.5)
        matrix = np.column_stack([turned, offset])
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        view[:] = cv2.warpAffine(image, matrix, (side, side), flags=flags)
        mask[:] = cv2.warpAffine(whole, matrix, (side, side), flags=flags) > 254
    views[~masks] = 0
    return views, masks


def cell_mask(masks, cell=STRIDE):
    """(K, S, S) bool -> (K, 1, S / cell, S / cell) float32, rounded up: 1 where all pixels of a cell are shown."""
    return -F.max_pool2d(-torch.from_numpy(masks).float()[:, None], cell, ceil_mode=True)


def cut_turned(image, x, y, side, rotation, zoom=1.0):
    """The square of `side` px about (x, y), turned by `rotation` degrees clockwise, at `zoom` px of the image to a px.

    image: (H, W, 3) uint8, or (H, W). Returns (side, side, 3), or (side, side); beyond the image its edge goes on.
    """
    angle = np.deg2rad(rotation)
    cos, sin = np.cos(angle) * zoom, np.sin(angle) * zoom
    turned = np.array([[cos, -sin], [sin, cos]])
    offset = np.array([x, y]) - 0.5 - turned @ np.full(2, side / 2 - 0.5)
    matrix = np.column_stack([turned, offset])
    return cv2.warpAffine(image, matrix, (side, side), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
                          borderMode=cv2.BORDER_REPLICATE)


@torch.no_grad()
def map_features(model, image, device, autocast, shown=None):
    """The Map of an optical image (H, W, 3) uint8. shown: (H, W) bool, where it has data (default: all of it)."""
    opt = torch.from_numpy(image).to(device).permute(2, 0, 1)[None].float() / 255
    with autocast():
        features, _ = model(opt=opt)
    shown = np.ones(image.shape[:2], bool) if shown is None else shown
    return Map(features[0], cell_mask(shown[None])[0].to(device))


@torch.no_grad()
def query_features(model, views, masks, device, autocast):
    """((K, C, h, w) features, (K, 1, h, w) mask) of what turn() gives."""
    features = []
    for portion in np.array_split(views, -(-len(views) // AT_ONCE)):
        sar = torch.from_numpy(portion).to(device).permute(0, 3, 1, 2).float() / 255
        with autocast():
            features.append(model(sar=sar)[1])
    return torch.cat(features), cell_mask(masks).to(device)


class Search:
    """A query against maps: every position and rotation, then the best of them again more finely.

    query: (h, w, 3) uint8 at the maps' resolution. rotations: (K) degrees, as rotations_to_try gives them. scale: the
    logits' factor on scores (see Calibration), which makes probabilities of them. shown: (h, w) bool, where the query
    shows something (default: all of it).
    """

    def __init__(self, model, query, rotations, scale, device, autocast, shown=None):
        self.model, self.query, self.rotations = model, query, np.asarray(rotations, float)
        self.shown = np.ones(query.shape[:2], bool) if shown is None else shown
        self.scale, self.device, self.autocast = scale, device, autocast
        # At many rotations the middle of the query is enough to begin with, at half the resolution.
        self.is_coarse = len(self.rotations) > 1
        side = COARSE_SIDE if self.is_coarse else max(query.shape)
        views = turn(_middle(query, side), self.rotations, shown=_middle(self.shown, side))
        self.features, self.mask = query_features(model, *views, device, autocast)
        if self.is_coarse:
            self.features, self.mask = _halved(self.features, self.mask)
        self.cell = STRIDE * 2 if self.is_coarse else STRIDE
        self.maps, self.found = [], []
        self.log_sum, self.weighted = -np.inf, 0.0                    # of the logits over all that was looked at

    def look_at(self, map_):
        """Score every position on one more Map, and keep the best."""
        part = len(self.maps)
        self.maps.append(map_)
        scores, origin = self.scores_on(map_)
        if scores is None:
            return
        logits = self.scale * scores.double()[scores > -1]
        if len(logits):
            total = logits.logsumexp(0).item()
            mean = ((logits - total).exp() * logits).sum().item()
            together = np.logaddexp(self.log_sum, total)
            self.weighted = self.weighted * np.exp(self.log_sum - together) + mean * np.exp(total - together)
            self.log_sum = together
        half = self.features.shape[-1] * self.cell / 2
        for score, k, row, column in distinct_peaks(scores, self.rotations, APART_PX / self.cell, CANDIDATES):
            x, y = origin[0] + column * self.cell + half, origin[1] + row * self.cell + half
            self.found.append(Answer(map_.number, part, x, y, self.rotations[k], score))

    def scores_on(self, map_):
        """((K, h, w) mean cosines at every position, (x, y) in px of the first): None where the query does not fit."""
        features, mask = map_.features, map_.mask
        if self.is_coarse:
            features, mask = _halved(features[None], mask[None])
            features, mask = features[0], mask[0]
        # A view's corners may lie beyond the map, but not the query.
        beyond = max(0, -(-(self.features.shape[-1] * self.cell - min(self.query.shape[:2])) // (2 * self.cell)))
        features, mask = (F.pad(x, (beyond,) * 4) for x in (features, mask))
        if min(features.shape[-2:]) < self.features.shape[-1]:
            return None, None
        whole = bool((map_.mask == 1).all()) and beyond == 0
        scores = [correlate(query, query_mask, features[None], None if whole else mask[None], least=0.9)[:, 0]
                  for query, query_mask in zip(self.features.split(AT_ONCE), self.mask.split(AT_ONCE))]
        return torch.cat(scores), tuple(edge - beyond * self.cell for edge in map_.origin)

    def heat(self, answer):
        """(scores (h, w) on the answer's Map at the rotation tried that is nearest to its own, extent (left, right,
        bottom, top) in px of the positions of the query's middle)."""
        map_ = self.maps[answer.part]
        scores, (left, top) = self.scores_on(map_)
        k = np.abs(difference_of_angles(self.rotations, answer.rotation)).argmin()
        heat = scores[k].cpu().numpy()
        half = self.features.shape[-1] * self.cell / 2
        height, width = (size * self.cell for size in heat.shape)
        return heat, (left + half, left + half + width, top + half + height, top + half)

    def entropy(self):
        """Of the probability over all positions and rotations that were looked at, in nats."""
        return self.log_sum - self.weighted

    def answers(self):
        """The best distinct answers, refined, best first, with probabilities and covariances; at most CANDIDATES."""
        best = _without_repetitions(sorted(self.found, key=lambda answer: -answer.score))[:CANDIDATES]
        refined = [self.refine(answer) for answer in best[:REFINED]]
        refined += best[REFINED:] if not self.is_coarse else []
        return _without_repetitions(sorted(refined, key=lambda answer: -answer.score))

    def evidence(self, answers):
        """What tells whether the first answer is right: (len(EVIDENCE)) floats. answers: as answers() gives them."""
        best = answers[0]
        lead = self.scale * (best.score - answers[1].score) if len(answers) > 1 else MOST_LEAD
        agreeing = 4 * np.mean([*self._quarters_agree(best)] or [0])
        return np.array([min(lead, MOST_LEAD), self.entropy(), agreeing, best.score, np.log(min(self.query.shape[:2])),
                         np.log(len(self.rotations))])

    def _quarters_agree(self, answer):
        """Whether each quarter of the query, looked for alone at the answer's rotation, is found in its place; of those
        that show enough."""
        map_ = self.maps[answer.part]
        features, mask = (x[0] for x in _halved(map_.features[None], map_.mask[None]))
        height, width = self.query.shape[:2]
        angle = np.deg2rad(answer.rotation)
        for row in (0, 1):
            for column in (0, 1):
                quarter = np.s_[row * (height // 2):(row + 1) * (height // 2),
                                column * (width // 2):(column + 1) * (width // 2)]
                if self.shown[quarter].mean() < LEAST_SHOWN:
                    continue
                views, masks = turn(self.query[quarter], [answer.rotation], shown=self.shown[quarter])
                alone = _halved(*query_features(self.model, views, masks, self.device, self.autocast))
                if min(features.shape[-2:]) < alone[0].shape[-1]:
                    yield False
                    continue
                scores = correlate(*alone, features[None], mask[None], least=LEAST_SHOWN)[0, 0]
                found = np.unravel_index(scores.argmax().item(), scores.shape)
                y, x = (2 * STRIDE * (cell + alone[0].shape[-1] / 2) + edge
                        for cell, edge in zip(found, map_.origin[::-1]))
                across, down = (column - 0.5) * (width / 2), (row - 0.5) * (height / 2)
                wanted_x = answer.x + across * np.cos(angle) - down * np.sin(angle)
                wanted_y = answer.y + across * np.sin(angle) + down * np.cos(angle)
                yield max(abs(x - wanted_x), abs(y - wanted_y)) <= APART_PX

    def refine(self, answer):
        """The answer again with the whole query at full resolution, about where it was found."""
        turns = [answer.rotation]
        if self.is_coarse:
            for step in (2.0, 0.75):
                turns = np.array(turns).mean() + step * np.arange(-2, 3)
                answer, turns = self._refine(answer, turns)
        return self._refine(answer, turns)[0]

    def zoom_of(self, answer):
        """How much larger the query shows the ground than its stated resolution says: what the matcher likes best."""
        scores = []
        for zoom in ZOOMS:
            views = turn(self.query, [answer.rotation], zoom=1 / zoom, shown=self.shown)
            near, _, _ = self._scores_near(answer, *views)
            scores.append(near.max().item())
        best = int(np.clip(np.argmax(scores), 1, len(ZOOMS) - 2))
        return float(ZOOMS[best] + _vertex(*scores[best - 1:best + 2]) * (ZOOMS[1] - ZOOMS[0]))

    def _scores_near(self, answer, views, masks):
        """(scores (K, h, w) of views within REACH cells of an answer, the cell (row, column) of the first, cells of a
        view's side)."""
        map_ = self.maps[answer.part]
        features, mask = query_features(self.model, views, masks, self.device, self.autocast)
        size = features.shape[-1]
        first = [round((middle - edge) / STRIDE - size / 2) - REACH for middle, edge in
                 zip((answer.y, answer.x), map_.origin[::-1])]
        window, window_mask = (_cut(x, *first, size + 2 * REACH) for x in (map_.features, map_.mask))
        return correlate(features, mask, window[None], window_mask[None], least=LEAST_SHOWN)[:, 0], first, size

    def _refine(self, answer, rotations):
        """(the best answer at these rotations within REACH cells, [its rotation])."""
        map_ = self.maps[answer.part]
        scores, first, size = self._scores_near(answer, *turn(self.query, rotations, shown=self.shown))
        k, row, column = np.unravel_index(scores.argmax().item(), scores.shape)
        row_part, column_part, covariance = peak_of(scores[k], row, column, self.scale)
        rotation = float(rotations[k])
        if 0 < k < len(rotations) - 1:
            rotation += _vertex(*scores[k - 1:k + 2, row, column].tolist()) * (rotations[1] - rotations[0])
        x = map_.origin[0] + (first[1] + column + column_part + size / 2) * STRIDE
        y = map_.origin[1] + (first[0] + row + row_part + size / 2) * STRIDE
        score = scores[k, row, column].item()
        probability = min(1.0, float(np.exp(self.scale * scores[k].double().cpu().numpy() - self.log_sum).sum()))
        refined = Answer(answer.map, answer.part, float(x), float(y), rotation, score, probability, covariance)
        return refined, [rotation]


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


def difference_of_angles(a, b):
    """a - b in degrees, in [-180, 180)."""
    return (np.asarray(a) - b + 180) % 360 - 180


def peak_of(scores, row, column, scale):
    """Where about the best cell the peak is, in cells, and its covariance (x, y) in px².

    scores: (h, w). The peak is the vertex of a parabola in each direction; the covariance is that of the probability
    exp(scale * score) over the cells.
    """
    height, width = scores.shape
    column_part = row_part = 0.0
    if 0 < column < width - 1:
        column_part = _vertex(*scores[row, column - 1:column + 2].tolist())
    if 0 < row < height - 1:
        row_part = _vertex(*scores[row - 1:row + 2, column].tolist())
    p = torch.softmax(scale * scores.double().flatten(), 0).view(height, width).cpu().numpy()
    down, across = np.mgrid[:height, :width] * float(STRIDE)
    mean_y, mean_x = (p * down).sum(), (p * across).sum()
    xx, yy = (p * (across - mean_x) ** 2).sum(), (p * (down - mean_y) ** 2).sum()
    xy = (p * (across - mean_x) * (down - mean_y)).sum()
    return row_part, column_part, ((xx, xy), (xy, yy))


def _vertex(before, at, after):
    """Where the parabola through three neighbours has its top, in [-0.5, 0.5] from the middle one."""
    bend = before - 2 * at + after
    return 0.0 if bend >= 0 else float(np.clip((before - after) / (2 * bend), -0.5, 0.5))


def _middle(image, side):
    height, width = image.shape[:2]
    top, left = max(0, (height - side) // 2), max(0, (width - side) // 2)
    return image[top:height - top, left:width - left]


def _halved(features, mask):
    """Features and mask at half the resolution: the mean of what is shown in each 2 x 2, cells half shown count."""
    features, mask = (F.pad(x, (0, x.shape[-1] % 2, 0, x.shape[-2] % 2)) for x in (features, mask))
    shown = F.avg_pool2d(mask, 2)
    features = F.avg_pool2d(features * mask, 2) / shown.clamp(min=0.25)
    return features, (shown >= 0.5).float()


def _cut(x, row, column, side):
    """x[..., row:row + side, column:column + side], zeros beyond the edges."""
    height, width = x.shape[-2:]
    inside = x[..., max(0, row):max(0, row + side), max(0, column):max(0, column + side)]
    return F.pad(inside, (max(0, -column), max(0, column + side - width), max(0, -row), max(0, row + side - height)))


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
