"""run.sh, the table, and the promise that a new idea is a copied folder and one more line."""
import csv
import json
import shutil
import sys
from pathlib import Path

import pytest

from conftest import copy_checkout, run_sh, script
from shared.plumbing.errors import InputError
from tools.results import AUTHOR, divide, finished_runs, markdown, read_tables, recipes, tabulate, write_table

SMALL = "--img_size 32 --stages 3"


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of the repository without data, results or environment."""
    return copy_checkout(tmp_path_factory.mktemp("checkout") / "repository")


def test_a_copied_folder_and_one_line_make_a_new_row(checkout, demo, forked):
    shutil.copytree(checkout / "code_Aux", checkout / "code_MyIdea")
    with open(checkout / "tables/ablation.sh", "a") as table:
        table.write("row my-idea code_MyIdea --guided_filter\n")
    settings = dict(DATA_PATH=str(demo), EPOCHS="1", FLAGS=SMALL, ROWS="triplet my-idea")
    done = run_sh(checkout, forked, **settings)
    assert done.returncode == 0, done.stdout + done.stderr
    with open(checkout / "results/demo/table.csv") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [
        "row", "feature", "seeds", "top1", "top5", "top10", "top20", "mAP", "top1_std", "mAP_std", "seconds",
    ]
    assert [(r["row"], r["feature"], r["seeds"]) for r in rows] == [
        (n, f, "1") for n in ("triplet", "my-idea") for f in ("FC", "POOL5")
    ]
    assert "| my-idea | FC | 1 |" in (checkout / "results/demo/table.md").read_text()
    assert "the author" not in (checkout / "results/demo/table.md").read_text()
    assert done.stdout.splitlines()[-1] == "results/demo/report.html"
    page = (checkout / "results/demo/report.html").read_text()
    assert (
        "<td>my-idea</td><td>FC</td><td>1</td>" in page
        and "<td>triplet, seed0</td>" in page
        and "<td>rolling-guidance</td>" in page
    ), "table, analyses, filters"

    again = run_sh(checkout, forked, **settings)
    assert again.returncode == 0 and again.stdout.count("is finished") == 2, "finished rows are not trained again"
    assert "ROC area" in done.stdout and "ROC area" not in again.stdout, "nor analyzed"


def test_the_recipe_of_a_cpu_can_be_had_with_cuda(checkout, demo, tmp_path):
    """A Python that says there is CUDA stands for a machine with it. No row of that name: nothing is trained."""
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\ncase $2 in *cuda*) exit 0;; esac\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    for recipe, profile in (("", "the default of every flag"), ("cpu", "--recipe cpu --img_size 64")):
        done = run_sh(checkout, python, DATA_PATH=str(demo), ROWS="none", RECIPE=recipe)
        assert done.returncode == 2 and f"profile: {profile}" in done.stdout, done.stderr


def test_a_failing_row_is_named_and_the_others_go_on(checkout, demo, forked):
    done = run_sh(checkout, forked, DATA_PATH=str(demo), EPOCHS="7", FLAGS=SMALL, ROWS="triplet", SEEDS="0")
    assert (
        done.returncode == 1
        and "epochs 1 there, 7 here" in done.stderr
        and "not finished: triplet (seed 0)" in done.stderr
    )
    assert "| triplet | FC |" in done.stdout and done.stdout.splitlines()[-1] == "results/demo/report.html"


def test_a_second_data_set_of_the_same_name_does_not_enter_its_table(checkout, demo, forked, tmp_path):
    other = shutil.copytree(demo, tmp_path / "demo")
    (other / "train/opt/0000.png").write_bytes((other / "train/opt/0001.png").read_bytes())
    done = run_sh(checkout, forked, DATA_PATH=str(other), EPOCHS="1", FLAGS=SMALL, ROWS="triplet+adv")
    assert done.returncode == 2 and "== " not in done.stdout and not (checkout / "results/demo/triplet+adv").exists()
    assert f"results/demo holds runs of another data set of this name, {demo} (48 files" in done.stderr
    assert f"this is {other} (48 files" in done.stderr and "move results/demo away" in done.stderr


def test_a_data_set_without_regions_has_a_row_with_nothing_learned(checkout, demo, forked):
    shutil.copytree(demo, checkout / "data/of my own")
    done = run_sh(checkout, forked, DATA_PATH="data/of my own", ROWS="structure")
    assert done.returncode == 0, done.stderr
    assert "| structure | FC | 1 |" in (checkout / "results/of my own/table.md").read_text()
    assert "nothing is learned" in done.stdout


def test_an_unknown_row_is_an_error_before_any_training(checkout, demo, forked):
    done = run_sh(checkout, forked, DATA_PATH=str(demo), ROWS="triplet triplet+magic")
    assert done.returncode == 2 and "ROWS names triplet+magic" in done.stderr and "==" not in done.stdout


def finished(folder, row, seed, top1, evaluated_on="test", **settings):
    metrics = {"top1": top1, "top5": 50.0, "top10": 60.0, "top20": 70.0, "mAP": top1 + 10}
    (folder / row / f"seed{seed}").mkdir(parents=True)
    (folder / row / f"seed{seed}" / "metrics.json").write_text(
        json.dumps({"FC": metrics, "POOL5": metrics, "seconds": 100.0 + seed, "evaluated_on": evaluated_on}))
    recipe = dict(
        arch="resnet18",
        img_size=96,
        init="none",
        epochs=20,
        batch_size=48,
        optim="sgd",
        schedule="cosine",
        lr=0.1,
        lr_head=0.1,
        windows=False,
        **settings,
    )
    (folder / row / f"seed{seed}" / "args.json").write_text(json.dumps(recipe))


def test_the_tables_figures(tmp_path):
    for seed, top1 in enumerate((20.0, 22.0, 27.0)):
        finished(tmp_path, "triplet", seed, top1)
    finished(tmp_path, "zz", 0, 5.0)
    finished(tmp_path, "aa", 0, 99.0, evaluated_on="validation")
    runs, = read_tables(tmp_path, {"ablation": ["zz", "absent"]}).values()
    lines = tabulate(runs)
    assert [(line["row"], line["feature"]) for line in lines] == [
        ("zz", "FC"), ("zz", "POOL5"), ("triplet", "FC"), ("triplet", "POOL5")]
    assert lines[2]["top1"] == pytest.approx(23) and lines[2]["top1_std"] == pytest.approx(13 ** 0.5)
    assert lines[2]["seconds"] == 101 and lines[0]["top1_std"] == "" and lines[0]["seeds"] == 1
    expected = "| triplet | FC | 3 | 23.00 ± 3.61 | 50.00 | 60.00 | 70.00 | 33.00 ± 3.61 | 101 |"
    assert expected in markdown(lines, authors=False)


def test_rows_of_another_table_stand_there_alone(tmp_path):
    for name in ("triplet", "new", "newer", "nobodys"):
        finished(tmp_path, name, 0, 20.0)
    tables = divide({name: [] for name in ("new", "newer", "nobodys", "triplet")},
                    {"ablation": ["triplet", "absent"], "match": ["newer", "new"], "empty": ["absent"]})
    assert {name: list(rows) for name, rows in tables.items()} == {
        "ablation": ["triplet", "nobodys"], "match": ["newer", "new"]}
    tables = {"ablation": ["structure", "triplet"], "drawn": ["structure", "san"], "not_run": ["structure", "x"]}
    opening = divide({name: [] for name in ("structure", "triplet", "san")}, tables)
    assert {name: list(rows) for name, rows in opening.items()} == {
        "ablation": ["structure", "triplet"], "drawn": ["structure", "san"]}, "a row may open several tables"
    done = script("tools/results.py", tmp_path, "--rows", "triplet", "--table", "match", "newer", "new")
    assert done.returncode == 0, done.stderr
    assert "newer" not in (tmp_path / "table.md").read_text() and "nobodys" in (tmp_path / "table.md").read_text()
    with open(tmp_path / "match.csv") as file:
        assert [row["row"] for row in csv.DictReader(file)] == ["newer", "newer", "new", "new"]


def test_each_metrics_json_is_read_once(tmp_path, monkeypatch):
    for seed in range(3):
        finished(tmp_path, "triplet", seed, 20.0)
    opened, read_text = [], Path.read_text

    def watched(file, *args, **named):
        opened.append(file.name)
        return read_text(file, *args, **named)

    monkeypatch.setattr(Path, "read_text", watched)
    for table, runs in read_tables(tmp_path, {}).items():
        write_table(tmp_path, table, runs)
    assert opened.count("metrics.json") == 3


def test_the_authors_figures_stand_beside_ours_only_on_the_authors_data(tmp_path):
    for name in ("SN6align200", "other", "demo"):
        finished(tmp_path / name, "triplet", 0, 20.0)
        assert script("tools/results.py", tmp_path / name).returncode == 0
    assert AUTHOR["triplet"] in (tmp_path / "SN6align200/table.md").read_text()
    assert "a slip" in (tmp_path / "SN6align200/table.md").read_text()
    assert "73.22" not in (tmp_path / "other/table.md").read_text()
    assert (
        "Demo pairs: a check that everything works, no result of the method."
        in (tmp_path / "demo/table.md").read_text()
    )
    assert "Ours: resnet18, 96 px, init none, 20 epochs, 48 pairs" in (tmp_path / "other/table.md").read_text()


def test_what_a_network_saw_stands_below_its_table(tmp_path):
    finished(tmp_path, "whole", 0, 20.0, pooling="max", part=200)
    finished(tmp_path, "parts", 0, 20.0, pooling="cells", part=48)
    whole, parts = recipes(finished_runs(tmp_path))[::-1]
    assert whole.startswith("whole: resnet18") and whole.endswith("rates 0.1 and 0.1."), "a part of 200 px is all of it"
    assert parts.startswith("parts: resnet18") and parts.endswith("rates 0.1 and 0.1, cells, parts of 48 px.")


def test_validation_figures_have_a_table_of_their_own(tmp_path):
    finished(tmp_path, "triplet", 0, 20.0)
    finished(tmp_path, "aa", 0, 99.0, evaluated_on="validation")
    done = script("tools/results.py", tmp_path, "--validation")
    assert done.returncode == 0 and "| aa | FC | 1 | 99.00 |" in done.stdout and "triplet" not in done.stdout
    assert "not figures of the test split" in done.stdout


def test_an_empty_folder_is_an_error(tmp_path):
    with pytest.raises(InputError, match="holds no finished run"):
        read_tables(tmp_path, {})
