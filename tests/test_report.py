"""tools/report.py: intervals and paired tests against small cases, and the page as a reader sees it, in a browser."""
import itertools
import json
import re
import shutil

import numpy as np
import pytest
from scipy import stats

from conftest import SMALL, script
from tools.report import bootstrap_intervals, compare_rows, fill, sign_flip_p


def test_intervals_are_scipys_bootstrap_and_hold_the_mean():
    rng = np.random.default_rng(1)
    values = (rng.random((300, 2)) < [0.3, 0.9]).astype(float)
    lower, upper = bootstrap_intervals(values)
    for k in range(2):
        theirs = stats.bootstrap((values[:, k],), np.mean, n_resamples=10_000, method="percentile").confidence_interval
        assert lower[k] == pytest.approx(theirs.low, abs=0.005) and upper[k] == pytest.approx(theirs.high, abs=0.005)
        assert lower[k] < values[:, k].mean() < upper[k]
    assert bootstrap_intervals(np.ones((50, 1))).ravel().tolist() == [1, 1]


def test_intervals_cover_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(2)
    values = (rng.random((200, 300)) < 0.6).astype(float)                   # 300 experiments of 200 queries
    lower, upper = bootstrap_intervals(values)
    assert 0.90 < ((lower <= 0.6) & (0.6 <= upper)).mean() < 0.99


def test_p_is_that_of_all_signs():
    differences = np.array(
        [[1, 0.5, -1], [1, -0.5, 1], [0, 1, 0], [1, 1, 0], [1, 0, 1], [1, 1, -1], [0, -1, 0], [1, 0, 0]]
    )
    signs = np.array(list(itertools.product([-1, 1], repeat=8)))
    exact = (np.abs(signs @ differences) >= np.abs(differences.sum(0)) - 1e-9).mean(0)
    assert exact[0] == 2 / 64 and exact[2] == 1
    assert sign_flip_p(differences) == pytest.approx(exact, abs=0.015)


def test_planted_differences_are_found_and_noise_is_not():
    rng = np.random.default_rng(3)
    base = rng.random(500) < 0.6
    better = base | (rng.random(500) < 0.15)                                # right where base is, and sometimes else
    shuffled = np.where(rng.random(500) < 0.2, rng.random(500) < 0.6, base)     # as good, at other queries
    difference, p = compare_rows(np.stack([base, better, shuffled], 1).astype(float))
    assert difference[1, 0] == pytest.approx(better.mean() - base.mean()) and difference[0, 1] == -difference[1, 0]
    assert p[1, 0] == p[0, 1] < 0.001 and p[0, 2] > 0.05 and np.isnan(np.diag(p)).all()
    assert compare_rows(base[:, None].astype(float))[0].tolist() == [[0]]


def test_few_of_many_comparisons_of_equal_rows_are_significant():
    rng = np.random.default_rng(4)
    _, p = compare_rows((rng.random((300, 12)) < 0.5).astype(float))        # 66 pairs, none of them different
    assert (p < 0.05).sum() / 2 <= 2


def test_what_fills_a_slot_is_not_a_slot():
    assert fill("a {{x}} b {{y}}{{x}}", {"x": "{{y}}", "y": "}}"}) == "a {{y}} b }}{{y}}"
    with pytest.raises(KeyError):
        fill("{{z}}", {})


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


@pytest.fixture(scope="module")
def browser():
    """Chromium without a window, as its own user would start it."""
    chromium, driver = (shutil.which(name) for name in ("chromium", "chromedriver"))
    if not chromium or not driver:
        pytest.skip("no chromium and chromedriver on this machine: the page was not tried in a browser")
    from selenium import webdriver
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--window-size=1200,900",
    ):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options, webdriver.ChromeService(driver))
    yield browser
    browser.quit()


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

    def cards():
        return [card.text.split("\n")[0] for card in browser.find_elements(By.CSS_SELECTOR, ".card")]

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
    first = browser.find_elements(By.CSS_SELECTOR, ".card figcaption")
    assert [text.text.split(" ")[1] for text in first[1:6]] == [answer for answer, _ in found["FC"]["answers"][7]]
    assert browser.get_log("browser") == []


def test_the_page_fits_a_phone(browser, results):
    browser.set_window_size(500, 800)
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 390, "height": 800, "deviceScaleFactor": 2, "mobile": True}
    )
    browser.get((results / "report.html").as_uri())
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 390, (
        "tables scroll by themselves, the page does not"
    )
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


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
