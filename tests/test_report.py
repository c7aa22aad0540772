"""tools/report.py: intervals and paired tests against small cases, and the page as a reader sees it, in a browser."""
import argparse
import json
import re
import shutil

import numpy as np
import pytest
import torch
from jinja2 import UndefinedError

from conftest import SMALL, require_fit, script
from tools.report import bars, best_line, page, place_map, tiles_of_queries
from tools.results import AUTHOR, recipe_of


def test_a_recipe_names_what_was_seen_and_how_it_was_learned():
    args = {"arch": "resnet18", "img_size": 200, "init": "none", "epochs": 1, "batch_size": 24, "optim": "sgd",
            "schedule": "step", "lr": 0.1, "lr_head": 0.1}
    assert recipe_of(args).startswith("resnet18, 200 px, init none, 1 epoch, 24 pairs")
    both = {**args, "epochs": 2, "input": "both", "left_out": 0.25, "toned": 0.5, "loss": "infonce", "part": 64}
    assert "2 epochs" in recipe_of(both)
    assert recipe_of(both).endswith("0.1, input both (left out 0.25, in tones 0.5), infonce loss, parts of 64 px")


def test_queries_know_their_tiles():
    retrievals = {"row": [{"truth": ["a", "c", "b"]}]}
    pairs = argparse.Namespace(names=["a", "b", "c"], tiles=["t0", "t0", "t1"])
    assert tiles_of_queries(retrievals, pairs) == ["t0", "t1", "t0"]
    assert tiles_of_queries(retrievals, argparse.Namespace(names=["a"], tiles=["a"])) is None


def line(row, feature, top1, ends):
    return {"row": row, "feature": feature, "seeds": 3, "top1": top1, "top1_ends": ends}


def page_of(lines):
    """The page of a table that shows nothing but its best row."""
    table = {"name": "ablation", "rows": [], "lines": [], "best": best_line(lines), "tiles": None, "recipes": [],
             "metrics": {"queries": 12, "gallery": 12, "distractors": 0}, "bars": b"", "map": None, "curves": []}
    return page(title="data", demo_note=None, tables=[table], own=[], authors={}, authors_notes=[], analysed=[],
                other_pictures=[], filters=None, gallery={"best": None, "rows": {}})


def test_the_page_opens_with_the_best_row_by_its_main_feature():
    lines = [line("a", "FC", 50.0, (40, 60)), line("a", "POOL5", 99.0, (98, 100)), line("<b>", "FC", 60.04, (51, 69))]
    text = " ".join(page_of(lines).split())
    assert "&lt;b&gt;</strong> finds 60.0% of the places first (95% interval 51.0 to 69.0; FC, 3 seeds)" in text


def test_the_author_is_in_the_legend_where_a_figure_of_theirs_is_shown(monkeypatch):
    named = []
    monkeypatch.setattr("matplotlib.figure.Figure.legend", lambda figure, marks, labels, **style: named.append(labels))
    for row in ("structure", "triplet"):
        bars([line(row, "FC", 50.0, (40, 60))], AUTHOR)
    assert named == [["FC"], ["the author, FC", "FC"]]


def test_the_map_has_a_panel_for_each_region_and_a_point_for_each_query(monkeypatch):
    scattered = []

    def scatter(axis, x, y, **style):
        scattered.append((axis.get_title(), style["label"], sorted(x.tolist())))

    monkeypatch.setattr("matplotlib.axes.Axes.scatter", scatter)
    positions = torch.tensor([[1000.0, 0], [2000, 0], [3000, 0], [9e6, 0]], dtype=torch.float64)
    pairs = argparse.Namespace(names=["a", "b", "c", "d"], positions=positions)
    hits = [1, 1, 0, 0], [1, 0, 0, 1], [1, 1, 0, 0]
    runs = [{"truth": ["d", "a", "b", "c"], "FC": {"top1": of_run}} for of_run in hits]
    regions = {"a": "west", "b": "west", "c": "west", "d": "east"}
    content = place_map({"row": "r", "feature": "FC"}, {"r": runs}, pairs, regions)
    assert content.startswith(b"\x89PNG")
    assert [points for _, _, points in scattered] == [[9000], [], [1], [2, 3]], "found by most of the seeds"
    pairs.positions = None
    assert place_map({"row": "r", "feature": "FC"}, {"r": runs}, pairs, regions) is None


def test_what_fills_a_slot_is_not_a_slot():
    assert "<strong>{{ title }}</strong> finds" in page_of([line("{{ title }}", "FC", 50.0, (40, 60))])
    with pytest.raises(UndefinedError):
        page(title="data")


@pytest.fixture(scope="module")
def results(demo, tmp_path_factory):
    """A results folder of three rows: triplet with two seeds, another method, and the same runs tested otherwise."""
    folder = tmp_path_factory.mktemp("results") / "demo"
    for name, code, seed, flags in (
        ("triplet", "code", 0, ["--eval_every", "1"]),
        ("triplet", "code", 1, []),
        ("triplet+exchange", "code_Aux", 0, ["--channel_exchange"]),
    ):
        done = script(
            f"{code}/train.py",
            "--data_path",
            demo,
            "--result_path",
            folder / name / f"seed{seed}",
            "--seed",
            seed,
            *SMALL,
            *flags,
        )
        assert done.returncode == 0, done.stderr
    assert (
        script(
            "code/test.py", "--run", folder / "triplet/seed0", "--tta", "flip", "--result_path",
            folder / "triplet-flip/seed0",
        ).returncode
        == 0
    )
    assert script("tools/analyze.py", "--run", folder / "triplet/seed0", "--sample", "10").returncode == 0
    (folder / "<i>x" / "seed0").mkdir(parents=True)                          # a row with a name that is not HTML
    for file in ("args.json", "metrics.json", "retrieval.json"):
        shutil.copy(folder / "triplet-flip/seed0" / file, folder / "<i>x" / "seed0" / file)
    done = script("tools/report.py", folder, "--rows", "triplet", "triplet-flip")
    assert done.returncode == 0 and done.stdout.strip() == str(folder / "report.html"), done.stderr
    return folder


def test_the_page_in_a_browser(browser, results):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import Select
    browser.get((results / "report.html").as_uri())
    assert browser.get_log("browser") == [], "the console is silent"
    browser.execute_script("for (const one of document.querySelectorAll('details')) one.open = true")
    images = browser.execute_script(
        "const decode = one => one.decode().then(() => one.naturalWidth > 0, () => false);"
        "return Promise.all([...document.images].map(decode))"
    )
    assert len(images) > 30 and all(images)

    rows = [option.text for option in Select(browser.find_element(By.ID, "row")).options]
    assert rows == ["triplet", "triplet-flip", "<i>x", "triplet+exchange"]

    # The strip at the head: right answers of the best row, then a wrong one.
    best = re.search(r"<strong>(.*?)</strong> finds", (results / "report.html").read_text())[1]
    found = json.loads((results / best / "seed0/retrieval.json").read_text())
    rank = dict(zip(found["query"], found["FC"]["rank"]))
    strip = [card.text.split(":")[0] for card in browser.find_elements(By.CSS_SELECTOR, "#strip .card")]
    assert Select(browser.find_element(By.ID, "row")).first_selected_option.text == best
    is_right = [rank[name] == 1 for name in strip]
    count = sum(value == 1 for value in rank.values())
    assert is_right == [True] * min(3, count) + [False] * (count < 12)

    def cards():
        return [card.text.split("\n")[0] for card in browser.find_elements(By.CSS_SELECTOR, "#cards .card")]

    for row in ("triplet", "triplet+exchange"):
        found = json.loads((results / row / "seed0/retrieval.json").read_text())
        right = {name for name, rank in zip(found["query"], found["FC"]["rank"]) if rank == 1}
        Select(browser.find_element(By.ID, "row")).select_by_visible_text(row)
        for choice, expected in (
            ("all", set(found["query"])),
            ("right", right),
            ("wrong", set(found["query"]) - right),
        ):
            Select(browser.find_element(By.ID, "show")).select_by_value(choice)
            assert {text.split(":")[0] for text in cards()} == expected
            assert browser.find_element(By.ID, "count").text == f"{len(expected)} of 12 queries"
    Select(browser.find_element(By.ID, "show")).select_by_value("all")
    name = found["query"][7]
    browser.find_element(By.ID, "name").send_keys(name.upper())
    assert [text.split(":")[0] for text in cards()] == [one for one in found["query"] if name in one]
    first = browser.find_elements(By.CSS_SELECTOR, "#cards .card figcaption")
    assert [text.text.split(" ")[1] for text in first[1:6]] == [answer for answer, _ in found["FC"]["answers"][7]]
    assert browser.get_log("browser") == []


@pytest.mark.parametrize("width, scheme", [(390, "light"), (390, "dark"), (1200, "dark")])
def test_the_page_fits_its_screen(browser, results, width, scheme):
    require_fit(browser, results / "report.html", width, scheme)


def test_the_page_is_one_file_with_the_tables_figures(results):
    page = (results / "report.html").read_text()
    assert not re.search(r'(src|href)="(?!data:|#)', page), "nothing is fetched"
    assert "<i>x" not in page and "&lt;i&gt;x" in page
    metrics = [json.loads((results / f"triplet/seed{seed}/metrics.json").read_text())["FC"]["top1"] for seed in (0, 1)]
    assert (
        f"<td>triplet</td><td>FC</td><td>2</td><td>{np.mean(metrics):.2f} ± {np.std(metrics, ddof=1):.2f}</td>" in page
    )
    assert "Demo pairs: a check" in page and "the author" not in page and "triplet, seed0" in page


def test_runs_that_do_not_belong_together_are_named(results, tmp_path):
    shutil.copytree(results, tmp_path / "demo")
    file = tmp_path / "demo/triplet/seed1/retrieval.json"
    found = json.loads(file.read_text())
    found["query"][0] = "elsewhere"
    file.write_text(json.dumps(found))
    done = script("tools/report.py", tmp_path / "demo")
    assert done.returncode == 2 and "evaluated on other queries" in done.stderr and "seed1" in done.stderr
    file.unlink()
    done = script("tools/report.py", tmp_path / "demo")
    assert done.returncode == 2 and "has no retrieval.json" in done.stderr
