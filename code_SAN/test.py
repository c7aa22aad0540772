"""Evaluate a saved run on the test split, and show what its decoder draws.

    python code_SAN/test.py --run results/NAME

The encoder alone is evaluated. Of the decoder: PSNR and SSIM of the optical images that it draws, and in the run's
folder pictures/drawn_test.png: SAR, what is drawn from it, the true optical image, what is drawn from that.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository's root, where shared/ is

from drawings import draw_split, load_decoder
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

    decoder = load_decoder(args.run, "--run").to(run.device)
    pairs = run.load_pairs()
    query, gallery = embed_pairs(run.model, pairs, run.device, run.autocast, args.tta)
    results = search(query, gallery, pairs, run.device)
    file = args.run / "pictures/drawn_test.png"
    drawn = draw_split(run.model, decoder, pairs, run.device, run.autocast, file)
    print(f"{', '.join(f'{name} {value:.4g}' for name, value in drawn.items())}; {file}")
    run.write(pairs, {**evaluate(results, pairs), "drawn": drawn}, retrievals(results, pairs))
    if args.save_embeddings:
        run.save_embeddings(query, gallery, pairs)
    run.close()


if __name__ == "__main__":
    run_script(test, arguments)
