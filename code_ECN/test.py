"""Evaluate a saved run on the test split: SAR queries the optical gallery.

    python code_Con/test.py --run results/NAME [--data_path data/OTHER]
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository's root, where shared/ is

from shared import options
from shared.evaluate import embed_pairs, evaluate, retrievals, search
from shared.finished_run import FinishedRun
from shared.plumbing.errors import run_script


def arguments():
    return options.testing(__doc__).parse_args()


def test(args):
    run = FinishedRun(args)
    if run.tested:
        return

    pairs = run.load_pairs()
    query, gallery = embed_pairs(run.model, pairs, run.device, run.autocast, args.tta)
    results = search(query, gallery, pairs, run.device)
    run.write(pairs, evaluate(results, pairs), retrievals(results, pairs))
    if args.save_embeddings:
        run.save_embeddings(query, gallery, pairs)
    run.close()


if __name__ == "__main__":
    run_script(test, arguments)
