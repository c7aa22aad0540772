"""The ways to adapt a trained network to a region that train nothing: statistics, whitening, a bank of queries."""
from batchnorm import take_statistics
from querybank import without_hubs
from shared.adapting.unpaired import load_unpaired
from shared.evaluate import embed_pairs
from shared.plumbing.errors import InputError
from whitening import whitening


def add_ways(parser):
    """The flags that say what to adapt by."""
    parser.add_argument("--batchnorm", choices=("source", "target"), default="source",
                        help="whose statistics: those of training, or the target's alone")
    parser.add_argument("--whiten", action="store_true", help="whiten each modality's embeddings as the target's are")
    parser.add_argument("--querybank", action="store_true",
                        help="score an optical image the lower the nearer it is to the target's SAR images at large")


def ways_taken(args):
    """Those of add_ways' flags that change an embedding, {flag: value}."""
    taken = {"batchnorm": args.batchnorm != "source" and args.batchnorm, "whiten": args.whiten,
             "querybank": args.querybank}
    return {flag: value for flag, value in taken.items() if value}


def embed_adapted(run, args, pairs):
    """(query, gallery) of a split as embed_pairs gives them, adapted as the flags say.

    run: the FinishedRun, whose network gets the target's statistics where they are asked for.
    Raises InputError where the run has no target to adapt to.
    """
    unpaired = load_target_of(run, args) if args.batchnorm == "target" or args.whiten or args.querybank else None
    if args.batchnorm == "target":
        take_statistics(run.model, unpaired, run.device, run.autocast)
    query, gallery = embed_pairs(run.model, pairs, run.device, run.autocast, args.tta)
    if args.whiten or args.querybank:
        target_sar, target_opt = embed_pairs(run.model, unpaired, run.device, run.autocast, args.tta)
    for feature in query:
        if args.whiten:
            whiten_sar, whiten_opt = whitening(target_sar[feature]), whitening(target_opt[feature])
            query[feature], gallery[feature] = whiten_sar(query[feature]), whiten_opt(gallery[feature])
            target_sar[feature] = whiten_sar(target_sar[feature])
        if args.querybank:
            query[feature], gallery[feature] = without_hubs(query[feature], gallery[feature], target_sar[feature])
    return query, gallery


def load_target_of(run, args):
    """The images without pairs that a finished run was to be adapted to. InputError where it had no target."""
    require_target(run, args)
    return load_unpaired(run.data_path, run.img_size, args.workers, run.settings["seed"],
                         run.settings.get("target_region"), run.readers)


def require_target(run, args):
    """InputError where a finished run had no target."""
    if not run.settings.get("target_region") and not run.settings.get("target_path"):
        raise InputError(f"--batchnorm target, --whiten, --querybank, --agreement: {args.run} was trained without a "
                         "target; give a run with --target_region or --target_path")
