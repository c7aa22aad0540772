"""Evaluate a saved run on the test split of its target, adapted without training if asked.

    python code_Adapt/test.py --run results/NAME --batchnorm target --whiten

Both take what they need from the target's training images, without their pairs: --batchnorm target the statistics of
every layer, --whiten those of each modality's embeddings. --run: any finished run that was trained with a target.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository's root, where shared/ is

from batchnorm import take_statistics
from shared import options
from shared.evaluate import embed, embed_pairs, evaluate, retrievals, search
from shared.finished_run import FinishedRun
from shared.plumbing.errors import InputError, run_script
from shared.unpaired import load_unpaired
from whitening import whitening


def arguments():
    parser = options.testing(__doc__)
    parser.add_argument("--batchnorm", choices=("source", "target"), default="source",
                        help="whose statistics: those of training, or the target's alone")
    parser.add_argument("--whiten", action="store_true", help="whiten each modality's embeddings as the target's are")
    return parser.parse_args()


def test(args):
    run = FinishedRun(args)
    if run.tested:
        return

    pairs = run.load_pairs()
    if args.batchnorm == "target" or args.whiten:
        target = load_target_of(run, args)
    if args.batchnorm == "target":
        take_statistics(run.model, target, run.device, run.autocast)
    query, gallery = embed_pairs(run.model, pairs, run.device, run.autocast, args.tta)
    if args.whiten:
        for embeddings, modality, images in ((query, "sar", target.sar), (gallery, "opt", target.opt)):
            sample = embed(run.model, images, modality, run.device, run.autocast, tta=args.tta)
            for feature in embeddings:
                embeddings[feature] = whitening(sample[feature])(embeddings[feature])
    results = search(query, gallery, pairs, run.device)
    run.write(pairs, evaluate(results, pairs), retrievals(results, pairs))
    if args.save_embeddings:
        run.save_embeddings(query, gallery, pairs)
    run.close()


def load_target_of(run, args):
    """The images without pairs that a finished run was to be adapted to. InputError where it had no target."""
    regions, data_path = run.settings.get("target_region"), run.settings.get("target_path")
    if not regions and not data_path:
        raise InputError(f"--batchnorm target, --whiten: {args.run} was trained without a target; give a run with "
                         "--target_region or --target_path")
    return load_unpaired(run.data_path, run.img_size, args.workers, run.settings["seed"], regions)


if __name__ == "__main__":
    run_script(test, arguments)
