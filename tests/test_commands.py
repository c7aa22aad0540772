"""Every command that is printed in a document, a docstring or run.sh's comments is one that its script takes.

Blocks are expanded by bash itself, with variables, loops and functions as they stand; in place of python, torchrun and
run.sh stand functions that only note what they were called with, and nothing else can be called.
"""
import ast
import functools
import os
import re
import shlex
import subprocess

import pytest

from conftest import ROOT
from shared.plumbing.errors import InputError
from test_house import ROWS, TABLES, command_of
from tools.bench import load_script

DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("data/*/README.md"),
                    *ROOT.glob("models/README.md")])
SOURCES = sorted([*ROOT.glob("code*/*.py"), *ROOT.glob("shared/**/*.py"), *ROOT.glob("tools/*.py"),
                  *ROOT.glob("data/**/*.py")])
pytestmark = pytest.mark.checkout

COMMAND = re.compile(r"\b(python|torchrun) |bash (run|locate)\.sh")
END = "\x1e"                                            # stands after the words of a command
BASH = r"""
set -u
PATH=/nonexistent
note() { printf '%s\0' "$@" $'\x1e' >&3; }
python() { note python "$@"; }
torchrun() { note torchrun "$@"; }
bash() { note bash "${ROWS:-}" "${TABLES:-}" "${FLAGS:-}" "$@"; }
command_not_found_handle() { :; }
"""


def blocks_of(text):
    """The shell blocks of a document: those in fences, then what stands in backticks in its lines."""
    fenced = re.findall(r"^ *```\w*\n(.*?)^ *```$", text, re.M | re.S)
    inline = re.findall(r"`([^`]+)`", re.sub(r"^ *```\w*\n.*?^ *```$", "", text, flags=re.M | re.S))
    return [block for block in [*fenced, *(" ".join(span.split()) for span in inline)] if COMMAND.search(block)]


def lines_of(text):
    """The commands of a docstring or a comment, and the variables before them, without what is said of them."""
    chosen, goes_on = [], False
    for line in text.splitlines():
        if goes_on or re.match(r" *([A-Z_]+=\S.*)?((python|torchrun) |bash (run|locate)\.sh)| +[A-Z_]+=", line):
            chosen.append(line)
            goes_on = line.endswith("\\")
    return ["\n".join(chosen)] if chosen else []


def without_remarks(block):
    """The block without the words that stand behind its commands, two spaces away; options in brackets are given."""
    lines = []
    for line in block.splitlines():
        command, _, remark = re.sub(r"(?<=\S) {2,}(?=[^\s\\#-])", "\0", line, count=1).partition("\0")
        assert " --" not in remark or not COMMAND.search(remark), line
        command = re.sub(r"\[(?=[-A-Za-z])|(?<=[\w.…])\](?=\s|$)", "", command) if COMMAND.search(command) else command
        more = r"( --?\w+)? (\.\.\.|…)(?=\s|$)"        # of the same; behind a flag it stands for a value
        lines.append(re.sub(more, lambda found: found[0] if found[1] else "", command))
    return "\n".join(lines)


def expand(blocks):
    """[words] of each command of a document's blocks, one after the other, as bash would call it."""
    if not blocks:
        return []
    read, write = os.pipe()
    script = BASH + "\n".join(map(without_remarks, blocks))
    process = subprocess.Popen(["/bin/bash", "-c", f"exec 3>&{write}\n{script}"], pass_fds=[write], cwd="/",
                               stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    os.close(write)
    with open(read) as noted:
        commands = noted.read().split(f"{END}\0")[:-1]
    errors = process.communicate()[1]
    assert not errors, errors
    return [command.split("\0")[:-1] for command in commands]


def commands_of(file):
    text = file.read_text()
    if file.suffix == ".md":
        return expand(blocks_of(text))
    if file.suffix == ".sh":
        return expand(lines_of("\n".join(line[2:] for line in text.splitlines() if line.startswith("# "))))
    nodes = list(ast.walk(ast.parse(text)))
    documented = [node for node in nodes if isinstance(node, (ast.Module, ast.FunctionDef, ast.ClassDef))]
    texts = [ast.get_docstring(node) or "" for node in documented]
    texts += [node.value for node in nodes if isinstance(node, ast.Constant) and str(node.value).startswith("python ")]
    return expand([block for text in texts for block in lines_of(text)])


@functools.cache
def loaded(script):
    return load_script(ROOT / script)


def parse(script, words, monkeypatch):
    """Have a script read a command line. What it does not take ends in SystemExit or an InputError."""
    monkeypatch.setattr("sys.argv", [str(script), *words])
    loaded(script).arguments()


@pytest.mark.parametrize("file", [*DOCUMENTS, *SOURCES, ROOT / "run.sh", ROOT / "locate.sh"],
                         ids=lambda file: str(file.relative_to(ROOT)))
def test_printed_commands_are_taken(file, monkeypatch, capsys):
    for program, *words in commands_of(file):
        if program == "bash" and words[3] != "locate.sh":
            check_run_sh(words, file, monkeypatch)
            continue
        if program == "bash":                           # locate.sh hands its flags on; without any it has its own
            words = ["tools/locate.py", *(words[4:] or ["--map", "x", "--query", "x"])]
        while program == "torchrun" and words[0].startswith("-"):
            words = words[1:]
        if not words[0].startswith("-"):                # python -m and -c are others' programs
            try:
                parse(words[0], words[1:], monkeypatch)
            except (SystemExit, InputError) as error:
                pytest.fail(f"{shlex.join(words)}: {capsys.readouterr().err.strip() or error}")


def check_run_sh(words, file, monkeypatch):
    """ROWS and TABLES name what run.sh has (or what the document adds to it), FLAGS what those rows' scripts take."""
    rows, tables, flags, called, *_ = words
    assert (ROOT / called).is_file()
    by_name = {row[1]: row for row in ROWS}
    assert set(rows.split()) <= by_name.keys() | set(re.findall(r"`row (\S+) ", file.read_text())), rows
    assert set(tables.split()) <= {*TABLES, "all", "NAME"}, tables
    for row in by_name.keys() & set(rows.split() or ["triplet"]):
        if flags and by_name[row][0] == "row":
            script, own = command_of(by_name[row])
            parse(script, [*own, *flags.split()], monkeypatch)


# That it can fail ----------------------------------------------------------------------------------------------------

def test_most_of_what_is_printed_is_found():
    found = {file: len(commands_of(file)) for file in [*DOCUMENTS, *SOURCES, ROOT / "run.sh", ROOT / "locate.sh"]}
    assert sum(found.values()) > 200 and found[ROOT / "run.sh"] == 7 and found[ROOT / "locate.sh"] == 2
    assert found[ROOT / "README.md"] >= 8
    assert found[ROOT / "code_Adapt/train.py"] == 5 and found[ROOT / "docs/running.md"] >= 4


@pytest.mark.parametrize("text, words", [
    ("```\npython code/train.py --data_path D --learning_rate 1\n```", "unrecognized arguments: --learning_rate"),
    ("```\nB=\"--data_path D --epoch 1\"\npython code/train.py $B   words said of it\n```", "arguments: --epoch 1"),
    ("```\npython code/train.py --data_path D \\\n  --arch resnet19\n```", "resnet19: choose one of resnet18"),
    ("Say `python code/test.py --run\nR --arch x`.", "unrecognized arguments: --arch"),
    ("```\npython code/test.py [--data_path D]\n```", "required: --run"),
    ("```\nfor rate in 1 x; do\n  torchrun --nproc_per_node=2 code/train.py --data_path D --lr $rate\ndone\n```",
     "invalid not_negative value: 'x'"),
    ("```\nFLAGS=\"--img_size x\" ROWS=\"triplet simsiam\" bash run.sh\n```", "invalid positive value: 'x'"),
])
def test_a_flag_that_does_not_exist_fails(tmp_path, monkeypatch, capsys, text, words):
    (tmp_path / "page.md").write_text(text)
    with pytest.raises((pytest.fail.Exception, SystemExit)) as caught:
        test_printed_commands_are_taken(tmp_path / "page.md", monkeypatch, capsys)
    assert words in str(caught.value) + capsys.readouterr().err


@pytest.mark.parametrize("text", ["ROWS=\"triplet tripled\" bash run.sh", "TABLES=\"ablation regoins\" bash run.sh",
                                  "python code/train.py --data_path $UNKNOWN"])
def test_a_row_a_table_or_a_variable_that_does_not_exist_fails(tmp_path, monkeypatch, capsys, text):
    (tmp_path / "page.md").write_text(f"```\n{text}\n```")
    with pytest.raises(AssertionError):
        test_printed_commands_are_taken(tmp_path / "page.md", monkeypatch, capsys)
