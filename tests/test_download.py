"""Downloads from a server on this machine: they go on after an interruption, and what comes is cut like the rest."""
import http.server
import io
import json
import tarfile
import threading

import numpy as np
import pytest
from PIL import Image

from conftest import script
from data.download import download, unpack
from shared.plumbing.errors import InputError

S1S2 = "data/S1S2align200/prepare.py"


class Server(http.server.ThreadingHTTPServer):
    """Serves one file; `cut` ends the next answer after so many bytes, as a broken line does."""
    content, tag, knows_ranges, tells_length, cut = b"", "one", True, True, None

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.sent, self.asked = 0, []

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/archive"


class Handler(http.server.BaseHTTPRequestHandler):
    """A server of one archive, which notes what part of it it was asked for."""

    def do_GET(self):
        server, wanted = self.server, self.headers["Range"]
        server.asked.append(wanted)
        if self.path != "/archive":
            self.send_error(404)
            return
        may_go_on = wanted and server.knows_ranges and self.headers["If-Range"] == f'"{server.tag}"'
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if may_go_on else 0
        if may_go_on and start >= len(server.content):
            self.send_error(416)
            return
        body = server.content[start:]
        self.send_response(206 if may_go_on else 200)
        if server.tag:
            self.send_header("ETag", f'"{server.tag}"')
        if server.tells_length:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        cut, server.cut = server.cut, None
        server.sent += len(body[:cut])                  # before who reads it goes on
        self.wfile.write(body[:cut])

    def log_message(self, *arguments):
        """Silence."""


@pytest.fixture
def server():
    server = Server()
    server.content = np.random.default_rng(0).bytes(3_000_000)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_file_is_fetched_once(server, tmp_path):
    download(server.url, tmp_path / "new/file")
    download(server.url, tmp_path / "new/file")
    assert (tmp_path / "new/file").read_bytes() == server.content and server.asked == [None]
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["file"]


def test_an_interrupted_download_goes_on(server, tmp_path):
    server.cut = 1_200_000
    with pytest.raises(InputError, match="the same command goes on"):
        download(server.url, tmp_path / "file")
    assert not (tmp_path / "file").exists()
    download(server.url, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == server.content
    assert server.asked == [None, "bytes=1200000-"] and server.sent == len(server.content), "nothing was sent twice"


@pytest.mark.parametrize("change", [{"tag": "two"}, {"knows_ranges": False}])
def test_what_has_changed_or_cannot_go_on_starts_over(server, tmp_path, change):
    server.cut = 1_200_000
    with pytest.raises(InputError, match="the same command goes on"):
        download(server.url, tmp_path / "file")
    server.content = server.content[::-1]
    for name, value in change.items():
        setattr(server, name, value)
    download(server.url, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == server.content


def test_a_kill_before_the_new_name_is_mended(server, tmp_path):
    """All bytes are there, and the server has none to add."""
    (tmp_path / "file.part").write_bytes(server.content)
    (tmp_path / "file.tag").write_text('"one"')
    download(server.url, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == server.content and server.asked == ["bytes=3000000-", None]


def test_a_tag_is_not_left_beside_bytes_of_another_answer(server, tmp_path):
    (tmp_path / "file.part").write_bytes(b"of another file")
    (tmp_path / "file.tag").write_text('"one"')
    server.knows_ranges, server.tag, server.cut = False, None, 1_000_000
    with pytest.raises(InputError, match="the same command goes on"):
        download(server.url, tmp_path / "file")
    assert not (tmp_path / "file.tag").exists()
    server.knows_ranges, server.tag = True, "one"
    download(server.url, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == server.content and server.asked[-1] is None


def test_a_folder_that_cannot_be_made_does_not_cost_the_archive(published, tmp_path):
    (tmp_path / "a.tar.gz").write_bytes(archive_of(published))
    (tmp_path / "out").mkdir()
    (tmp_path / "out/dataset").write_text("in the way")
    with pytest.raises(InputError, match="dataset/opt.* cannot be made"):
        unpack(tmp_path / "a.tar.gz", tmp_path / "out", "dataset", last="metadata.json")
    assert (tmp_path / "a.tar.gz").is_file()


def test_no_network_and_no_such_file_are_one_sentence(server, tmp_path):
    with pytest.raises(InputError, match="cannot be fetched .404 .*fetch it by hand"):
        download(server.url + "/elsewhere", tmp_path / "file")
    with pytest.raises(InputError, match="cannot be fetched .*Connection refused.*goes on when there is a network"):
        download("http://127.0.0.1:9/archive", tmp_path / "file")


def tile_note(name, region, left, top):
    corners = [[left, top], [left + 2400, top], [left + 2400, top - 2400], [left, top - 2400]]
    return {"fragment_filename": name, "opt_tile_name": f"S2A_MSIL1C_2020_N0209_R027_{region}_2020.SAFE",
            "corners_EPSG:3395": corners}


@pytest.fixture
def published(tmp_path):
    """A made-up set of six tiles of 240 px: 004 overlaps 003 by half a tile, 005 is 000 again, elsewhere."""
    folder = tmp_path / "published/dataset"
    rng, notes = np.random.default_rng(0), []
    images = [rng.integers(0, 256, (240, 240, 3), np.uint8) for _ in range(5)]
    for i, image in enumerate([*images, images[0]]):
        for modality, pixels in (("opt", image), ("sar", np.repeat(image[..., :1], 3, 2))):
            (folder / modality).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / modality / f"{i:03d}.png")
        left = 3000.0 * 3 + 1200 if i == 4 else 3000.0 * i
        notes.append(tile_note(f"{i:03d}.png", "T11SLT", left, 5000.0))
    (folder / "metadata.json").write_text(json.dumps(notes))
    return folder.parent


def archive_of(folder, names=None):
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as archive:
        archive.add(folder, "Optical-SAR-dataset-34d7e20")
        note = tarfile.TarInfo("Optical-SAR-dataset-34d7e20/README.md")
        archive.addfile(note)
    return content.getvalue()


def files_of(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_the_published_set_with_one_command(server, published, tmp_path):
    server.content = archive_of(published)
    flags = ["--crop", "48", "--test_share", "0.5", "--keep_tiles"]
    by_hand = script(S1S2, published, tmp_path / "by_hand", *flags)
    assert by_hand.returncode == 0, by_hand.stderr
    server.cut = len(server.content) // 2
    broken = script(S1S2, "--download", tmp_path / "out", "--url", server.url, *flags)
    assert broken.returncode == 2 and "the same command goes on" in broken.stderr and "Traceback" not in broken.stderr
    done = script(S1S2, "--download", tmp_path / "out", "--url", server.url, *flags)
    assert done.returncode == 0, done.stderr
    files = files_of(tmp_path / "out")
    source = {name for name in files if name.startswith("source")}
    assert {name: files[name] for name in files.keys() - source} == files_of(tmp_path / "by_hand")
    assert source == {f"source/{name}" for name in files_of(published)}, "the archive itself is gone"
    again = script(S1S2, "--download", tmp_path / "out", "--url", server.url, *flags)
    assert again.returncode == 0 and len(server.asked) == 2, "it is not fetched again"


def test_an_archive_that_ends_too_soon_is_fetched_again(server, published, tmp_path):
    """Without a length nothing tells that the line broke, but the archive does."""
    server.content, server.tells_length = archive_of(published), False
    server.cut = len(server.content) // 2
    command = [S1S2, "--download", tmp_path / "out", "--url", server.url, "--crop", "48"]
    broken = script(*command)
    assert broken.returncode == 2 and "was damaged" in broken.stderr and "Traceback" not in broken.stderr
    assert not (tmp_path / "out/pairs.csv").exists()
    assert script(*command).returncode == 0 and (tmp_path / "out/pairs.csv").is_file()


def test_an_archive_cannot_write_elsewhere(tmp_path):
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as archive:
        for name in ("p/dataset/../../evil", "/p/dataset/good", "p/dataset/link"):
            member = tarfile.TarInfo(name)
            member.size = 0
            if name.endswith("link"):
                member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(member, io.BytesIO())
    (tmp_path / "a.tar.gz").write_bytes(content.getvalue())
    unpack(tmp_path / "a.tar.gz", tmp_path / "out", "dataset", last="metadata.json")
    assert {str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*") if not file.is_dir()} <= {
        "a.tar.gz", "out/dataset/good"}


def test_no_test_place_shows_training_ground(published, tmp_path):
    """Whatever the split: the pairs that are left have no crop over another split's tile, and no tile twice."""
    lost = set()
    for seed in range(8):
        out = tmp_path / f"seed{seed}"
        done = script(S1S2, published, out, "--crop", "48", "--test_share", "0.5", "--seed", seed)
        assert done.returncode == 0, done.stderr
        assert "left out: tile 00" in done.stdout and "again" in done.stdout
        lines = [line.split(",") for line in (out / "pairs.csv").read_text().splitlines()[1:]]
        tiles = {line[3]: line[0] for line in lines}
        assert len({"000", "005"} & tiles.keys()) == 1
        squares = [(split, float(x), float(y), float(size)) for split, _, _, _, x, y, size in lines]
        for split, x, y, size in squares:
            for other, ox, oy, other_size in squares:
                assert split == other or max(abs(x - ox), abs(y - oy)) >= (size + other_size) / 2 - 11
        assert {f"{line[1]}.png" for line in lines} == {file.name for file in out.glob("t*/opt/*.png")}
        if tiles.get("003") != tiles.get("004"):
            test_tile = "003" if tiles["003"] == "test" else "004"
            assert sum(line[3] == test_tile for line in lines) == 10, "of 25 crops, two columns lie clear of the other"
            lost.add(test_tile)
    assert lost, "the overlap was met"


def test_either_a_source_or_a_download(tmp_path, published):
    for arguments in ([tmp_path / "out"], [published, tmp_path / "out", "--download"]):
        done = script(S1S2, *arguments)
        assert done.returncode == 2 and "either SOURCE or --download" in done.stderr
