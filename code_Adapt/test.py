"""Evaluate a saved run on the test split of its target, with the BatchNorm statistics of the target if asked.

    python code_Adapt/test.py --run results/NAME --batchnorm target

--batchnorm target takes the statistics of the target's training images, without their pairs, of any finished run that
was trained with a target.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository's root, where shared/ is

from batchnorm import take_statistics
from shared import options
from shared.evaluate import embed_pairs, evaluate, retrievals, search
from shared.finished_run import FinishedRun
from shared.plumbing.errors import InputError, run_script
from shared.unpaired import load_unpaired


def arguments():
    parser = options.testing(__doc__)
    parser.add_argument("--batchnorm", choices=("source", "target"), default="source",
                        help="whose statistics: those of training, or the target's alone")
    return parser.parse_args()


def test(args):
    run = FinishedRun(args)
    if run.tested:
        return

    pairs = run.load_pairs()
    if args.batchnorm == "target":
        regions = run.settings.get("target_region")
        if not regions and not run.settings.get("target_path"):
            raise InputError(f"--batchnorm target: {args.run} was trained without a target; give a run with "
                             "--target_region or --target_path")
        target = load_unpaired(run.data_path, run.img_size, args.workers, run.settings["seed"], regions)
        take_statistics(run.model, target, run.device, run.autocast)
    query, gallery = embed_pairs(run.model, pairs, run.device, run.autocast, args.tta)
    results = search(query, gallery, pairs, run.device)
    run.write(pairs, evaluate(results, pairs), retrievals(results, pairs))
    if args.save_embeddings:
        run.save_embeddings(query, gallery, pairs)
    run.close()


if __name__ == "__main__":
    run_script(test, arguments)
