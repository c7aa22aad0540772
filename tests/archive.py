"""A made-up SpaceNet 6 archive, in the published names: several strips over one area, on one canvas of the world."""
from pathlib import Path

import numpy as np

STRIPS = [f"2019080{i}111224_2019080{i}111453" for i in range(1, 8)]
METRES = 0.5
ORIGIN = (592000.0, 5750000.0)                          # left, top


def world(height, width, seed=0):
    """RGB (3, H, W) uint8 and SAR in dB (4, H, W) float32 of the whole area.

    SAR is a function of RGB, so that pairs can be recognised.
    """
    rgb = np.random.default_rng(seed).integers(1, 256, (3, height, width), np.uint8)
    bands = np.stack([rgb[0], rgb[0] * 0, rgb[2], rgb[1]]).astype(np.float32) / 10 - 20
    bands[1] += 99                                      # HV, which nobody asks for
    return rgb, bands


def write_archive(folder, tile, across, down, strips, seed=0, nan_border=0):
    """Write across x down tiles of `tile` px for each strip; each strip's tiles begin 7 px further. Returns the world.

    nan_border: SAR columns at the left of each strip that hold NaN, more for each further strip.
    """
    import rasterio
    from rasterio.transform import from_origin
    rgb, sar = world(tile * down + 7 * strips, tile * across + 7 * strips, seed)
    root = Path(folder)
    for name in ("PS-RGB", "SAR-Intensity", "SummaryData"):
        (root / name).mkdir(parents=True, exist_ok=True)
    (root / "SummaryData/SAR_orientations.txt").write_text(
        "".join(f"{strip} {i % 2}\n" for i, strip in enumerate(STRIPS))
    )
    number = 0
    for i in range(strips):
        for row in range(down):
            for column in range(across):
                top, left = row * tile + 7 * i, column * tile + 7 * i
                window = np.s_[:, top:top + tile, left:left + tile]
                pixels = sar[window].copy()
                border = nan_border * (i + 1) - column * tile
                if border > 0:
                    pixels[:, :, :border] = np.nan
                profile = dict(
                    driver="GTiff",
                    height=tile,
                    width=tile,
                    crs="EPSG:32631",
                    transform=from_origin(ORIGIN[0] + left * METRES, ORIGIN[1] - top * METRES, METRES, METRES),
                )
                for kind, data in (("PS-RGB", rgb[window]), ("SAR-Intensity", pixels)):
                    file = root / kind / f"SN6_Train_AOI_11_Rotterdam_{kind}_{STRIPS[i]}_tile_{number}.tif"
                    with rasterio.open(file, "w", count=len(data), dtype=data.dtype, **profile) as out:
                        out.write(data)
                number += 1
    return rgb, sar
