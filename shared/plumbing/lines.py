"""The lines of a table that takes long to measure, kept as they come."""
import json

from shared.plumbing.errors import InputError
from shared.plumbing.files import write_text


class Lines:
    """Lines, {column: value}, printed and kept: what was interrupted goes on behind the last of them.

    file: where they are kept until all are there. args: the flags that they belong to, and asked: what else; with
    others, one begins anew. InputError where the file is damaged.
    """

    def __init__(self, file, args, **asked):
        self.file = file
        given = {**vars(args), **asked}
        self.given = {name: str(value) for name, value in given.items() if name not in ("device", "workers")}
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            kept = json.loads(file.read_text()) if file.is_file() else {}
        except ValueError:
            raise InputError(f"{file} is damaged: remove it, and the same command begins anew")
        self.lines = kept["lines"] if kept.get("given") == self.given else []

    def has(self, **wanted):
        return any(wanted.items() <= line.items() for line in self.lines)

    def add(self, line):
        print("  ".join(f"{name} {value}" for name, value in line.items()), flush=True)
        self.lines.append(line)
        write_text(self.file, json.dumps({"given": self.given, "lines": self.lines}, indent=1))
