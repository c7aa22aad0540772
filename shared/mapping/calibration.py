"""How far an answer can be trusted: learned on training tiles not seen, kept as calibration.json of a run."""
import json
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression

from shared.mapping.finer_cells import FINER
from shared.mapping.localization import EVIDENCE
from shared.plumbing.errors import InputError
from shared.plumbing.files import write_text
from shared.plumbing.packed import has_file, text_of

CALIBRATION = "calibration.json"
OUTCOMES = ("located", "ambiguous", "not on this map")  # right, another place of the map, off the map
RIGHT_PX, RIGHT_DEGREES = 20, 10                        # an answer this near is right
FALSE_ACCEPTANCE = 0.03                                 # of queries off the map may be called located; 0.05 is the aim
COVERAGE, BINS = 0.9, 3                                 # bins of the located answers; one more holds the others
SCALES = np.geomspace(5, 1000, 24)                      # factors on the scores that may make logits of them


class Calibration:
    """The numbers of a calibration.json.

    sides, scales: the logits' scale at each side of a query in px; between them it is interpolated. mean, std: of the
    evidence (localization.EVIDENCE). weights, bias: of a logistic regression over OUTCOMES. threshold: of the
    probability of being right, from which an answer is located. edges, radii: COVERAGE of the answers that are right or
    wrong lie within radii[i] px where that probability is in bin i, between edges[i] and edges[i + 1].
    texture: least standard deviation of a query's grey levels. metres: on the ground, of a pixel as the network
    learned; all px here are such. finer: the identity of the finer level that it was made with (finer_cells.py), None:
    without one, as all were once.
    """

    NAMES = ("sides", "scales", "mean", "std", "weights", "bias", "threshold", "edges", "radii", "texture", "metres")

    def __init__(self, finer=None, **numbers):
        self.finer = finer
        for name in self.NAMES:
            setattr(self, name, np.asarray(numbers[name], float))
        self._check()

    def _check(self):
        sides, evidence, bins = self.sides.size, len(EVIDENCE), self.radii.size
        shapes = {"sides": (max(1, sides),), "scales": (sides,), "mean": (evidence,), "std": (evidence,),
                  "weights": (len(OUTCOMES), evidence), "bias": (len(OUTCOMES),), "threshold": (),
                  "edges": (bins + 1,), "radii": (max(1, bins),), "texture": (), "metres": ()}
        for name, shape in shapes.items():
            values = getattr(self, name)
            if values.shape != shape:
                raise ValueError(f"{name} has the shape {values.shape} instead of {shape}")
            if not np.isfinite(values).all():
                raise ValueError(f"{name} holds what is no number")
        for name in ("sides", "scales", "std", "metres"):
            if not (getattr(self, name) > 0).all():
                raise ValueError(f"{name} is not above zero")
        for name in ("sides", "edges"):
            if (np.diff(getattr(self, name)) < 0).any():
                raise ValueError(f"{name} does not grow")
        if (self.radii < 0).any():
            raise ValueError("radii holds one below zero")

    def scale(self, side):
        """The logits' factor on the scores of queries of `side` px."""
        return scale_at(side, self.sides, self.scales)

    def confidence(self, evidence):
        """(len(OUTCOMES)) probabilities. evidence: as Search.evidence gives it, or (N, len(EVIDENCE))."""
        logits = (np.asarray(evidence) - self.mean) / self.std @ self.weights.T + self.bias
        odds = np.exp(logits - logits.max(-1, keepdims=True))
        return odds / odds.sum(-1, keepdims=True)

    def status(self, confidence, probability):
        """One of OUTCOMES. probability: of the answer among all positions; below a half another place is as likely."""
        if confidence[0] >= self.threshold:
            return OUTCOMES[0 if probability >= 0.5 else 1]
        return OUTCOMES[1 + int(np.argmax(confidence[1:]))]

    def radius(self, confidence):
        """Px about the answer within which the truth lies in COVERAGE of such cases, on this map."""
        return float(self.radii[np.searchsorted(self.edges[1:-1], confidence[0], "right")])

    def save(self, file):
        numbers = {name: getattr(self, name).tolist() for name in self.NAMES}
        write_text(file, json.dumps({**numbers, "finer": self.finer}, indent=1))


def scale_at(side, sides, scales):
    """The logits' factor on the scores at any side in px, from those at some (sides and scales, equally many)."""
    return float(np.exp(np.interp(np.log(side), np.log(sides), np.log(scales))))


def load_calibration(folder, network=None):
    """The Calibration of a run, a folder or a packed file. InputError where there is none, or it was made with another
    finer level than that of `network`, a CellNetwork, which it is to be used with."""
    file = Path(folder) / CALIBRATION
    if not has_file(folder, CALIBRATION):
        run = "RUN" if Path(folder).is_file() else folder
        packed = " of the folder it was packed from; then pack that again" if run == "RUN" else ""
        raise InputError(f"{folder} has no {CALIBRATION}, which tells how sure its answers are: python "
                         f"code_Match/calibrate.py --run {run} --halves A B makes it (or, of a run with --validate, "
                         f"without --halves){packed}")
    try:
        calibration = Calibration(**json.loads(text_of(folder, CALIBRATION)))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file} cannot be used ({error!r}): python code_Match/calibrate.py makes it anew")
    if network and calibration.finer != network.finer_identity:
        made_with = f"the {FINER} {calibration.finer}" if calibration.finer else f"no {FINER}"
        has = f"the {FINER} {network.finer_identity}" if network.finer else "none"
        raise InputError(f"{file} was made with {made_with}, and the run has {has}: python code_Match/calibrate.py "
                         "makes it anew")
    return calibration


def fit_calibration(sides, scales, evidence, outcomes, errors, tiles, textures, metres):
    """The Calibration of N queries with known answers.

    evidence: (N, len(EVIDENCE)). outcomes: (N) int, of OUTCOMES. errors: (N) px, of those on the map. tiles: (N) of the
    queries. textures: (N).
    """
    mean, std = evidence.mean(0), np.maximum(evidence.std(0), 1e-6)
    regression = LogisticRegression(max_iter=1000).fit((evidence - mean) / std, outcomes)
    weights, bias = np.zeros((len(OUTCOMES), evidence.shape[1])), np.full(len(OUTCOMES), -30.0)
    if len(regression.classes_) == 2:                                 # scikit-learn keeps one row for two classes
        weights[regression.classes_[1]], bias[regression.classes_[1]] = regression.coef_[0], regression.intercept_[0]
        bias[regression.classes_[0]] = 0.0
    else:
        weights[regression.classes_], bias[regression.classes_] = regression.coef_, regression.intercept_
    numbers = {"sides": sides, "scales": scales, "mean": mean, "std": std, "weights": weights, "bias": bias,
               "threshold": 1.0, "edges": [0, 1], "radii": [0], "texture": _least_texture(textures, outcomes),
               "metres": metres}
    right = Calibration(**numbers).confidence(evidence)[:, 0]
    off = np.sort(right[outcomes == OUTCOMES.index("not on this map")])
    numbers["threshold"] = conformal_quantile(off, 1 - FALSE_ACCEPTANCE)
    on = outcomes != OUTCOMES.index("not on this map")
    located = right[on][right[on] >= numbers["threshold"]]
    inner = np.quantile(located, np.linspace(0, 1, BINS + 1)[1:-1]) if len(located) else []
    numbers["edges"] = [0.0, numbers["threshold"], *inner, 1.0]
    bins = np.searchsorted(numbers["edges"][1:-1], right[on], "right")
    numbers["radii"] = [radius_by_tile(errors[on][bins == i], tiles[on][bins == i])
                        for i in range(len(numbers["edges"]) - 1)]
    return Calibration(**numbers)


def conformal_quantile(values, level):
    """The value below which a new one lies with probability `level` at least, if it is exchangeable with these.

    Source: Vovk, Gammerman and Shafer, "Algorithmic Learning in a Random World", 2005; the largest where there are too
    few to tell.
    """
    values = np.sort(values)
    if not len(values):
        return 0.0
    return float(values[min(len(values), int(np.ceil((len(values) + 1) * level))) - 1])


def radius_by_tile(errors, tiles, resamples=500):
    """The conformal radius for a query of a tile that was never seen: median over draws of one query of each tile.

    The queries of a tile are displaced alike, so that tiles are what can be exchanged, not queries. Source: Dunn,
    Wasserman and Ramdas, "Distribution-Free Prediction Sets for Two-Layer Hierarchical Models", 2022 (subsampling).
    """
    if not len(errors):
        return 0.0
    of_tile = [errors[tiles == tile] for tile in np.unique(tiles)]
    random = np.random.default_rng(0)
    drawn = [conformal_quantile([random.choice(values) for values in of_tile], COVERAGE) for _ in range(resamples)]
    return float(np.median(drawn))


def _least_texture(textures, outcomes, run=10):
    """The level up to which, of any `run` queries on the map that follow each other, fewer than a fifth are found."""
    on = outcomes != OUTCOMES.index("not on this map")
    order = np.argsort(textures[on], kind="stable")
    if len(order) < run:
        return 0.0
    found = np.convolve(outcomes[on][order] == 0, np.ones(run), "valid") / run
    hopeless = int(np.argmax(found >= 0.2)) if (found >= 0.2).any() else len(found)
    return float(textures[on][order][hopeless - 1]) if hopeless else 0.0


def texture_of(image):
    """Standard deviation of a query's grey levels, uint8."""
    return float(image.mean(-1).std())
