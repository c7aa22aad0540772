"""A run's decoder and what it draws: kept, opened, compared with the true image, shown."""
import torch

from decoder import Decoder
from shared.adapting.likeness import likeness, show_strip
from shared.dataset import to_bytes, to_float
from shared.model import channels_of
from shared.plumbing.errors import InputError
from shared.plumbing.files import load_tensors, state_on_cpu, write_tensors

DECODER = "decoder.pt"
AT_ONCE = 64                                            # images drawn at once
SHOWN = 8                                               # places of a picture


def build_decoder(model, run):
    """The Decoder of a network's maps, new, or that of a finished run (its folder).

    InputError where the run holds none, or one for another architecture.
    """
    channels = channels_of(model)[1:]
    if not run:
        return Decoder(channels)
    decoder = load_decoder(run, "--decoder")
    if decoder.settings["channels"] != channels:
        raise InputError(f"--decoder {run}: its decoder draws from another architecture; give the --arch of that run")
    return decoder


def save_decoder(decoder, folder):
    """Keep a decoder in the folder of its run."""
    write_tensors(folder / DECODER, {**decoder.settings, "model": state_on_cpu(decoder)})


def load_decoder(folder, flag):
    """The Decoder of a finished run. InputError where there is none."""
    saved = load_tensors(f"{folder}/{DECODER}", flag)
    try:
        state = saved.pop("model")
        decoder = Decoder(**saved)
        decoder.load_state_dict(state)
    except (AttributeError, KeyError, TypeError, RuntimeError) as error:
        raise InputError(f"{folder}/{DECODER} is not what code_SAN/train.py writes ({str(error).splitlines()[0]})")
    return decoder.eval()


@torch.no_grad()
def draw_images(model, decoder, images, modality, device, autocast):
    """Draw from (N, S, S, 3) uint8 images of `opt` or `sar`: (N, S, S, 3) uint8, clipped to [0, 255], RGB."""
    drawn = []
    for portion in images.split(AT_ONCE):
        batch = to_float(portion, device)
        with autocast():
            maps = model(**{modality: batch}, with_maps=True).maps
            drawn.append(to_bytes(decoder(maps, batch.shape[-2:])[0]))
    return torch.cat(drawn)


def draw_split(model, decoder, pairs, device, autocast, file):
    """How well the optical images of a split's places are drawn, and a picture of some, written to the file.

    Returns {"psnr_from_sar", "ssim_from_sar", "psnr_from_opt", "ssim_from_opt"}: see likeness.
    """
    model.eval()
    decoder.eval()
    images = pairs.images
    shown = torch.linspace(0, len(pairs) - 1, min(SHOWN, len(pairs))).long()
    figures, rows = {}, {}
    for modality, title in (("sar", "SAR"), ("opt", "optical")):
        drawn = draw_images(model, decoder, images[modality], modality, device, autocast)
        figures.update({f"{name}_from_{modality}": value for name, value in likeness(drawn, pairs.opt).items()})
        rows.update({title: images[modality][shown], f"drawn from {title}": drawn[shown]})
    show_strip(rows, file)
    return figures
