r"""How good generated images are: like the true ones, and to a network that retrieves.

    python tools/compare_generated.py --data_path data/S1S2align200 --run results/S1S2align200/triplet/seed0 \
        --generated results/S1S2align200/gan-images/seed0 --generated results/S1S2align200/diffusion-images/seed0

On the test places of which there are generated images, for each folder and modality: PSNR and SSIM against the true
image; by the embeddings of the run: the Frechet distance of their statistics to those of true images, the share that
lies between the two images of its place, and the distance of each image to what was drawn from it. Beside them channel
exchange, the other modality's true images, and each image flipped. Prints a table and writes generated.csv,
generated.md and a picture strip to --result_path (default: results/DATA/generated).
"""
import argparse
import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository's root, where shared/ and tools/ are

from shared import options
from shared.adapting.generated import DONE, read_generated
from shared.adapting.likeness import likeness, show_strip
from shared.dataset import load_splits, map_images
from shared.evaluate import embed
from shared.filters import channel_exchange
from shared.model import load_model
from shared.plumbing.device import autocast, choose_device
from shared.plumbing.errors import InputError, run_script
from shared.plumbing.files import write_rows, write_text
from shared.reading.layouts import list_images
from shared.reading.readers import readers_of_run
from tools.analyze import betweenness
from tools.compare_filters import markdown

TOOK = ("seconds_for_1000", "peak_memory_MiB")
COLUMNS = ("images", "drawn", "psnr", "ssim", "frechet", "between", "distance", *TOOK)
TITLES = {"opt": "optical", "sar": "SAR"}
OTHER = {"opt": "sar", "sar": "opt"}
SHOWN = 8                                               # places of the picture


def frechet_distance(a, b):
    """Of Gaussians with the means and covariances of two sets of vectors (N, D) and (M, D); not below 0.

    Source: Heusel et al., "GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium", NeurIPS
    2017, equation 6; its features are a network's for everyday photographs, ours those of the run.
    """
    a, b = a.double(), b.double()
    cov_a, cov_b = torch.cov(a.T), torch.cov(b.T)
    of_product = torch.linalg.eigvals(cov_a @ cov_b).real.clamp(min=0).sqrt().sum()
    distance = (a.mean(0) - b.mean(0)).square().sum() + cov_a.trace() + cov_b.trace() - 2 * of_product
    return distance.clamp(min=0).item()


def compare(drawn, modality, true, embeddings, embed_images):
    """The figures of images drawn in `opt` or `sar`, from the places' images in the other.

    drawn: (P, S, S, 3) uint8. true: {"opt", "sar"} of these places, the same shape, embeddings: theirs, (P, D).
    embed_images: a function of images and a modality.
    """
    vectors = embed_images(drawn, modality)
    return {"drawn": TITLES[modality], **likeness(drawn, true[modality]),
            "frechet": frechet_distance(vectors, embeddings[modality]),
            "between": betweenness(embeddings["opt"], embeddings["sar"], vectors),
            "distance": (vectors - embeddings[OTHER[modality]]).norm(dim=1).mean().item()}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_path", required=True)
    parser.add_argument("--run", required=True, type=Path, help="a run whose embeddings tell what images are like")
    parser.add_argument("--generated", type=Path, action="append", default=[],
                        help="a folder of generated images; may be given several times")
    parser.add_argument("--result_path", type=Path)
    options.add_reading(parser)
    options.add_device(parser)
    return parser.parse_args()


def main(args):
    device = choose_device(args.device)
    out = args.result_path or Path("results") / Path(args.data_path).name / "generated"
    model, img_size = load_model(args.run, device)
    mixed = autocast(device, args.amp)

    readers = readers_of_run(args.run, args, is_own_data=False)
    pairs, = load_splits(args.data_path, ("test",), img_size, args.workers, readers=readers)
    pairs = places_of_all(pairs, args.generated)
    true = pairs.images

    def embed_images(images, modality):
        return embed(model, images, modality, device, mixed)["FC"]

    embeddings = {modality: embed_images(true[modality], modality) for modality in TITLES}
    rows, strip = [], {title: true[modality] for modality, title in TITLES.items()}
    generator = torch.Generator().manual_seed(0)
    for modality in TITLES:
        source = true[OTHER[modality]]
        exchanged = map_images(lambda images: channel_exchange(images, generator), source)
        for name, images in (("the other modality itself", source), ("channel exchange of it", exchanged)):
            rows.append({"images": name, **compare(images, modality, true, embeddings, embed_images)})
        flipped = embed_images(true[modality].flip(2), modality)
        rows.append({"images": "flipped", "drawn": TITLES[modality],
                     "distance": (flipped - embeddings[modality]).norm(dim=1).mean().item()})
    for folder in args.generated:
        took = json.loads((folder / DONE).read_text())
        for modality in TITLES:
            drawn = read_generated(folder, pairs.names, modality, img_size, args.workers, split="test")
            rows.append({"images": str(folder), **compare(drawn, modality, true, embeddings, embed_images),
                         **{name: took[name] for name in TOOK if name in took}})
            strip[f"{TITLES[modality]}, {folder.parent.name}"] = drawn

    out.mkdir(parents=True, exist_ok=True)
    shown = torch.linspace(0, len(pairs) - 1, min(SHOWN, len(pairs))).long()
    show_strip({title: images[shown] for title, images in strip.items()}, out / "generated.png")
    write_rows(out / "generated.csv", COLUMNS, rows)
    text = markdown(rows, COLUMNS)
    write_text(out / "generated.md", text)
    print(f"{text}\n{len(pairs)} test places; {out / 'generated.md'}, {out / 'generated.png'}")


def places_of_all(pairs, folders):
    """The places of which every folder holds images. InputError where a folder is not finished, or none is left."""
    names = set(pairs.names)
    for folder in folders:
        if not (folder / DONE).is_file():
            raise InputError(f"--generated {folder} holds no finished set of generated images")
        names &= set(list_images(folder / "test/opt", []))
    if not names:
        raise InputError("--generated: there are images of no test place of this data set in every folder")
    return pairs.subset(torch.tensor([i for i, name in enumerate(pairs.names) if name in names]))


if __name__ == "__main__":
    run_script(main, arguments)
