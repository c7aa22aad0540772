"""Downloads that go on after an interruption, and archives unpacked file by file."""
import gzip
import http.client
import tarfile
import urllib.error
import urllib.request
import zlib
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from shared.plumbing.errors import InputError
from shared.plumbing.files import write_bytes, write_text

PORTION = 1 << 20                                       # bytes read at a time
PATIENCE = 60                                           # seconds without a byte


def download(url, file):
    """Fetch url to file, unless it is there; what an earlier call has fetched is kept where the server can go on.

    Some servers make their archives anew at each request and can neither go on nor tell a size; then it starts over.
    Raises InputError, in one sentence, where there is no network or the answer ends too soon.
    """
    file = Path(file)
    if file.is_file():
        return
    part, tag = Path(f"{file}.part"), Path(f"{file}.tag")
    file.parent.mkdir(parents=True, exist_ok=True)
    fetched = part.stat().st_size if part.is_file() and tag.is_file() else 0
    request = urllib.request.Request(url)
    if fetched:
        request.add_header("Range", f"bytes={fetched}-")
        request.add_header("If-Range", tag.read_text().strip())      # else the whole file, if it has changed
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            if answer.status != 206:
                fetched = 0
            length = answer.headers["Content-Length"]
            total = fetched + int(length) if length else None
            bar = tqdm(total=total, initial=fetched, unit="B", unit_scale=True, desc=file.name, disable=None)
            with bar, open(part, "ab" if fetched else "wb") as out:
                # Only now: a tag beside bytes of another answer would join two files to one.
                tag.unlink(missing_ok=True)
                if answer.headers["ETag"]:
                    write_text(tag, answer.headers["ETag"])
                while portion := answer.read(PORTION):
                    out.write(portion)
                    bar.update(len(portion))
    except urllib.error.HTTPError as error:
        if error.code == 416 and fetched:                             # killed between the last byte and the new name
            part.unlink()
            return download(url, file)
        raise InputError(f"{url} cannot be fetched ({error.code} {error.reason}): fetch it by hand to {file}")
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise InputError(f"{url} cannot be fetched ({reason}): the same command goes on when there is a network; "
                         f"or fetch it by hand to {file}")
    size = part.stat().st_size
    if total is not None and size != total:
        raise InputError(f"{url} ended after {size / 1e6:.1f} of {total / 1e6:.1f} MB: the same command goes on")
    part.replace(file)
    tag.unlink(missing_ok=True)


def unpack(archive, out, folder, last):
    """Write the files of one folder of a tar archive, PREFIX/FOLDER/..., to OUT/FOLDER/...; those that are there stay.

    last: a name that is written when all others are, so that where it is the folder is whole.
    Raises InputError where the archive is damaged or ends too soon; it is removed then, to be fetched again.
    """
    held = {}
    try:
        with tarfile.open(archive, "r:*") as content:
            for member in tqdm(content, desc="unpacking", disable=None):
                path = PurePosixPath(*PurePosixPath(member.name).parts[1:])
                if not member.isfile() or path.parts[:1] != (folder,) or ".." in path.parts:
                    continue
                file = out / path
                if file.name == last:
                    held[file] = content.extractfile(member).read()
                elif not file.is_file():
                    _write(file, content.extractfile(member).read())
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        archive.unlink()
        raise InputError(f"{archive} was damaged ({error}) and is removed: the same command fetches it again")
    for file, text in held.items():
        _write(file, text)


def _write(file, content):
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{file.parent} cannot be made ({error.strerror}): make room for it")
    write_bytes(file, content)
