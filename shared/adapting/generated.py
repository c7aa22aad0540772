"""Images of the other modality, made by a generator: written once as a data set, read beside the true ones.

A folder of generated images lies like any data set: FOLDER/{train,test}/{opt,sar}/PLACE.png, where opt/ holds what was
drawn from the place's SAR image and sar/ what was drawn from its optical one, and pairs.csv.
"""
import json
import shutil
import time
from dataclasses import replace
from pathlib import Path

import cv2
import torch

from shared.dataset import decode_images, load_splits
from shared.plumbing.errors import InputError, several
from shared.plumbing.files import write_bytes, write_text
from shared.plumbing.ram import peak_memory
from shared.reading.fingerprint import fingerprints
from shared.reading.layouts import find_data, list_images
from shared.reading.readers import readers_of_run

SPLITS = ("train", "test")
DONE = "generated.json"


def generate(args, settings, img_size, translate):
    """Write the generated images of both splits of a data set to --result_path, and tell what it took.

    args: as options.generating's parser gives them. settings: of the run that made the generator. translate: a
    function of (N, S, S, 3) uint8 images and what to draw, `opt` or `sar`. generated.json is written last: where it is,
    the images are whole.
    """
    data = fingerprints(args.data_path or settings["data_path"])
    if (args.result_path / DONE).is_file():
        made = json.loads((args.result_path / DONE).read_text())
        of_this_run = Path(made.get("run", args.run)).resolve() == args.run.resolve()
        if not of_this_run or made.get("data", data) != data:
            raise InputError(f"{args.result_path} holds images that {made['run']} drew of {made['data_path']}, another "
                             "run or another data set: give another --result_path")
        print(f"{args.result_path} is finished")
        return
    data_path = args.data_path or settings["data_path"]
    readers = readers_of_run(args.run, args, args.data_path is None)
    count, seconds = 0, 0.0
    for split, pairs in zip(SPLITS, load_splits(data_path, SPLITS, img_size, args.workers, readers=readers)):
        pairs = pairs.of_regions(settings.get("region"), "--region")
        images = pairs.images
        for modality, source in (("opt", "sar"), ("sar", "opt")):
            start = time.perf_counter()
            drawn = translate(images[source], modality)
            seconds += time.perf_counter() - start
            write_images(args.result_path / split / modality, pairs.names, drawn)
            count += len(drawn)
    for name in ("pairs.csv", "leave_out.csv"):
        if (find_data(data_path) / name).is_file():
            shutil.copyfile(find_data(data_path) / name, args.result_path / name)
    took = {"images": count, "seconds_for_1000": 1000 * seconds / count}
    if (peak := peak_memory()) is not None:
        took["peak_memory_MiB"] = peak / 2**20
    origin = {"run": str(args.run), "data_path": str(data_path), "data": data}
    write_text(args.result_path / DONE, json.dumps({**took, **origin}, indent=1))
    print(f"{args.result_path}: " + ", ".join(f"{name} {value:.4g}" for name, value in took.items()))


def write_images(folder, names, images):
    """(N, S, S, 3) uint8, RGB, as FOLDER/NAME.png."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, image in zip(names, images.numpy()):
        write_bytes(folder / f"{name}.png", cv2.imencode(".png", image[..., ::-1])[1].tobytes())


def read_generated(folder, places, modality, img_size, workers, split="train"):
    """The images of `opt` or `sar` that were generated for these places of a split: (P, S, S, 3) uint8.

    Raises InputError that names every place of which there is none, and every bad file.
    """
    problems = []
    files = list_images(Path(folder) / split / modality, problems)
    problems += [f"{folder}/{split}/{modality}: there is no image of {name}" for name in places if name not in files]
    if problems:
        raise several(f"--generated {folder} does not hold the images of this data set:", problems)
    return decode_images([files[name] for name in places], img_size, workers)


def with_generated(pairs, folder, workers):
    """Pairs whose images have six channels: the true image, then what was generated in its stead.

    They are turned and flipped together. InputError where training is on windows, of which nothing was generated.
    """
    if not hasattr(pairs, "names"):
        raise InputError("--generated: there are generated images of the crops, none of windows; leave out --windows")
    size = pairs.opt.shape[1]
    opt = read_generated(folder, pairs.names, "opt", size, workers)
    sar = read_generated(folder, pairs.names, "sar", size, workers)[pairs.sar_place]
    return replace(pairs, opt=torch.cat([pairs.opt, opt], 3), sar=torch.cat([pairs.sar, sar], 3))


def true_and_generated(images):
    """(B, 3 or 6, S, S) -> the true images (B, 3, S, S) and the generated ones, or the true ones again."""
    return images[:, :3], images[:, -3:]


def translations_of(target, folder, workers):
    """Unpaired images of six channels: each true image, then what was drawn from it in the other modality."""
    size = target.opt.shape[1]
    drawn_sar = read_generated(folder, target.opt_names, "sar", size, workers)
    drawn_opt = read_generated(folder, target.sar_places, "opt", size, workers)
    return replace(target, opt=torch.cat([target.opt, drawn_sar], 3), sar=torch.cat([target.sar, drawn_opt], 3))
