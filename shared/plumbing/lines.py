"""The lines of a table that takes long to measure, kept as they come."""
import json

from shared.plumbing.files import write_text


class Lines:
    """Lines, {column: value}, printed and kept: what was interrupted goes on behind the last of them.

    file: where they are kept until all are there. args: the flags that they belong to; with others, one begins anew.
    """

    def __init__(self, file, args):
        self.file = file
        self.given = {name: str(value) for name, value in vars(args).items() if name not in ("device", "workers")}
        file.parent.mkdir(parents=True, exist_ok=True)
        kept = json.loads(file.read_text()) if file.is_file() else {}
        self.lines = kept["lines"] if kept.get("given") == self.given else []

    def has(self, **wanted):
        return any(wanted.items() <= line.items() for line in self.lines)

    def add(self, line):
        print("  ".join(f"{name} {value}" for name, value in line.items()), flush=True)
        self.lines.append(line)
        write_text(self.file, json.dumps({"given": self.given, "lines": self.lines}, indent=1))
