"""The one reader: bands, numbers, what is nodata, and files that are broken, each by a file of its kind."""
import io
import re
import subprocess
import sys
import warnings

import cv2
import numpy as np
import pytest
import rasterio
import rasterio.shutil
from PIL import Image
from rasterio.enums import ColorInterp
from rasterio.transform import from_origin

from shared.plumbing.errors import InputError
from shared.reading.layouts import list_images
from shared.reading.raster import Reader, open_raster, read_window
from shared.reading.readers import readers_of_run, save_readers
from shared.reading.tones import Tones, measure_tones
from conftest import ROOT, script
from test_dataset import make_data

OPT, SAR = Reader("opt"), Reader("sar")


def write(file, bands, colours=None, descriptions=None, mask=None, **settings):
    """(C, H, W) as a TIFF."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), \
                rasterio.open(file, "w", driver="GTiff", count=len(bands), height=bands.shape[1], width=bands.shape[2],
                              dtype=bands.dtype, **settings) as out:
            out.write(bands)
            if colours:
                out.colorinterp = [ColorInterp[colour] for colour in colours]
            for number, words in enumerate(descriptions or (), 1):
                out.set_band_description(number, words)
            if mask is not None:
                out.write_mask(mask)
    return file


def ramp(count, dtype=np.uint8, side=40):
    """(count, side, side): each band another pattern, from 1 on, so that nothing in it is a collar."""
    random = np.random.default_rng(5)
    return random.integers(1, 200, (count, side, side)).astype(dtype)


# Bands --------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("photometric", ["MINISBLACK", "RGB"])
def test_three_bands_are_the_colours_whatever_photometric_says(tmp_path, photometric):
    bands = ramp(3)
    pixels, shown = OPT.read(write(tmp_path / "x.tif", bands, photometric=photometric))
    assert np.array_equal(pixels, bands.transpose(1, 2, 0)) and shown.all()


def test_colours_are_taken_by_their_interpretation(tmp_path):
    bands = ramp(4)
    file = write(tmp_path / "x.tif", bands, colours=("undefined", "blue", "green", "red"), photometric="MINISBLACK")
    assert np.array_equal(OPT.read(file)[0], bands[[3, 2, 1]].transpose(1, 2, 0))
    assert "bands 4, 3, 2 of 4" in OPT.read_bands(file)[2]


def test_a_fourth_band_that_is_no_alpha_leaves_the_colours_alone(tmp_path):
    bands = ramp(4)
    bands[:, 20, 20] = 144, 110, 47, 77
    named_alpha = write(tmp_path / "alpha.tif", bands)                # GDAL calls the fourth of four bytes alpha
    with rasterio.open(named_alpha) as source:
        assert source.colorinterp[3] == ColorInterp.alpha
    for file in (named_alpha, write(tmp_path / "plain.tif", bands, photometric="MINISBLACK")):
        pixels, shown = OPT.read(file)
        assert pixels[20, 20].tolist() == [144, 110, 47] and shown.all()
    Image.fromarray(bands.transpose(1, 2, 0), "RGBA").save(tmp_path / "x.png")
    pixels, shown = OPT.read(tmp_path / "x.png")
    assert pixels[20, 20].tolist() == [144, 110, 47] and shown.all()


def test_a_binary_fourth_band_and_a_mask_tell_what_is_shown(tmp_path):
    bands = ramp(4)
    bands[3] = 255
    bands[3, :, :10] = 0
    files = [write(tmp_path / "alpha.tif", bands), write(tmp_path / "black.tif", bands, photometric="MINISBLACK"),
             write(tmp_path / "mask.tif", bands[:3], mask=bands[3] > 0)]
    Image.fromarray(bands.transpose(1, 2, 0), "RGBA").save(tmp_path / "x.png")
    for file in (*files, tmp_path / "x.png"):
        pixels, shown = OPT.read(file)
        assert not shown[:, :10].any() and shown[:, 10:].all(), file
        assert np.array_equal(pixels[:, 10:], bands[:3, :, 10:].transpose(1, 2, 0)), file


def test_sar_takes_vv_then_all_of_three_then_the_first(tmp_path):
    bands = ramp(4)
    named = write(tmp_path / "named.tif", bands, descriptions=("HH", "HV", "VH", "VV"), photometric="MINISBLACK")
    two = write(tmp_path / "two.tif", bands[:2])
    three = write(tmp_path / "three.tif", bands[:3])
    for file, wanted in ((named, bands[[3, 3, 3]]), (two, bands[[0, 0, 0]]), (three, bands[:3])):
        assert np.array_equal(SAR.read(file)[0], wanted.transpose(1, 2, 0)), file
    assert np.array_equal(Reader("sar", (2,)).read(two)[0], bands[[1, 1, 1]].transpose(1, 2, 0))


def test_bands_are_taken_as_asked_for(tmp_path):
    bands = ramp(5)
    file = write(tmp_path / "x.tif", bands)
    assert np.array_equal(Reader("opt", (4, 3, 2)).read(file)[0], bands[[3, 2, 1]].transpose(1, 2, 0))
    with pytest.raises(InputError, match="has 5 band.s., no band 6"):
        Reader("opt", (6, 3, 2)).read(file)
    cv2.imwrite(str(tmp_path / "x.png"), bands[:3].transpose(1, 2, 0)[..., ::-1])
    assert np.array_equal(Reader("opt", (3, 2, 1)).read(tmp_path / "x.png")[0], bands[[2, 1, 0]].transpose(1, 2, 0))
    with pytest.raises(InputError, match="has 3 band.s., no band 4"):
        Reader("opt", (4,)).read(tmp_path / "x.png")


def test_a_palette_gives_its_colours(tmp_path):
    numbers = np.random.default_rng(0).integers(0, 3, (1, 30, 30)).astype(np.uint8)
    colours = {0: (10, 20, 30, 255), 1: (200, 100, 0, 255), 2: (0, 255, 128, 255)}
    with rasterio.open(tmp_path / "x.tif", "w", driver="GTiff", count=1, height=30, width=30, dtype="uint8",
                       photometric="palette") as out:
        out.write(numbers)
        out.write_colormap(1, colours)
    wanted = np.array([colour[:3] for colour in colours.values()])[numbers[0]]
    assert np.array_equal(OPT.read(tmp_path / "x.tif")[0], wanted)


# Numbers ------------------------------------------------------------------------------------------------------------

def speckle(side=120, looks=4):
    """Power of a scene with dark and bright fields and speckle, (1, side, side) float32."""
    random = np.random.default_rng(1)
    fields = np.kron(10 ** random.uniform(-2.5, 0, (6, 6)), np.ones((side // 6, side // 6)))
    return (fields * random.gamma(looks, 1 / looks, (side, side)))[None].astype(np.float32)


def test_sar_in_any_scale_gets_the_same_tones(tmp_path):
    power = speckle()
    forms = {"power": power, "linear": np.sqrt(power), "db": 10 * np.log10(power),
             "sixteen bits": (np.sqrt(power) * 10_000).astype(np.uint16),
             "complex": (np.sqrt(power) * np.exp(1j * np.random.default_rng(2).uniform(0, 6, power.shape))
                         ).astype(np.complex64)}
    tones = Tones((90.0,) * 3, (40.0,) * 3)
    wanted = Reader("sar", scale="db", tones=tones).read(write(tmp_path / "wanted.tif", forms["db"]))[0].astype(float)
    assert wanted.std() > 30
    for name, numbers in forms.items():
        file = write(tmp_path / f"{name}.tif", numbers)
        for scale in {"auto", name} & {"auto", "db", "linear", "power"}:
            pixels = Reader("sar", scale=scale, tones=tones).read(file)[0]
            assert np.abs(pixels - wanted).mean() < 1.5, (name, scale)
    as_they_are = Reader("sar", scale="db", tones=tones).read(tmp_path / "power.tif")[0]
    assert np.abs(as_they_are - wanted).mean() > 20, "without the logarithm power looks otherwise"


@pytest.mark.parametrize("dtype, factor", [(np.uint16, 40), (np.float32, 0.001), (np.int16, 30)])
def test_the_same_optical_pixels_as_other_numbers_keep_their_look(tmp_path, dtype, factor):
    random = np.random.default_rng(0)
    bytes_ = cv2.GaussianBlur(random.normal(120, 160, (90, 90, 3)), (0, 0), 2).clip(1, 254).astype(np.uint8)
    file = write(tmp_path / "x.tif", (bytes_.astype(float) * factor).astype(dtype).transpose(2, 0, 1))
    pixels = Reader("opt", tones=measure_tones([bytes_])).read(file)[0]
    assert np.abs(pixels.astype(float) - bytes_).mean() < 3
    png = (bytes_[..., 0].astype(np.uint16) * 100)
    cv2.imwrite(str(tmp_path / "x.png"), png)
    grey = Reader("opt", tones=measure_tones([bytes_[..., [0, 0, 0]]])).read(tmp_path / "x.png")[0]
    assert np.abs(grey[..., 0].astype(float) - bytes_[..., 0]).mean() < 3


def test_a_data_set_of_numbers_has_one_stretch(tmp_path):
    """A dark image stays darker than a bright one, and the test split is read as the training split was."""
    for number, level in enumerate((500, 1000, 1500, 2000)):
        write(tmp_path / f"{number}.tif", (level + ramp(3, np.uint16)).astype(np.uint16))
    files = sorted(tmp_path.glob("*.tif"))
    reader = OPT.measured_on(files)
    means = [reader.read(file)[0].mean() for file in files]
    assert np.diff(means).min() > 20 and abs(np.mean(means) - OPT.tones.mean[0]) < 5
    alone = [OPT.read(file)[0].mean() for file in files]
    assert max(alone) - min(alone) < 5, "by itself each has the same tones"


def test_a_run_keeps_how_its_images_were_read(tmp_path):
    write(tmp_path / "a.tif", (1000 + ramp(4, np.uint16)).astype(np.uint16))
    readers = {"opt": Reader("opt", [4, 3, 2]).measured_on([tmp_path / "a.tif"]), "sar": SAR}
    save_readers(tmp_path, readers, {"opt": Tones((1, 2, 3), (4, 5, 6)), "sar": Tones()})
    own, others = readers_of_run(tmp_path), readers_of_run(tmp_path, is_own_data=False)
    assert own["opt"].bands == [4, 3, 2] and np.array_equal(own["opt"].stretch.mean, readers["opt"].stretch.mean)
    assert own["opt"].tones == others["opt"].tones == Tones((1, 2, 3), (4, 5, 6))
    assert others["opt"].bands is None and others["opt"].stretch is None
    (tmp_path / "reading.json").write_text("[]")
    with pytest.raises(InputError, match="bring it back"):
        readers_of_run(tmp_path)


# What is not shown -------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_in_any_band_is_not_shown(tmp_path, value):
    bands = ramp(3, np.float32)
    bands[1, 5, 7] = value
    pixels, shown = OPT.read(write(tmp_path / "x.tif", bands))
    assert not shown[5, 7] and shown.sum() == 40 * 40 - 1 and pixels.std() > 20


@pytest.mark.parametrize("value, dtype", [(-9999, np.float32), (65535, np.uint16), (0, np.uint16), (0, np.uint8)])
@pytest.mark.parametrize("where", ["corner", "border"])
def test_a_constant_along_the_border_is_taken_for_nodata_and_said(tmp_path, value, dtype, where):
    bands = ramp(1, dtype, 64)
    part = np.s_[0, :20, :20] if where == "corner" else np.s_[0, :2, :]
    bands[part] = value
    bands[0, 40, 40] = value                                          # a true one, within
    _, shown, words = SAR.read_bands(write(tmp_path / "x.tif", bands))
    assert not shown[part[1:]].any() and shown.sum() == 64 * 64 - bands[part].size and f"{value} along" in words
    pixels = SAR.read(tmp_path / "x.tif")[0]
    clean = ramp(1, dtype, 64)
    rest = SAR.read(write(tmp_path / "clean.tif", clean))[0]
    inner = np.s_[42:, 42:]
    assert np.abs(pixels[inner].astype(float) - rest[inner]).mean() < 4, "the collar says nothing of the tones"


def test_declared_nodata_is_not_shown(tmp_path):
    bands = ramp(3, np.int16)
    bands[:, :, 30:] = -5
    _, shown = OPT.read(write(tmp_path / "x.tif", bands, nodata=-5))
    assert shown[:, :30].all() and not shown[:, 30:].any()
    colours = ramp(3)
    colours[2, 10, 10] = 0                                            # a saturated colour, no nodata
    colours[:, :, 30:] = 0
    _, shown = OPT.read(write(tmp_path / "y.tif", colours, nodata=0))
    assert shown[:, :30].all() and not shown[:, 30:].any()


def test_an_image_of_one_value_is_shown(tmp_path):
    cv2.imwrite(str(tmp_path / "x.png"), np.full((40, 40), 90, np.uint8))
    pixels, shown = SAR.read(tmp_path / "x.png")
    assert shown.all() and (pixels == 90).all()


# Files ---------------------------------------------------------------------------------------------------------------

def encoded(suffix, **settings):
    image = Image.fromarray(ramp(3).transpose(1, 2, 0))
    out = io.BytesIO()
    image.save(out, suffix, **settings)
    return out.getvalue()


@pytest.mark.parametrize("suffix", ["png", "jpeg"])
def test_bytes_after_the_end_do_no_harm_and_missing_ones_do(tmp_path, suffix):
    content = encoded(suffix)
    (tmp_path / f"x.{suffix}").write_bytes(content)
    (tmp_path / f"y.{suffix}").write_bytes(content + b"appended by a download tool" * 9)
    (tmp_path / f"z.{suffix}").write_bytes(content[:len(content) * 3 // 4])
    assert np.array_equal(OPT.read(tmp_path / f"x.{suffix}")[0], OPT.read(tmp_path / f"y.{suffix}")[0])
    with pytest.raises(InputError, match=f"z.{suffix}: cannot be decoded"):
        OPT.read(tmp_path / f"z.{suffix}")


def test_half_a_jpeg_with_a_thumbnail_is_noticed(tmp_path):
    thumbnail = encoded("jpeg")
    exif = b"Exif\0\0" + thumbnail                                    # an end of an image, before the image begins
    whole = encoded("jpeg", exif=exif)
    assert whole.count(b"\xff\xd9") == 2
    (tmp_path / "x.jpg").write_bytes(whole[:-200])
    with pytest.raises(InputError, match="the end of the file is missing"):
        OPT.read(tmp_path / "x.jpg")


def test_the_rotation_of_exif_is_honoured(tmp_path):
    image = Image.fromarray(cv2.GaussianBlur(ramp(3).transpose(1, 2, 0), (0, 0), 3)[:, :30])
    exif = Image.Exif()
    exif[0x0112] = 6                                                  # a quarter clockwise
    image.save(tmp_path / "turned.jpg", exif=exif, quality=95)
    image.save(tmp_path / "plain.jpg", quality=95)
    plain, turned = (OPT.read(tmp_path / name)[0] for name in ("plain.jpg", "turned.jpg"))
    assert turned.shape == (30, 40, 3)
    assert np.abs(np.rot90(plain, -1).astype(int) - turned).mean() < 3


def test_what_a_mac_leaves_beside_a_file_is_no_image(tmp_path):
    data = make_data(tmp_path / "d")
    for name in ("._p00.png", ".hidden.png", ".DS_Store"):
        (data / "test/opt" / name).write_bytes(b"no image")
    problems = []
    assert all(not name.startswith(".") for name in list_images(data / "test/opt", problems)) and not problems


def test_what_gdal_opens_is_opened_and_what_not_is_one_sentence(tmp_path):
    bands = ramp(3)
    file = write(tmp_path / "x.tif", bands, transform=from_origin(5e5, 4e6, 10, 10), crs="EPSG:32611")
    with rasterio.open(file) as source:
        rasterio.shutil.copy(source, tmp_path / "x.vrt", driver="VRT")
        rasterio.shutil.copy(source, tmp_path / "x.img", driver="ENVI")
        rasterio.shutil.copy(source, tmp_path / "x.jp2", driver="JP2OpenJPEG", QUALITY="100", REVERSIBLE="YES")
    for name in ("x.vrt", "x.img", "x.jp2"):
        assert np.array_equal(OPT.read(tmp_path / name)[0], bands.transpose(1, 2, 0)), name
    import zipfile
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.write(file, "x.tif")
    with open_raster(f"/vsizip/{tmp_path}/x.zip/x.tif") as source:
        assert np.array_equal(source.read(), bands)
    with pytest.raises(InputError, match="--map .*none.tif is not there"):
        open_raster(tmp_path / "none.tif", "--map")
    half = file.read_bytes()
    (tmp_path / "half.tif").write_bytes(half[:len(half) // 2])
    file.rename(tmp_path / "away.tif")
    with pytest.raises(InputError, match="x.vrt cannot be (read|opened)"):
        OPT.read(tmp_path / "x.vrt")
    with (pytest.raises(InputError, match="half.tif cannot be (read|opened)"),
          open_raster(tmp_path / "half.tif") as source):
        read_window(source)


def test_a_file_on_a_server_is_opened(tmp_path):
    bands = ramp(5)
    write(tmp_path / "x.tif", bands)
    # In a process of its own: GDAL waits for it with Python's lock in its hands.
    command = [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1", "--directory", tmp_path]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        address = re.search(r"http://[\d.:]+", server.stdout.readline()).group()
        pixels, _ = Reader("opt", (4, 3, 2)).read(f"{address}/x.tif")
        with pytest.raises(InputError, match="none.tif cannot be opened"):
            OPT.read(f"{address}/none.tif")
    finally:
        server.terminate()
        server.wait()
    assert np.array_equal(pixels, bands[[3, 2, 1]].transpose(1, 2, 0))


def test_a_run_on_sixteen_bits_in_many_bands(tmp_path):
    """Training and its test see the same images, and another data set of bytes is seen in the run's tones."""
    data = make_data(tmp_path / "d", train=8, test=8, size=32)
    for split in ("train", "test"):
        for modality, count, dtype in (("opt", 5, np.uint16), ("sar", 2, np.float32)):
            for file in sorted((data / split / modality).iterdir()):
                pixels = cv2.imread(str(file)).astype(np.float32)[..., :1]
                bands = np.concatenate([pixels + 3 * k for k in range(count)], 2).transpose(2, 0, 1)
                numbers = bands * 20 if modality == "opt" else bands / 10 - 25
                write(file.with_suffix(".tif"), numbers.astype(dtype))
                file.unlink()
    run = tmp_path / "run"
    flags = "--arch resnet18 --img_size 32 --init none --batch_size 4 --epochs 1 --bands 4,3,2 --amp off".split()
    done = script(ROOT / "code/train.py", "--data_path", data, *flags, "--result_path", run)
    assert done.returncode == 0, done.stderr
    tested = script(ROOT / "code/test.py", "--run", run, "--amp", "off")
    assert tested.returncode == 0, tested.stderr
    last = [line for line in done.stdout.splitlines() if line.startswith("FC")][-1]
    assert last in tested.stdout
    assert readers_of_run(run)["opt"].bands == [4, 3, 2]
