"""How a script's images are read: by its flags, or as a finished run's were."""
import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from shared.plumbing.errors import InputError
from shared.plumbing.files import write_text
from shared.plumbing.packed import has_file, text_of
from shared.reading.raster import Reader
from shared.reading.tones import Stretch, Tones

READING = "reading.json"
READERS = {"opt": Reader("opt"), "sar": Reader("sar")}


def readers_of(args):
    """{"opt", "sar"}: the Readers that --bands, --sar_bands and --scale ask for."""
    return {"opt": Reader("opt", args.bands), "sar": Reader("sar", args.sar_bands, args.scale or "auto")}


def flags_of(readers):
    """The flags that Readers stand for, {name: value}: what embeddings are told apart by."""
    return {"bands": readers["opt"].bands, "sar_bands": readers["sar"].bands, "scale": readers["sar"].scale}


def save_readers(folder, readers, tones):
    """Keep in a run's folder how its training images were read, and the Tones that they had: {"opt", "sar"} both."""
    content = {name: {**asdict(reader), "tones": asdict(tones[name])} for name, reader in readers.items()}
    write_text(Path(folder) / READING, json.dumps(content, indent=1, default=np.ndarray.tolist))


def readers_of_run(folder, args=None, is_own_data=True):
    """The Readers for images that a finished run is to see: its own data set's, or any others', brought to its tones.

    folder: or a packed file. args: whose --bands, --sar_bands and --scale win, where they are given; or None.
    InputError where the reading.json is damaged; a run from before there was one has read bytes.
    """
    readers = dict(READERS)
    if has_file(folder, READING):
        try:
            content = json.loads(text_of(folder, READING))
            readers = {name: _reader(**settings) for name, settings in content.items()}
        except (ValueError, TypeError, AttributeError) as error:
            raise InputError(f"{Path(folder) / READING} cannot be read ({error!r}): it tells how the training images "
                             "were read; bring it back")
    if not is_own_data:
        readers = {name: replace(reader, bands=None, scale="auto", stretch=None) for name, reader in readers.items()}
    if args is not None:
        asked = {"opt": {"bands": args.bands}, "sar": {"bands": args.sar_bands, "scale": args.scale}}
        for name, settings in asked.items():
            given = {key: value for key, value in settings.items() if value is not None}
            if given:                                   # of other bands the run knows no stretch
                readers[name] = replace(readers[name], stretch=None, **given)
    return readers


def _reader(modality, bands, scale, tones, stretch):
    if stretch:
        stretch = Stretch(stretch["decibels"], *(np.array(stretch[name], np.float32) for name in ("mean", "std")))
    return Reader(modality, bands, scale, Tones(**{name: tuple(value) for name, value in tones.items()}), stretch)
