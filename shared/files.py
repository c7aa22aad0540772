"""Writing files so that nothing is lost: beside, then renamed."""
import csv
import io
import os
from pathlib import Path

from shared.errors import InputError


def write_bytes(file, content):
    """Write beside, then rename: a reader sees the old file or the new one, never a part.

    Raises InputError where that fails (a full disk, a read-only folder); what was there before stays.
    """
    beside = Path(f"{file}.part")
    try:
        beside.write_bytes(content)
        os.replace(beside, file)
    except OSError as error:
        raise InputError(f"{file} cannot be written ({error.strerror}); what was there before is untouched")


def write_text(file, text):
    write_bytes(file, (text.rstrip("\n") + "\n").encode())


def write_rows(file, columns, rows):
    """A CSV of dictionaries; a row may lack a column."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(file, text.getvalue())
