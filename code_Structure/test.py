"""Nothing learned: SAR queries the optical gallery by structure alone, the oriented gradients of the images in cells.

    python code_Structure/test.py --data_path data/S1S2align200 --result_path results/structure/seed0

What a network has to beat. Beside a network's scores: code_Structure/fusion.py.
"""
import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository's root, where shared/ is

from shared import options
from shared.dataset import describe_gallery, load_splits
from shared.evaluate import embed_pairs, evaluate, retrievals, search
from shared.finished_run import asked_of, is_tested, print_row, require_row_of, write_row
from shared.mapping.cells import StructureCells
from shared.plumbing.device import autocast, choose_device
from shared.plumbing.errors import run_script
from shared.reading.readers import readers_of


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     allow_abbrev=False)
    options.add_data(parser)
    options.add_target_region(parser)
    parser.add_argument("--result_path", required=True, type=Path,
                        help="write the figures there, as a row of the table")
    options.add_device(parser)
    options.add_store(parser)
    return parser.parse_args()


def test(args):
    if is_tested(args.result_path):
        require_row_of(args.result_path, None, args.data_path, asked_of(args))
        print_row(args.result_path)
        return

    device = choose_device(args.device)
    pairs, = load_splits(args.data_path, ("test",), args.img_size, args.workers, args.store, readers_of(args))
    pairs = pairs.of_regions(args.target_region, "--target_region")
    print(describe_gallery(pairs))
    query, gallery = embed_pairs(StructureCells(), pairs, device, autocast(device, args.amp))
    results = search(query, gallery, pairs, device)
    settings = {"data_path": args.data_path, "img_size": args.img_size, "target_region": args.target_region,
                "asked": asked_of(args)}
    write_row(args.result_path, settings, evaluate(results, pairs), 0.0, pairs, retrievals(results, pairs))


if __name__ == "__main__":
    run_script(test, arguments)
