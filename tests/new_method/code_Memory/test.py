"""A made-up method's own way to search: the first few answers of each query in another order."""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository's root, where shared/ is

from shared import options
from shared.evaluate import embed_pairs, evaluate, first_answers, rerank, retrievals, search_scores
from shared.finished_run import FinishedRun
from shared.plumbing.errors import run_script


def arguments():
    parser = options.testing(__doc__)
    parser.add_argument("--first", type=options.positive, default=5, help="answers of each query to turn round")
    return parser.parse_args()


def test(args):
    run = FinishedRun(args)
    if run.tested:
        return

    pairs = run.load_pairs()
    query, gallery = embed_pairs(run.model, pairs, run.device, run.autocast, args.tta)
    answers = first_answers(query["FC"], gallery["FC"], args.first)[1]
    scores = rerank(query["FC"] @ gallery["FC"].T, answers.flip(1))
    results = search_scores({"FC turned round": scores}, pairs)
    run.write(pairs, evaluate(results, pairs), retrievals(results, pairs))
    run.close()


if __name__ == "__main__":
    run_script(test, arguments)
