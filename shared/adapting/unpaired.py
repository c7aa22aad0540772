"""Images of a region without pairs: optical and SAR, each on its own."""
from dataclasses import dataclass, field, replace

import torch

from shared.dataset import decode_images
from shared.plumbing.errors import InputError, several
from shared.plumbing.run_files import read_settings
from shared.reading.fingerprint import fingerprint
from shared.reading.layouts import check_ids, find_data, list_split, read_leave_out, read_pairs_csv
from shared.reading.readers import READERS, readers_of
from shared.reading.tones import evenly, measure_tones
from shared.reading.windows import apply_symmetry


@dataclass
class Unpaired:
    """Optical and SAR images that are not matched, in memory.

    opt: (P, S, S, 3), sar: (M, S, S, 3) uint8. opt_names, sar_names: of each image. sar_places: the place that each SAR
    image shows. opt_tiles, sar_tiles: of the tile that each was cut from, of which none is in both. symmetries: draw
    images at any of the eight symmetries of the square, not only flipped. readers: {"opt", "sar"}, by which they were
    read.
    """
    opt: torch.Tensor
    sar: torch.Tensor
    opt_names: list
    sar_names: list
    sar_places: list
    opt_tiles: list
    sar_tiles: list
    symmetries: bool = False
    readers: dict = field(default_factory=lambda: dict(READERS))

    @property
    def tones(self):
        """{"opt", "sar"}: the Tones of the images."""
        return {"opt": measure_tones(evenly(self.opt, 256)), "sar": measure_tones(evenly(self.sar, 256))}

    def describe(self):
        return f"{len(self.opt)} optical and {len(self.sar)} SAR images without pairs"

    def draw(self, count, generator):
        """(opt, sar, opt_rows, sar_rows): images (B, S, S, 3) uint8, and (B) int64, which ones they are.

        The two modalities are drawn apart, no image comes twice, and half of the images are flipped left to right;
        with symmetries, each is drawn at one of the eight instead.
        """
        opt, opt_rows = self._draw_from("opt", count, generator)
        sar, sar_rows = self._draw_from("sar", count, generator)
        return opt, sar, opt_rows, sar_rows

    def _draw_from(self, modality, count, generator):
        images = getattr(self, modality)
        if count > len(images):
            raise InputError(f"{count} {modality} images without pairs are asked for in a batch, and there are "
                             f"{len(images)}: give a smaller --batch_size")
        rows = torch.randperm(len(images), generator=generator)[:count]
        if self.symmetries:
            return apply_symmetry(images[rows], torch.randint(8, (count,), generator=generator)), rows
        flipped = (torch.rand(count, generator=generator) < 0.5).view(-1, 1, 1, 1)
        return torch.where(flipped, images[rows].flip(2), images[rows]), rows


def load_target(args):
    """The target of an adaptation: the training images of --target_path (or the data set's own) and --target_region.

    With --windows or --symmetries they are drawn at the eight symmetries, as the pairs are.
    Raises InputError where the target's pairs are known, to the source or to --start, and as load_unpaired does.
    """
    data_path = args.target_path or args.data_path
    is_apart = args.target_region and args.region and not set(args.target_region) & set(args.region)
    if find_data(data_path) == find_data(args.data_path) and not is_apart:
        raise InputError("the target is a part of the source, whose pairs are known: give --region and another "
                         "--target_region, or another --target_path")
    if args.start and _has_learned_from(read_settings(args.start), data_path, args.target_region):
        raise InputError(f"--start {args.start} has learned from pairs of the target: give a run of the source alone")
    target = load_unpaired(data_path, args.img_size, args.workers, args.seed, args.target_region, readers_of(args))
    return replace(target, symmetries=args.windows or args.symmetries)


def _has_learned_from(settings, data_path, regions):
    """Whether the run with these settings saw pairs of a data set's training split, of these regions (None: all)."""
    if settings.get("data", {}).get("train") != fingerprint(find_data(data_path), "train"):
        return False
    seen = settings.get("region")
    return not seen or not regions or bool(set(seen) & set(regions))


def load_unpaired(data_path, img_size, workers, seed=0, regions=None, readers=READERS):
    """The training images of a data set, without its pairs: no optical and SAR image of the same tile are both kept.

    Tiles (of pairs.csv; places where it names none) that both modalities show are shared out at random: the optical
    images of one half, the SAR images of the other. So no true pair can be met by chance. regions: of pairs.csv, whose
    images alone are taken, or None for all.
    Raises InputError that names every bad file, or where a modality is left without images.
    """
    root, problems = find_data(data_path), []
    listing = list_split(root, "train", problems)
    check_ids(root, "train", listing, problems)
    listing = listing.without(read_leave_out(root, "train"))
    if problems:
        raise several(f"the data set {root} has {len(problems)} problem(s); mend or remove these files:", problems)
    rows = read_pairs_csv(root, "train")

    def tile_of(place):
        return rows.get(place, {}).get("tile") or place

    def is_inside(place):
        return regions is None or rows.get(place, {}).get("region") in regions

    opt = [(name, image) for name, image in sorted(listing.opt.items()) if is_inside(name)]
    sar = [(name, place, image) for name, (place, image) in sorted(listing.sar.items()) if is_inside(place)]
    both = sorted({tile_of(place) for place, _ in opt} & {tile_of(place) for _, place, _ in sar})
    order = torch.randperm(len(both), generator=torch.Generator().manual_seed(seed)).tolist()
    for_sar = {both[i] for i in order[:len(both) // 2]}
    for_opt = {both[i] for i in order[len(both) // 2:]}
    opt = [image for image in opt if tile_of(image[0]) not in for_sar]
    sar = [image for image in sar if tile_of(image[1]) not in for_opt]
    if not opt or not sar:
        of = f" of {' '.join(regions)}" if regions else ""
        raise InputError(f"{root}: {len(opt)} optical and {len(sar)} SAR training images{of} are left without pairs; "
                         "give a target of at least two tiles")
    images = {}
    for name, files in (("opt", [image for _, image in opt]), ("sar", [image for *_, image in sar])):
        readers = {**readers, name: readers[name].measured_on(files)}
        images[name] = decode_images(files, img_size, workers, readers[name])
    opt_names, (sar_names, sar_places, _) = [name for name, _ in opt], map(list, zip(*sar))
    return Unpaired(images["opt"], images["sar"], opt_names, sar_names, sar_places,
                    [tile_of(name) for name in opt_names], [tile_of(place) for place in sar_places], readers=readers)
