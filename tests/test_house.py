"""How the house is kept: what ruff does not see."""
import functools
import re
import shutil
import subprocess
import sys

import pytest
import torch
from torchvision import models
from torchvision.models.resnet import BasicBlock, ResNet

from conftest import METHODS, ROOT, SMALL, copy_checkout, script
from shared import options
from shared.backbones import BACKBONES, Backbone
from shared.dataset import load_splits
from shared.model import PseudoSiamese, initialize
from shared.reading import layouts
from shared.reading.layouts import Layout, find_data, layout_of
from test_dataset import make_data
from tools.bench import load_script

pytestmark = pytest.mark.checkout

SCRIPTS = sorted(str(file.relative_to(ROOT)) for file in
                 [*ROOT.glob("code*/*.py"), *ROOT.glob("tools/*.py"), *ROOT.glob("data/*/prepare.py")]
                 if "__main__" in file.read_text())


def modules_of(folder):
    """The names of what a method's scripts import from its folder."""
    return [file.stem for file in folder.glob("*.py") if "__main__" not in file.read_text()]


def test_modules_of_methods_have_names_of_their_own():
    """A script's folder is first on the path, and the tests import the modules of all methods in one process."""
    names = [name for folder in METHODS for name in modules_of(folder)]
    shared = [file.stem for files in ("shared/**/*.py", "tools/*.py", "data/*.py") for file in ROOT.glob(files)]
    assert len(names) >= 5 and len(set(names)) == len(names) and not set(names) & set(shared)


def test_methods_do_not_know_each_other_and_shared_knows_none():
    methods = {folder.name for folder in METHODS}
    own = {folder.name: modules_of(folder) for folder in METHODS}
    for file in [*ROOT.glob("shared/**/*.py"), *(file for folder in METHODS for file in folder.glob("*.py"))]:
        text = file.read_text()
        for method in methods - {file.parent.name}:
            for module in own[method]:
                assert f"from {module} import" not in text and f"import {module}\n" not in text, (file, module)


def test_shared_is_one_floor_of_few_rooms():
    """A student of the method needs the flat files; each says whom it is for."""
    flat = [file for file in (ROOT / "shared").glob("*.py") if file.name != "__init__.py"]
    assert len(flat) <= 14
    assert [file.name for file in flat if not file.read_text().startswith("# For ")] == []
    assert {folder.name for folder in (ROOT / "shared").iterdir() if (folder / "__init__.py").is_file()} == {
        "adapting", "mapping", "plumbing", "reading"}


def test_a_copy_of_the_checkout_is_what_git_would_keep(tmp_path):
    """So what is tried in a copy is the same whatever run.sh and the tests have left in the checkout."""
    if not shutil.which("git") or not (ROOT / ".git").exists():
        pytest.skip("no git here, or no repository")
    git = ["git", "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(git, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
    copy = copy_checkout(tmp_path / "repository")
    copied = {str(file.relative_to(copy)) for file in copy.rglob("*") if file.is_file()}
    assert copied == {name for name in names if (ROOT / name).is_file()}


def test_no_line_of_a_shell_script_is_over_120():
    files = [*ROOT.glob("*.sh"), *ROOT.glob("*/*.sh"), *ROOT.glob("shared/plumbing/*.sh"), ROOT / ".ci/run"]
    assert len(files) >= 4
    assert [f"{file}:{i}" for file in files for i, line in enumerate(file.read_text().splitlines(), 1)
            if len(line) > 120] == []


@pytest.mark.parametrize("file", SCRIPTS)
def test_every_script_says_what_it_takes(file):
    done = script(file, "--help")
    assert done.returncode == 0 and "usage: " in done.stdout, done.stderr


def test_what_reads_text_does_not_wait_for_torch():
    """Of what run.sh calls before and after training; a Python of its own, since ours has torch."""
    modules = "shared.plumbing.errors, shared.reading.fingerprint, tools.results, data.demo.prepare"
    program = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import {modules}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr


def test_a_backbone_is_added_in_one_place(monkeypatch, tmp_path):
    small = functools.partial(ResNet, BasicBlock, [1, 1, 1, 1])

    def resnet10(weights=None):
        return small()

    monkeypatch.setitem(BACKBONES, "resnet10", Backbone(resnet10, models.ResNet18_Weights.IMAGENET1K_V1))
    args = options.training("").parse_args(["--data_path", "x", "--arch", "resnet10"])
    model = PseudoSiamese(args.arch, specify_num=2).eval()
    assert len(model.stages_of("sar")) == 5 and model(torch.rand(1, 3, 64, 64)).fc.shape == (1, 512)
    torch.save(resnet10().state_dict(), tmp_path / "weights.pth")
    initialize(model, tmp_path / "weights.pth")


def test_a_layout_is_added_in_one_place(monkeypatch, tmp_path):
    data = make_data(tmp_path / "inside/a")
    (tmp_path / "inside/marked").write_text("")
    monkeypatch.setenv("HOME", str(tmp_path / "inside"))
    monkeypatch.chdir(tmp_path)

    def read(root, split, problems):
        return layouts.read_folders(root / "a", split, problems)

    def is_there(root):
        return (root / "marked").is_file()

    assert layout_of(tmp_path / "inside") is None
    monkeypatch.setattr(layouts, "LAYOUTS", (Layout(is_there, read), *layouts.LAYOUTS))
    assert find_data(tmp_path / "inside") == tmp_path / "inside" and layout_of(tmp_path / "inside").read is read
    marked, = load_splits(tmp_path / "inside", ("train",), 16, 1)
    plain, = load_splits(data, ("train",), 16, 1)
    assert torch.equal(marked.opt, plain.opt)


# The rows of run.sh --------------------------------------------------------------------------------------------------

TABLES = {file.stem: file.read_text() for file in sorted((ROOT / "tables").glob("*.sh"))}
ROWS = [tuple(filter(None, groups)) for text in TABLES.values()
        for groups in re.findall(r"^(row|test_row) +(\S+) +((?:code|tools)[\w/.]*) *(.*)$", text, re.M)]
# What the flags' variables stand for, of the demo pairs where there are several values.
SETTINGS = {"DRAWING": "--windows", "ACROSS": "--windows --region a --target_region b", "TARGET": "right"}
for text in TABLES.values():
    for setting, more, value in re.findall(r'\b([A-Z_]+)(\+?)="([^"]*)"', text):
        if setting not in ("ACROSS", "SOURCE", "TARGET"):
            SETTINGS[setting] = SETTINGS[setting] + value if more else value
PROFILES = {"cuda": ("all:",), "demo": ("all:", "cpu:", "demo:"), "real": ("all:", "cpu:", "real:")}


def command_of(row, profile="demo"):
    """(script, words) of a row: what run.sh calls, in one of the PROFILES."""
    kind, name, folder, *rest = row
    words = " ".join(rest).split()
    if kind == "test_row":
        words[0] = f"--run @{words[0]}"
    words = " ".join(words)
    while "$" in words:
        words = re.sub(r"\$([A-Z_]+)", lambda match: SETTINGS[match[1]], words)
    kept, of = [], "all:"
    for word in words.split():
        if word in ("all:", "cpu:", "demo:", "real:"):
            of = word
        elif of in PROFILES[profile]:
            kept.append(word)
    script_name = "" if folder.endswith(".py") else "train.py" if kind == "row" else "test.py"
    file = ROOT / folder / script_name
    data = ["--data_path", "x"] if kind == "row" else []
    recipe = ["--recipe", "cpu"] if file.name.startswith("train") and profile != "cuda" else []
    return file, [*data, *recipe, "--result_path", "x", *kept]


def test_run_sh_is_short_and_its_tables_are_read():
    assert len((ROOT / "run.sh").read_text().splitlines()) <= 120
    assert "ablation" in TABLES and all("row " in text and text.startswith("# ") for text in TABLES.values())
    assert len(ROWS) > 80


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[1])
@pytest.mark.parametrize("profile", PROFILES)
def test_every_row_of_run_sh_has_flags_that_its_script_takes(row, profile, monkeypatch):
    """What a table that is seldom asked for would trip over."""
    file, words = command_of(row, profile)
    assert {word[1:] for word in words if word.startswith("@")} <= {other[1] for other in ROWS}
    monkeypatch.setattr("sys.argv", ["script", *words])
    load_script(file).arguments()


# Flags -------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("flags, words", [
    (["--lr", "-1"], "-1 is not a number from 0"),
    (["--lr", "nan"], "nan is not a number from 0"),
    (["--lr_head", "inf"], "inf is not a number from 0"),
    (["--margin", "-0.1"], "-0.1 is not a number from 0"),
    (["--seed", "-1"], "-1 is below 0"),
    (["--epochs", "many"], "invalid positive value: 'many'"),
    (["--validate", "1"], "1 is not between 0 and 1"),
    (["--other_half"], "give --validate, too"),
])
def test_numbers_that_make_no_sense_are_refused(capsys, flags, words):
    with pytest.raises(SystemExit) as caught:
        options.training("").parse_args(["--data_path", "x", *flags])
    assert caught.value.code == 2 and words in capsys.readouterr().err


@pytest.mark.parametrize("folder, flags, words", [
    ("code_Adv", ["--lambda_adv", "-1"], "--lambda_adv: -1 is not a number from 0"),
    ("code_Adv", ["--lambda_modal", "nan"], "--lambda_modal: nan is not a number from 0"),
    ("code_Adv", ["--lr_critic", "0"], "--lr_critic: 0 is not above 0"),
    ("code_Con", ["--temperature", "-1"], "--temperature: -1 is not above 0"),
    ("code_Con", ["--label_smoothing", "1.5"], "--label_smoothing: 1.5 is not between 0 and 1"),
    ("code_SimSiam", ["--alpha", "0"], "--alpha: 0 is not above 0"),
    ("code_SAN", ["--lr_decoder", "-1"], "--lr_decoder: -1 is not above 0"),
    ("code_SAN", ["--stages", "4"], "--stages 4: the decoder draws from the maps of all five"),
])
def test_a_methods_own_numbers_too(folder, flags, words):
    done = script(f"{folder}/train.py", "--data_path", "x", *flags)
    assert done.returncode == 2 and words in done.stderr and "Traceback" not in done.stderr


def arguments_of(folder, monkeypatch, *flags):
    """What a train.py reads of a command line."""
    monkeypatch.setattr("sys.argv", [f"{folder}/train.py", "--data_path", "x", *flags])
    return load_script(ROOT / folder / "train.py").arguments()


CPU = {"arch": "resnet18", "img_size": 96, "init": "none", "schedule": "cosine"}
SGD = {**CPU, "optim": "sgd", "batch_size": 48, "epochs": 20, "layer4_stride": 1, "specify_num": 0}


@pytest.mark.parametrize("folder, flags, expected", [
    ("code", [], {**SGD, "lr": 0.1, "lr_head": 0.1}),
    ("code", ["--lr", "0.3", "--epochs", "7"], {**SGD, "lr": 0.3, "lr_head": 0.1, "epochs": 7}),
    ("code_Aux", [], {**SGD, "lr": 0.05, "lr_head": 0.05, "channel_exchange": True, "filter": None}),
    ("code_Aux", ["--filter", "lee"], {**SGD, "lr": 0.05, "channel_exchange": False, "filter": "lee"}),
    ("code_Adv", [], {**SGD, "lr": 0.1, "lr_head": 0.1, "lambda_adv": 0.001}),
    ("code_Adv", ["--channel_exchange"], {**SGD, "lr": 0.05, "lr_head": 0.05, "lambda_adv": 0.001}),
    ("code_Adv", ["--guided_filter", "--lr", "0.1"], {**SGD, "lr": 0.1, "lr_head": 0.05, "filter": "guided"}),
    ("code_Con", [], {**CPU, "optim": "adamw", "lr": 2e-3, "lr_head": 2e-3, "batch_size": 64, "layer4_stride": 2,
                      "specify_num": 1, "epochs": 240, "pooling": "cells", "stages": 3, "loss": "triplet", "part": 48}),
    ("code_HHL", ["--generated", "x"], {**CPU, "optim": "adamw", "lr": 2e-3, "lr_head": 2e-3, "pooling": "cells"}),
])
def test_the_cpu_recipe_is_the_one_that_run_sh_had(monkeypatch, folder, flags, expected):
    """Values as they stood in run.sh before they had a name; a flag that is given wins."""
    args = vars(arguments_of(folder, monkeypatch, "--recipe", "cpu", *flags))
    assert {name: args[name] for name in expected} == expected


def test_without_a_recipe_it_is_the_authors(monkeypatch):
    args = arguments_of("code_Adv", monkeypatch)
    assert (args.arch, args.img_size, args.init, args.lr, args.lr_head) == ("resnet50", 200, "imagenet", 0.0025, 0.025)
    assert (args.batch_size, args.epochs, args.schedule, args.lambda_adv) == (24, 60, "step", 0.01)
    assert args.defaults["lr"] == 0.0025 and args.defaults["margin"] == 0.5


def test_help_shows_what_the_recipe_sets(monkeypatch, capsys):
    with pytest.raises(SystemExit):
        arguments_of("code_Adv", monkeypatch, "--help")
    text = " ".join(capsys.readouterr().out.split())
    assert "--arch resnet18 --img_size 96 --init none --schedule cosine --lr 0.1 --lr_head 0.1" in text
    assert "--lambda_adv 0.001" in text and "--lr 0.05 --lr_head 0.05" in text


def test_a_test_takes_no_flag_of_training():
    done = script("code/test.py", "--run", "x", *SMALL)
    assert done.returncode == 2 and "unrecognized arguments: --arch" in done.stderr
