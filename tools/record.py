"""Keep what a published figure can be looked up in: records/DATE_ROW_seedN/, a few KB of a finished run.

    python tools/record.py --run results/S1S2align200/triplet/seed* --machine "one core, others beside it"
    python tools/record.py --run results/OTHER --row my-idea_seed0 --commit 4ba61a3 --machine "one H100"

args.json, metrics.json and, of a run that trained, log.txt are copied; of a path the last part is kept, since a path of
one machine says nothing on another. record.json has the row, the day, the commit and the machine. A record that is
there stays as it is. The README's figures are means over the records of a row, and tests/test_records.py holds both
together.
"""
import argparse
import json
import re
import subprocess
import sys
from datetime import date
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository's root, where shared/ is

from shared.plumbing.errors import ROOT, InputError, run_script, several
from shared.plumbing.files import make_folder, write_text

KEPT = ("args.json", "metrics.json", "log.txt")
COMMIT = re.compile("[0-9a-f]{7,40}")
NAME = re.compile(r"[\w+-]+")
# A path from a root, a home, a folder above or a share; in quotation marks, as JSON has it, it may hold blanks.
QUOTED = re.compile(r'"(?:file://|[A-Za-z]:|~\w*|\.\.?)?[/\\][^"\n]*?([^"/\\\n]+)[/\\]*"')
PATH = re.compile(r"""(?:file://|(?<![\w.~/:])/(?=/)|(?<![\w.~/])(?:~\w*|\.\.?)?)/(?:[^\s"',:/]+/)*([^\s"',:/]+)""")


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     allow_abbrev=False)
    parser.add_argument("--run", required=True, nargs="+", type=Path, help="folders of finished runs, ROW/seedN each")
    parser.add_argument("--machine", required=True, help="on what the seconds were taken, and what ran beside it")
    parser.add_argument("--row", help="of a single run (default: the last two parts of its path)")
    parser.add_argument("--commit", help="that trained it (default: what is checked out now, without changes)")
    parser.add_argument("--out", type=Path, default=ROOT / "records", metavar="FOLDER")
    return parser.parse_args()


def main(args):
    if args.row and len(args.run) > 1:
        raise InputError(f"--row {args.row} is the name of one run, and there are {len(args.run)}: leave it out, or "
                         "record them one by one")
    if not args.machine.strip():
        raise InputError("--machine is empty: say on what the seconds were taken")
    if args.commit and not COMMIT.fullmatch(args.commit):
        raise InputError(f"--commit {args.commit}: give the 7 to 40 digits of a commit's hash")
    unfinished = [str(run) for run in args.run if not (run / "metrics.json").is_file()]
    if unfinished:
        raise InputError(f"--run {', '.join(unfinished)}: no metrics.json; give folders of runs that are finished and "
                         "tested")
    names = [args.row or "_".join(run.resolve().parts[-2:]) for run in args.run]
    wrong = [name for name in names if not NAME.fullmatch(name)]
    if wrong:
        raise InputError(f"--row {', '.join(wrong)}: give a name of letters, digits, + and - alone")
    # What was interrupted has no record.json, which is written last: it is written once more.
    recorded = {file.parent.name.split("_", 1)[-1]: str(file.parent) for file in args.out.glob("*_*/record.json")}
    there = [recorded[name] for name in names if name in recorded]
    if there:
        raise InputError(f"{', '.join(there)}: recorded already; a record is not changed")
    if len(set(names)) < len(names):
        raise InputError(f"--run: two of the runs would be called the same: {', '.join(names)}")
    problems = []
    texts = [texts_of(run, problems) for run in args.run]
    if problems:
        raise several("--run: of these runs not all can be read; run their test.py once more:", problems)
    commit = args.commit or checked_out()
    for run, name, kept in zip(args.run, names, texts, strict=True):
        folder = args.out / f"{day_of(run)}_{name}"
        make_folder(folder, "--out")
        for file, text in kept.items():
            write_text(folder / file, text)
        what = {"row": name, "day": day_of(run), "commit": commit, "machine": without_paths(args.machine)}
        write_text(folder / "record.json", json.dumps(what, indent=1))
        print(folder)


def texts_of(run, problems):
    """What is kept of a run, {file: text}. What is missing, or not what it should be, is added to the problems."""
    texts = {}
    for name in KEPT:
        if name == "log.txt" and not (run / name).exists():         # a test, of a run that trained elsewhere
            continue
        try:
            texts[name] = without_paths((run / name).read_text(encoding="utf-8"))
            if name != "log.txt" and not isinstance(json.loads(texts[name]), dict):
                raise ValueError("no JSON object")
        except (OSError, ValueError) as error:
            problems.append(f"{run / name} is not what a finished run has ({error})")
    return texts


def day_of(run):
    """The day on which a run got its figures."""
    return date.fromtimestamp((run / "metrics.json").stat().st_mtime).isoformat()


def checked_out():
    """The commit that is checked out. InputError where there is none, or what is there differs from it."""
    done = [subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True)
            for words in (("rev-parse", "--short", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))]
    if any(step.returncode for step in done) or done[1].stdout:
        raise InputError("what is checked out is no commit, or differs from it: name the one that trained it by "
                         "--commit")
    return done[0].stdout.strip()


def without_paths(text):
    """Text with of each path that begins at a root, a home or a folder above, its last part alone."""
    return PATH.sub(r"\1", QUOTED.sub(r'"\1"', text))


if __name__ == "__main__":
    run_script(main, arguments)
