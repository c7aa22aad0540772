"""The figures of test.py: how far off answers are, and how honest what is said of them."""
from dataclasses import replace

import numpy as np

from calibrate import error_px
from shared.mapping.calibration import RIGHT_PX
from shared.mapping.turned import difference_of_angles

WITHIN = (1, 3, 5, 10, 20)
AREAS = (3, 5, 10)                                      # px up to which the area under the curve of WITHIN is taken
COVERAGES = (25, 50, 75, 100)                           # percent of the queries, the surest first


def figures(queries, answers, displaced, metres):
    """A line of the table: shares in percent within WITHIN px of the nominal truth and of the corrected one; median,
    90th percentile (CE90) and RMSE of the right ones in px; failures, and the areas under the curve of the shares up to
    AREAS px, in percent; median error of the rotation in degrees. None for what is on another map."""
    errors = np.array([error_px(answer, query) for answer, query in zip(answers, queries)])
    corrected = []
    for answer, query in zip(answers, queries):
        (dx, dy), _ = displaced[query.tile]
        corrected.append(error_px(replace(answer, x=answer.x - dx, y=answer.y - dy), query))
    turned = [abs(difference_of_angles(a.rotation, q.rotation)) for a, q in zip(answers, queries)]
    right = errors[errors <= RIGHT_PX]
    line = {"queries": len(queries)}
    line.update({f"within{px}": share(errors, px) for px in WITHIN})
    line.update(median_px=finite(np.median(errors)), ce90_px=finite(np.quantile(errors, 0.9, method="higher")),
                right_rmse_px=finite(np.sqrt(np.mean(right ** 2))) if len(right) else None,
                failures=round(100 - share(errors, RIGHT_PX), 2), **{f"auc{px}": area(errors, px) for px in AREAS},
                median_m=finite(np.median(errors) * metres))
    line.update({f"corrected{px}": share(corrected, px) for px in (1, 3, 5, 10)})
    line.update(corrected_median_px=finite(np.median(corrected)), rotation_error=round(float(np.median(turned)), 2))
    return line


def area(errors, px):
    """The area under the curve of the shares within up to `px` px, in percent of what it can be."""
    return round(100 * float(np.mean(np.clip(1 - np.asarray(errors) / px, 0, None))), 2)


def share(errors, px):
    return round(100 * float(np.mean(np.asarray(errors) <= px)), 2)


def finite(value):
    return round(float(value), 2) if np.isfinite(value) else None


def percent(values):
    return round(100 * float(np.mean(values)), 2) if len(values) else None


def honesty(is_located, is_right, is_inside, accepted, off_map):
    """A line of the table: how often queries that are there are said to be, wrongly, too, and those that are not.

    All of the queries that are there, (N) each: whether they are said to be located, their answer is right, and the
    truth lies within the radius of 90%; how likely they are held to be there. off_map: whether those that are not there
    are said to be located. Risk: the share of wrong answers among the surest.
    """
    is_located, is_right, is_inside = (np.array(values) for values in (is_located, is_right, is_inside))
    surest = np.argsort(-np.array(accepted))
    risk = 100 * (1 - is_right[surest].cumsum() / np.arange(1, len(surest) + 1))
    line = {"queries": len(is_located), "located": percent(is_located),
            "located_wrongly": percent(~is_right[is_located]),
            "off_map_located": percent(off_map), "inside_90_radius": percent(is_inside),
            "located_inside_90_radius": percent(is_inside[is_located])}
    for coverage in COVERAGES:
        line[f"risk_at_{coverage}"] = round(float(risk[len(risk) * coverage // 100 - 1]), 2)
    return line
