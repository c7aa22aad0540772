"""Images of a region without pairs: optical and SAR, each on its own."""
from dataclasses import dataclass

import torch

from shared.dataset import decode_images
from shared.layouts import find_data, list_split, read_leave_out, read_pairs_csv
from shared.plumbing.errors import InputError, several


@dataclass
class Unpaired:
    """Optical and SAR images that are not matched, in memory.

    opt: (P, S, S, 3), sar: (M, S, S, 3) uint8. opt_names, sar_names: of each image. opt_tiles, sar_tiles: of the tile
    that each was cut from, of which none is in both.
    """
    opt: torch.Tensor
    sar: torch.Tensor
    opt_names: list
    sar_names: list
    opt_tiles: list
    sar_tiles: list

    def describe(self):
        return f"{len(self.opt)} optical and {len(self.sar)} SAR images without pairs"

    def draw(self, count, generator):
        """(opt, sar, opt_rows, sar_rows): images (B, S, S, 3) uint8, and (B) int64, which ones they are.

        The two modalities are drawn apart, no image comes twice, and half of the images are flipped left to right.
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
        flipped = (torch.rand(count, generator=generator) < 0.5).view(-1, 1, 1, 1)
        return torch.where(flipped, images[rows].flip(2), images[rows]), rows


def load_unpaired(data_path, img_size, workers, seed=0):
    """The training images of a data set, without its pairs: no optical and SAR image of the same tile are both kept.

    Tiles (of pairs.csv; places where it names none) that both modalities show are shared out at random: the optical
    images of one half, the SAR images of the other. So no true pair can be met by chance.
    Raises InputError that names every bad file, or where a modality is left without images.
    """
    root, problems = find_data(data_path), []
    listing = list_split(root, "train", problems).without(read_leave_out(root, "train"))
    if problems:
        raise several(f"the data set {root} has {len(problems)} problem(s); mend or remove these files:", problems)
    rows = read_pairs_csv(root, "train")

    def tile_of(place):
        return rows.get(place, {}).get("tile") or place

    opt = [(name, tile_of(name), image) for name, image in sorted(listing.opt.items())]
    sar = [(name, tile_of(place), image) for name, (place, image) in sorted(listing.sar.items())]
    both = sorted({tile for _, tile, _ in opt} & {tile for _, tile, _ in sar})
    order = torch.randperm(len(both), generator=torch.Generator().manual_seed(seed)).tolist()
    for_sar = {both[i] for i in order[:len(both) // 2]}
    for_opt = {both[i] for i in order[len(both) // 2:]}
    opt = [image for image in opt if image[1] not in for_sar]
    sar = [image for image in sar if image[1] not in for_opt]
    if not opt or not sar:
        raise InputError(f"{root}: {len(opt)} optical and {len(sar)} SAR training images are left without pairs; "
                         "give a data set of at least two tiles")
    images = decode_images([file for _, _, file in [*opt, *sar]], img_size, workers)
    return Unpaired(images[:len(opt)], images[len(opt):], [name for name, _, _ in opt], [name for name, _, _ in sar],
                    [tile for _, tile, _ in opt], [tile for _, tile, _ in sar])
