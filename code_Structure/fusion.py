"""A network's scores and, times a weight, those of structure, in which nothing is learned.

    python code_Structure/fusion.py --run results/NAME --choose            the weights, on the tiles that it held out
    python code_Structure/fusion.py --run results/NAME --weight 0.5        the test split

An image is one vector: what the network makes of it, and its oriented gradients in cells; so search stays what it is.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository's root, where shared/ is

import torch

from shared import options
from shared.dataset import hold_out
from shared.evaluate import embed_pairs, evaluate, retrievals, search
from shared.finished_run import FinishedRun
from shared.mapping.cells import StructureCells
from shared.plumbing.errors import InputError, run_script
from shared.plumbing.run_files import format_metrics

WEIGHTS = (0.0, 0.125, 0.25, 0.5, 1.0, 2.0)


def arguments():
    parser = options.testing(__doc__)
    group = parser.add_argument_group("fusion")
    group.add_argument("--weight", type=options.not_negative, default=0.5,
                       help="of structure's scores; the network's is 1")
    group.add_argument("--structure_size", type=options.positive, default=200, metavar="PX",
                       help="side at which structure sees an image")
    group.add_argument("--choose", action="store_true",
                       help=f"instead of the test split: the weights {', '.join(map(str, WEIGHTS))} on the training "
                            "tiles that --run held out (--validate)")
    return parser.parse_args()


def test(args):
    run = FinishedRun(args)
    if run.tested:
        return

    pairs, larger = (load(run, args.choose, size) for size in (run.img_size, args.structure_size))
    query, gallery = embed_pairs(run.model, pairs, run.device, run.autocast, args.tta)
    structure_query, structure_gallery = embed_pairs(StructureCells(), larger, run.device, run.autocast)
    for weight in WEIGHTS if args.choose else (args.weight,):
        joined = {"FC": join(query["FC"], structure_query["FC"], weight)}
        joined_gallery = {"FC": join(gallery["FC"], structure_gallery["FC"], weight)}
        results = search(joined, joined_gallery, pairs, run.device)
        metrics = evaluate(results, pairs)
        if args.choose:
            print(f"weight {weight}: {format_metrics(metrics)}")
    if not args.choose:
        run.write(pairs, metrics, retrievals(results, pairs))
        if args.save_embeddings:
            run.save_embeddings(joined, joined_gallery, pairs)
    run.close()


def load(run, held_out, img_size):
    """The Pairs that are evaluated on, at img_size."""
    if not held_out:
        return run.load_pairs("test", img_size)
    if not run.settings["validate"]:
        raise InputError(f"--choose: {run.folder} held nothing out; give a run with --validate")
    pairs = run.load_pairs("train", img_size).of_regions(run.settings["region"], "--region")
    return hold_out(pairs, run.settings["validate"], run.settings.get("other_half", False))[1]


def join(embeddings, others, weight):
    """Unit vectors (N, D) and (N, E) as unit vectors (N, D + E), whose inner products are in proportion to the first
    ones' plus `weight` times the others'."""
    return torch.cat([embeddings, weight ** 0.5 * others], 1) / (1 + weight) ** 0.5


if __name__ == "__main__":
    run_script(test, arguments)
