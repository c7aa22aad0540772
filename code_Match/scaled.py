"""A run's network, asked in px of the tiles: where crops are resized for it, it sees the tiles at that scale, too."""
from dataclasses import dataclass, replace

import cv2
import numpy as np

from shared.mapping.cells import CellNetwork, load_cell_network
from shared.mapping.localization import Search, map_of, rotations_to_try
from shared.plumbing.run_files import read_settings
from shared.reading.layouts import crop_of


@dataclass
class TileNetwork:
    """network: a CellNetwork. factor: px of its images to a px of the tiles."""
    network: CellNetwork
    factor: float

    def seen(self, image):
        """(H, W, 3) uint8 as the network sees it."""
        height, width = (max(1, round(side * self.factor)) for side in image.shape[:2])
        if (height, width) == image.shape[:2]:
            return image
        return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if self.factor < 1 else cv2.INTER_LINEAR)

    def maps_of(self, tiles):
        """The Map of each tile."""
        return [map_of(self.network, self.seen(tile), number=number) for number, tile in enumerate(tiles.opt)]

    def search(self, query, within, scale):
        """The Search for a Query that may be turned by `within` degrees."""
        return Search(self.network, self.seen(query.image), rotations_to_try(within), scale)

    def in_tile(self, answer, tiles):
        """An answer of a Search in px of its tile."""
        height, width = tiles.opt[answer.map].shape[:2]
        seen_height, seen_width = round(height * self.factor), round(width * self.factor)
        return replace(answer, x=answer.x * width / seen_width, y=answer.y * height / seen_height,
                       covariance=tuple(map(tuple, np.array(answer.covariance) / self.factor ** 2)))


def load_tile_network(folder, data_path, device, autocast):
    """The TileNetwork of a finished run for tiles at the scale of the data set that it learned from.

    data_path: that data set, where the run does not tell the side of its crops, as packed ones do. InputError where the
    run gives no cells.
    """
    network, img_size = load_cell_network(folder, device, autocast)
    return TileNetwork(network, img_size / (read_settings(folder).get("crop") or crop_of(data_path)))
