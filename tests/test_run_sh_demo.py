"""run.sh where nobody has prepared anything."""
import json

from conftest import copy_checkout, run_sh


def test_without_a_data_set_it_makes_the_demo_pairs(tmp_path):
    checkout = copy_checkout(tmp_path / "repository")
    flags = "--img_size 32 --stages 3 --margin 0.4"
    done = run_sh(checkout, EPOCHS="1", FLAGS=flags, ROWS="triplet", HOME=str(tmp_path))
    assert done.returncode == 0 and "these are the demo pairs" in done.stdout, done.stdout + done.stderr
    assert "192 training places; 96 queries" in done.stdout
    args = json.loads((checkout / "results/demo/triplet/seed0/args.json").read_text())
    assert (args["epochs"], args["img_size"], args["margin"]) == (1, 32, 0.4), "EPOCHS and FLAGS come after the profile"
    assert (
        "Demo pairs: a check that everything works, no result of the method."
        in (checkout / "results/demo/table.md").read_text()
    )
