"""Find the places of SAR images on a map: the first k optical images of a gallery, with scores.

    python tools/search.py --run results/NAME --gallery MAP_FOLDER --query sar.png other.png
    python tools/search.py --run results/NAME --gallery MAP_FOLDER --save_embeddings MAP_EMBEDDINGS --query SAR_FOLDER
    python tools/search.py --run results/NAME --gallery MAP_EMBEDDINGS --query "SAR_FOLDER/*.png" --csv answers.csv

MAP_FOLDER holds optical images; MAP_EMBEDDINGS is what --save_embeddings wrote (here or of a test.py), so that a map
is embedded once; with both flags it is embedded again only where the images, the run or --tta are others. Prints names,
scores and positions where they are known, and writes a picture. --index ivf searches an approximate index, for maps of
many millions (faiss, requirements-optional.txt), and prints its recall against the exact search.
"""
import argparse
import glob
import math
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository's root, where shared/ is

from shared import options
from shared.dataset import decode_images, showing_nothing
from shared.evaluate import FEATURES, embed, first_answers
from shared.model import load_model
from shared.plumbing.device import autocast, choose_device
from shared.plumbing.embeddings import (holds_embeddings, made_by, read_embeddings, reuse_embeddings, rows_not_finite,
                                        save_embeddings)
from shared.plumbing.errors import InputError, installation, run_script, several
from shared.plumbing.files import can_be_written_to, make_folder, require_ours, write_rows
from shared.plumbing.packed import SHIPPED
from shared.reading.layouts import SUFFIXES, list_images, read_pairs_csv
from shared.reading.readers import flags_of, readers_of_run
from tools.search_picture import FORMATS, draw, is_our_picture, left_out, write_picture

IMAGES_AT_ONCE = 512                                    # decoded and embedded
COLUMNS = ("query", "rank", "name", "score", "x", "y")


class Embedder:
    """A finished run that embeds image files portion by portion: the memory does not grow with their number."""

    def __init__(self, run, readers, device, amp, tta, workers):
        self.model, self.img_size = load_model(run, device)
        self.source = made_by(run, tta=tta, **flags_of(readers))
        self.readers, self.workers = readers, workers
        self.embed = partial(embed, self.model, device=device, autocast=autocast(device, amp), tta=tta)

    def decode(self, files, modality, size):
        """(n, size, size, 3) uint8 of `opt` or `sar` images: all that is decoded here."""
        return decode_images(files, size, self.workers, self.readers[modality])

    def check(self, files, modality, problems):
        """Decode every file once, before an hour of embedding can end at a bad one; what is wrong goes to problems."""
        for portion in tqdm(portions_of(files), desc=f"check {modality}", leave=False, disable=None):
            try:
                images = self.decode(portion, modality, self.img_size)
            except InputError as error:
                problems.extend(error.problems)
                continue
            if modality == "sar":                       # a gallery may well have water
                problems.extend(f"{portion[i]}: shows nothing that could be found, every pixel is alike"
                                for i in showing_nothing(images))

    def portions(self, files, modality):
        """Yield {"FC": (n, D), "POOL5": (n, C)}, as embed gives them. The next images are decoded meanwhile."""
        portions = portions_of(files)
        with ThreadPoolExecutor(1) as ahead:
            coming = ahead.submit(self.decode, portions[0], modality, self.img_size)
            for i, portion in enumerate(tqdm(portions, desc=f"embed {modality}", leave=False, disable=None), 1):
                images = coming.result()
                if i < len(portions):
                    coming = ahead.submit(self.decode, portions[i], modality, self.img_size)
                embeddings = self.embed(images, modality)
                for feature, vectors in embeddings.items():
                    bad = rows_not_finite(vectors)
                    if bad:
                        raise InputError(f"the {feature} vector of {portion[bad[0]]} holds NaN or infinity: "
                                         "try --amp off, or another run")
                yield embeddings

    def vectors(self, files, modality, feature):
        """(N, D) float32, the one feature of all of them."""
        vectors, begin = None, 0
        for embeddings in self.portions(files, modality):
            portion = embeddings[feature]
            if vectors is None:
                vectors = torch.empty(len(files), portion.shape[1])
            vectors[begin:begin + len(portion)] = portion
            begin += len(portion)
        return vectors


def portions_of(files):
    return [files[i:i + IMAGES_AT_ONCE] for i in range(0, len(files), IMAGES_AT_ONCE)]


def list_queries(paths, problems):
    """The files that paths name, each once: a file, the images of a folder, or what a glob matches."""
    files = []
    for path in paths:
        if path.is_dir():
            files += list_images(path, problems).values()
        elif path.exists() or not glob.has_magic(str(path)):
            files.append(path)
        else:
            matches = sorted(glob.glob(str(path), recursive=True))
            files += map(Path, matches)
            if not matches:
                problems.append(f"{path}: no file is called so")
    return list(dict.fromkeys(files))


def open_gallery(folder, save_to, feature, source):
    """(embeddings, rows, files): the embeddings (M, D) that are there already, or None; what is to be embedded.

    rows: M dictionaries of name, and any of file, x_m, y_m.
    """
    if not folder.is_dir():
        raise InputError(f"--gallery {folder}: there is no such folder")
    if holds_embeddings(folder, "opt"):
        if save_to:
            raise InputError(f"--save_embeddings {save_to}: --gallery {folder} holds embeddings; give the images")
        return *read_embeddings(folder, "opt", feature, source), []
    files, rows = list_gallery(folder)
    if not save_to:
        return None, rows, files
    if save_to.resolve() == folder.resolve():
        raise InputError(f"--save_embeddings {save_to} is the folder of the images: give one of its own")
    make_folder(save_to, "--save_embeddings")
    gallery = reuse_embeddings(save_to, "opt", feature, source, files)
    return gallery, rows, files if gallery is None else []


def list_gallery(folder):
    """(files, rows) of a folder of images, rows as open_gallery gives them."""
    problems = []
    files = list(list_images(folder, problems).values())
    if not files:
        raise InputError(f"--gallery {folder} holds neither images ({', '.join(SUFFIXES)}) nor embeddings")
    if problems:
        raise several(f"--gallery {folder} has {len(problems)} problem(s):", problems)
    own = folder.resolve()
    rows = [{"name": file.stem, "file": str(own / file.name), **position}
            for file, position in zip(files, positions_of(files))]
    return files, rows


def positions_of(files):
    """x_m and y_m of each file from a pairs.csv in the folder, or in the data set that it is DATA/SPLIT/opt of."""
    folder = files[0].parent.resolve()
    places = read_pairs_csv(folder) or read_pairs_csv(folder.parent.parent, folder.parent.name)
    rows = [places.get(file.stem, {}) for file in files]
    return [{"x_m": row["x_m"], "y_m": row["y_m"]} if "x_m" in row and "y_m" in row else {} for row in rows]


def approximate(query, gallery, k, probes):
    """first_answers from an inverted-file index of about 4 sqrt(M) cells, of which `probes` are looked into."""
    try:
        import faiss
    except ImportError:
        raise InputError(f"--index ivf needs faiss: {installation()}")
    # faiss wants 39 vectors for each cell, and learns from at most 256.
    cells = max(1, min(round(4 * math.sqrt(len(gallery))), len(gallery) // 39))
    dim = gallery.shape[1]
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(dim), dim, cells, faiss.METRIC_INNER_PRODUCT)
    sample = torch.randperm(len(gallery))[:256 * cells]
    index.train(np.ascontiguousarray(gallery[sample].float().numpy()))
    for i in range(0, len(gallery), 100_000):
        index.add(np.ascontiguousarray(gallery[i:i + 100_000].float().numpy()))
    index.nprobe = min(probes, cells)
    start = time.perf_counter()
    scores, rows = index.search(query.numpy(), k)
    milliseconds = 1e3 * (time.perf_counter() - start) / len(query)
    print(f"approximate: {index.nprobe} of {cells} cells, {milliseconds:.2f} ms for a query")
    return torch.from_numpy(scores), torch.from_numpy(rows)


def is_our_csv(file):
    return file.is_file() and file.read_bytes().partition(b"\n")[0].strip() == ",".join(COLUMNS).encode()


def choose_picture(picture, run):
    """The picture's file, or None where none is wanted; in the current folder where the run is a file, or read-only."""
    if picture == Path("none"):
        return None
    if picture is None and run.is_dir() and can_be_written_to(run):
        return run / "search.png"
    picture = picture or Path("search.png")
    if picture.suffix.lower() not in FORMATS:
        raise InputError(f"--picture {picture}: give a name that ends in .png or .jpg, or none")
    require_ours(picture, "--picture", is_our_picture)
    return picture


def write_csv(queries, found, rows, file):
    lines = [{"query": query, "rank": rank, "name": rows[row]["name"], "score": f"{score:.6f}",
              "x": rows[row].get("x_m", ""), "y": rows[row].get("y_m", "")}
             for query, answers in zip(queries, found) for rank, row, score in answers]
    write_rows(file, COLUMNS, lines)


def position_text(row):
    if row.get("x_m") in (None, ""):
        return ""
    return f"  x {float(row['x_m']):.0f} m, y {float(row['y_m']):.0f} m"


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     allow_abbrev=False)
    parser.add_argument("--run", type=Path, default=SHIPPED,
                        help="the folder of a run, or a packed one (default: that of models/)")
    parser.add_argument("--gallery", type=Path, required=True, help="a folder of optical images, or of embeddings")
    parser.add_argument("--query", type=Path, nargs="+", required=True, help="SAR images, folders of them, or globs")
    parser.add_argument("-k", type=options.positive, default=5, help="answers of each query")
    parser.add_argument("--feature", choices=FEATURES, default="FC")
    options.add_tta(parser)
    options.add_reading(parser)
    parser.add_argument("--save_embeddings", type=Path, metavar="FOLDER",
                        help="write the gallery's embeddings there, or take them where they are there already")
    parser.add_argument("--index", choices=("exact", "ivf"), default="exact")
    parser.add_argument("--probes", type=options.positive, default=16,
                        help="cells of the ivf index that are looked into: more is slower and finds more")
    parser.add_argument("--csv", type=Path, metavar="FILE", help=f"write the answers there: {', '.join(COLUMNS)}")
    parser.add_argument("--picture", type=Path, metavar="FILE",
                        help="a PNG or JPEG, or none (default: search.png in the run's folder, or in the current one "
                             "where the run's is read-only)")
    options.add_device(parser)
    return parser.parse_args()


def search(args):
    device = choose_device(args.device)
    readers = readers_of_run(args.run, args, is_own_data=False)
    run = Embedder(args.run, readers, device, args.amp, args.tta, args.workers)
    picture = choose_picture(args.picture, args.run)
    if args.csv:
        require_ours(args.csv, "--csv", is_our_csv)

    problems = []
    queries = list_queries(args.query, problems)
    gallery, rows, files = open_gallery(args.gallery, args.save_embeddings, args.feature, run.source)
    readers["opt"] = readers["opt"].measured_on(files)                # a map's tiles by one stretch
    run.check(queries, "sar", problems)
    run.check(files, "opt", problems)
    if problems:
        raise several(f"{len(problems)} image(s) cannot be used:", problems)

    query = run.vectors(queries, "sar", args.feature)
    if files and args.save_embeddings:
        save_embeddings(args.save_embeddings, "opt", run.portions(files, "opt"), rows, run.source)
        gallery, _ = read_embeddings(args.save_embeddings, "opt", args.feature, run.source)
    elif files:
        gallery = run.vectors(files, "opt", args.feature)
    if gallery.shape[1] != query.shape[1]:
        raise InputError(f"--gallery {args.gallery} holds vectors of {gallery.shape[1]} numbers, the run gives "
                         f"{query.shape[1]}: embed the images again")

    k = min(args.k, len(rows))
    scores, answers = (x.cpu() for x in first_answers(query.to(device), gallery, k))
    if args.index == "ivf":
        exact, (scores, answers) = answers, approximate(query, gallery, k, args.probes)
        recall = np.mean([len(set(a) & set(b)) / k for a, b in zip(exact.tolist(), answers.tolist())])
        print(f"recall of the first {k} against the exact search: {100 * recall:.1f}%")
    # An approximate index may find fewer than k: its rows below 0.
    found = [[(rank, row, score) for rank, (row, score) in enumerate(zip(*answer), 1) if row >= 0]
             for answer in zip(answers.tolist(), scores.tolist())]

    # Files first: what is printed may be cut off (| head).
    if args.csv:
        write_csv(queries, found, rows, args.csv)
    if picture:
        write_picture(draw(queries, found, rows, run.decode), picture)
    for file, of_query in zip(queries, found):
        print(file)
        for rank, row, score in of_query:
            print(f"  {rank:2d}  {score:.4f}  {rows[row]['name']}{position_text(rows[row])}")
    if args.csv:
        print(args.csv)
    if picture:
        note = left_out(len(queries), k)
        print(f"{picture} ({note})" if note else picture)


if __name__ == "__main__":
    run_script(search, arguments)
