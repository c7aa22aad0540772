"""Evaluate a saved run on the test split: SAR queries the optical gallery.

    python code_Con/test.py --run results/NAME [--data_path data/OTHER]
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository's root, where shared/ is

from shared import options
from shared.errors import run_script
from shared.run import test_run


def test():
    test_run(options.testing(__doc__).parse_args())


if __name__ == "__main__":
    run_script(test)
