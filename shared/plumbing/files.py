"""Files: written beside and then renamed, so that nothing is lost; tensors read as data, never as code.

torch is imported where there are tensors: it takes seconds, and most scripts of run.sh read and write text alone.
"""
import csv
import io
import os
import tempfile
from contextlib import contextmanager
from pathlib import Path

from shared.plumbing.errors import InputError, OutputError


def half_of(file, suffix=""):
    """The hidden path that a file is first written to; a file of the user's may well be called NAME.part."""
    return Path(file).with_name(f".{Path(file).name}.part{suffix}")


def halves_of(file):
    """The paths that write_bytes and written_beside may leave where they are killed."""
    return [half_of(file), half_of(file, Path(file).suffix)]


def write_bytes(file, content):
    """Write beside, then rename: a reader sees the old file or the new one, never a part.

    Raises OutputError where that fails (a full disk, a read-only folder); what was there before stays.
    """
    beside = half_of(file)
    try:
        try:
            with open(beside, "wb") as out:
                out.write(content)
                out.flush()
                os.fsync(out.fileno())
            os.replace(beside, file)
        except OSError:
            beside.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise OutputError(f"{file} cannot be written ({error.strerror}); what was there before is untouched")


@contextmanager
def written_beside(file):
    """A path beside a file for a library to write to, renamed to the file where nothing went wrong.

    Raises OutputError as write_bytes does; what was there before stays.
    """
    file = Path(file)
    beside = half_of(file, file.suffix)                 # libraries tell a format by its suffix
    try:
        beside.unlink(missing_ok=True)
        try:
            yield beside
            with open(beside, "rb+") as written:
                os.fsync(written)
            os.replace(beside, file)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"{file} cannot be written ({error.strerror or error}); what was there before is untouched")


def append_text(file, text):
    try:
        with open(file, "a", encoding="utf-8") as out:
            out.write(text)
    except OSError as error:
        raise OutputError(f"{file} cannot be written ({error.strerror})")


def write_text(file, text):
    # A name of a file that is no UTF-8 is written as the bytes that it is.
    write_bytes(file, (text.rstrip("\n") + "\n").encode(errors="surrogateescape"))


def write_rows(file, columns, rows):
    """A CSV of dictionaries; a row may lack a column."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(file, text.getvalue())


def read_rows(file, errors="strict"):
    """The rows of a CSV in UTF-8 as dictionaries of text, without the spaces around names and values.

    What spreadsheets write is read, too: a byte order mark, and semicolons or tabs where the first line has no comma.
    errors: as open takes it. InputError where it is not UTF-8, or a row has more fields than the first line names.
    """
    try:
        with open(file, newline="", encoding="utf-8-sig", errors=errors) as text:
            first = text.readline()
            text.seek(0)
            delimiter = next((mark for mark in ",;\t" if mark in first), ",")
            reader = csv.DictReader(text, delimiter=delimiter, restval="", skipinitialspace=True)
            return [_stripped(row, file, reader.line_num) for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{file} cannot be read as CSV in UTF-8 ({error}): save it as that")


def _stripped(row, file, line):
    if any(row.pop(None, ())):
        raise InputError(f"{file}, line {line}: more fields than the first line names; put text with commas in quotes")
    return {name.strip(): value.strip() for name, value in row.items()}


def state_on_cpu(module):
    """A module's state_dict on the CPU: so saved, torch.load reads it on a machine without the device, too."""
    return {name: tensor.cpu() for name, tensor in module.state_dict().items()}


def write_tensors(file, state):
    import torch
    content = io.BytesIO()
    torch.save(state, content)
    write_bytes(file, content.getvalue())


def write_figure(file, figure, dpi=130):
    """A matplotlib Figure as a PNG; its folder is made where it is missing."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=dpi)
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    write_bytes(file, content.getvalue())


def load_tensors(path, what):
    """torch.load with weights_only=True, on the CPU; InputError where that is not possible."""
    if not Path(path).is_file():
        raise InputError(f"{what}: there is no file {path}")
    import torch
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise InputError(f"{what}: {path} cannot be read ({error.strerror})")
    except Exception:                                   # bytes that are no pickle raise whatever they spell
        raise InputError(f"{what}: {path} cannot be read as tensors: it is damaged, no file of torch.save, or holds "
                         "more than tensors; give another")


def can_be_written_to(folder):
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:
        return False
    return True


def make_folder(folder, flag):
    """InputError where it cannot be made or written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        why = "a file has that name" if folder.is_file() else error.strerror
        raise InputError(f"{flag}: {folder} cannot be made ({why}); give another place")
    if not can_be_written_to(folder):
        raise InputError(f"{flag}: {folder} cannot be written to; give another place")


def require_ours(file, flag, is_ours):
    """InputError where a file of that name is there already that this script did not write."""
    make_folder(file.parent, flag)
    if file.exists() and not is_ours(file):
        raise InputError(f"{flag} {file} is there already, and not of this script: give another name")
