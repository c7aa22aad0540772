"""Find the places of SAR images on a map: the first k optical images of a gallery, with scores.

    python tools/search.py --run results/NAME --gallery MAP_FOLDER --query FILE [FILE ...]
    python tools/search.py --run results/NAME --gallery MAP_FOLDER --save_embeddings MAP_EMBEDDINGS --query FILE
    python tools/search.py --run results/NAME --gallery MAP_EMBEDDINGS --query FILE

MAP_FOLDER holds optical images; MAP_EMBEDDINGS is what --save_embeddings wrote (here or of a test.py), so that a map
is embedded once. Prints names, scores and positions where they are known, and writes a picture. --index ivf searches an
approximate index, for maps of many millions (faiss, requirements-optional.txt), and prints its recall against the exact
search.
"""
import argparse
import math
import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository's root, where shared/ is

from shared import options
from shared.dataset import decode_images
from shared.evaluate import FEATURES, embed, first_answers
from shared.finished_run import save_embeddings
from shared.layouts import SUFFIXES, read_image, read_pairs_csv
from shared.model import load_model
from shared.plumbing.device import autocast, choose_device
from shared.plumbing.errors import InputError, run_script
from shared.plumbing.files import read_rows


def load_gallery(args, model, img_size, device):
    """(embeddings (M, D), rows): of a folder of embeddings, or of images, which are embedded.

    Each row: name, and any of file, x_m, y_m.
    """
    if not args.gallery.is_dir():
        raise InputError(f"--gallery {args.gallery}: there is no such folder")
    file = args.gallery / f"opt_{args.feature}.npy"
    if file.is_file():
        try:
            embeddings = np.load(file, mmap_mode="c", allow_pickle=False)
        except ValueError as error:
            raise InputError(f"{file} cannot be read ({error}): embed the gallery again")
        rows = read_rows(args.gallery / "opt.csv")
        if len(rows) != len(embeddings):
            raise InputError(f"{file} holds {len(embeddings)} embeddings, opt.csv {len(rows)} names: "
                             "embed the gallery again")
        return torch.from_numpy(embeddings), rows
    files = sorted(file for file in args.gallery.iterdir() if file.suffix.lower() in SUFFIXES)
    if not files:
        raise InputError(f"--gallery {args.gallery} holds neither images ({', '.join(SUFFIXES)}) "
                         f"nor opt_{args.feature}.npy")
    images = decode_images(files, img_size, args.workers)
    embeddings = embed(model, images, "opt", device, autocast(device, args.amp))
    rows = [{"name": file.stem, "file": str(file.resolve()), **position}
            for file, position in zip(files, positions_of(files))]
    if args.save_embeddings:
        save_embeddings(args.save_embeddings, embeddings, rows, "opt")
    return embeddings[args.feature], rows


def positions_of(files):
    """x_m and y_m of each file from a pairs.csv in the folder, or in the data set that it is DATA/SPLIT/opt of."""
    folder = files[0].parent.resolve()
    places = read_pairs_csv(folder) or read_pairs_csv(folder.parents[1], folder.parent.name)
    rows = [places.get(file.stem, {}) for file in files]
    return [{"x_m": row["x_m"], "y_m": row["y_m"]} if "x_m" in row and "y_m" in row else {} for row in rows]


def approximate(query, gallery, k, probes):
    """first_answers from an inverted-file index of about 4 sqrt(M) cells, of which `probes` are looked into."""
    try:
        import faiss
    except ImportError:
        raise InputError("--index ivf needs faiss: pip install -r requirements-optional.txt")
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


def picture(queries, answers, scores, rows, file, side=160):
    """One row for each query: the SAR image, then its answers with scores."""
    font, width, height = ImageFont.load_default(size=13), side + 8, side + 40
    sheet = Image.new("RGB", ((answers.shape[1] + 1) * width, len(queries) * height), "white")
    draw = ImageDraw.Draw(sheet)
    for i, query in enumerate(queries):
        shown = [(query, f"query {query.stem}", "")]
        for rank, (row, score) in enumerate(zip(answers[i].tolist(), scores[i].tolist()), 1):
            if row >= 0:                                # an approximate index may find fewer
                shown.append((rows[row].get("file"), rows[row]["name"], f"{rank}: {score:.3f}"))
        for j, (image, name, note) in enumerate(shown):
            left, top = j * width + 4, i * height + 4
            if image and Path(image).is_file():
                picture_of = Image.fromarray(read_image(Path(image)))
                sheet.paste(picture_of.resize((side, side), Image.Resampling.LANCZOS), (left, top))
            else:
                draw.rectangle((left, top, left + side, top + side), outline="grey")
            draw.text((left, top + side + 2), f"{name}\n{note}", fill="black", font=font)
    sheet.save(file)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="the folder of a run")
    parser.add_argument("--gallery", type=Path, required=True, help="a folder of optical images, or of embeddings")
    parser.add_argument("--query", type=Path, nargs="+", required=True, help="SAR images")
    parser.add_argument("-k", type=options.positive, default=5, help="answers of each query")
    parser.add_argument("--feature", choices=FEATURES, default="FC")
    parser.add_argument("--save_embeddings", type=Path, help="write the gallery's embeddings to this folder")
    parser.add_argument("--index", choices=("exact", "ivf"), default="exact")
    parser.add_argument("--probes", type=options.positive, default=16,
                        help="cells of the ivf index that are looked into: more is slower and finds more")
    parser.add_argument("--picture", type=Path, help="default: search.png in the run's folder")
    options.add_device(parser)
    args = parser.parse_args()
    device = choose_device(args.device)
    model, img_size = load_model(args.run, device)
    queries = decode_images(args.query, img_size, args.workers)
    gallery, rows = load_gallery(args, model, img_size, device)
    k = min(args.k, len(rows))
    query = embed(model, queries, "sar", device, autocast(device, args.amp))[args.feature]
    scores, answers = (x.cpu() for x in first_answers(query.to(device), gallery, k))
    if args.index == "ivf":
        exact, (scores, answers) = answers, approximate(query, gallery, k, args.probes)
        recall = np.mean([len(set(a) & set(b)) / k for a, b in zip(exact.tolist(), answers.tolist())])
        print(f"recall of the first {k} against the exact search: {100 * recall:.1f}%")
    for file, query_answers, query_scores in zip(args.query, answers.tolist(), scores.tolist()):
        print(file)
        for rank, (row, score) in enumerate(zip(query_answers, query_scores), 1):
            if row >= 0:
                print(f"  {rank:2d}  {score:.4f}  {rows[row]['name']}{position_text(rows[row])}")
    file = args.picture or args.run / "search.png"
    picture(args.query, answers, scores, rows, file)
    print(f"{file}")


def position_text(row):
    if row.get("x_m") in (None, ""):
        return ""
    return f"  x {float(row['x_m']):.0f} m, y {float(row['y_m']):.0f} m"


if __name__ == "__main__":
    run_script(main)
