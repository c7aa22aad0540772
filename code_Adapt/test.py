"""Evaluate a saved run on the test split of its target, adapted without training if asked.

    python code_Adapt/test.py --run results/NAME --batchnorm target --whiten --querybank
    python code_Adapt/test.py --run results/NAME --whiten --agreement                to choose by, without pairs

Each takes what it needs from the target's training images, without their pairs: --batchnorm target the statistics of
every layer, --whiten those of each modality's embeddings, --querybank the SAR images, as queries that tell which
optical ones are near to all. --run: any finished run that was trained with a target.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository's root, where shared/ is

from pseudo_pairs import mutual_neighbours
from shared import options
from shared.evaluate import evaluate, retrievals, search
from shared.finished_run import FinishedRun
from shared.plumbing.errors import run_script
from without_training import add_ways, embed_adapted, require_target, ways_taken


def arguments():
    parser = options.testing(__doc__)
    add_ways(parser)
    parser.add_argument("--agreement", action="store_true",
                        help="instead of the test split: how many of the target's SAR training images have a nearest "
                             "optical one that has them for its nearest, whichever belong together")
    return parser.parse_args()


def test(args):
    run = FinishedRun(args)
    if run.tested:
        return

    if args.agreement:
        require_target(run, args)
    pairs = run.load_pairs("train" if args.agreement else "test")
    query, gallery = embed_adapted(run, args, pairs)
    if args.agreement:
        mutual = mutual_neighbours(gallery["FC"], query["FC"])
        print(f"agreement: {100 * len(mutual) / len(pairs.sar):.2f}%")
    else:
        results = search(query, gallery, pairs, run.device)
        run.write(pairs, evaluate(results, pairs), retrievals(results, pairs))
        if args.save_embeddings:
            run.save_embeddings(query, gallery, pairs, **ways_taken(args))
    run.close()


if __name__ == "__main__":
    run_script(test, arguments)
