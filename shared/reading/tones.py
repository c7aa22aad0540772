"""Tones: how numbers beyond bytes (16 bits, decibels, power) become the grey levels that a network was trained on."""
from dataclasses import dataclass

import numpy as np

SCALES = ("auto", "db", "linear", "power")              # of SAR: what its numbers are
LEVELS = (1, 99)                                        # percentiles beyond which values say nothing of the tones
BLACK_DB = -60.0                                        # of a value of nothing, below the largest


@dataclass(frozen=True)
class Tones:
    """Mean and standard deviation of each of three channels, (3) grey levels in [0, 255], between LEVELS."""
    mean: tuple = (110.0,) * 3
    std: tuple = (50.0,) * 3


def evenly(items, count):
    """At most so many of a sequence, or of an array's rows, evenly spread."""
    if not len(items):
        return []
    rows = np.unique(np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int))
    return [items[i] for i in rows]


def measure_tones(images):
    """The Tones of images, each (H, W, 3) uint8: of every eighth pixel across and down."""
    pixels = np.concatenate([np.asarray(image[::8, ::8, :3], np.float32).reshape(-1, 3) for image in images])
    mean, std = robust_moments(pixels.T)
    return Tones(tuple(mean.tolist()), tuple(std.tolist()))


def robust_moments(values):
    """(mean, std), each (C), of what lies between LEVELS in (C, N) finite floats."""
    low, high = np.percentile(values, LEVELS, axis=1, keepdims=True)
    inner = values.clip(low, high)
    return inner.mean(1), inner.std(1)


@dataclass(frozen=True)
class Stretch:
    """How numbers become grey levels: their logarithm, where they are no decibels, brought to tones band by band.

    decibels: the numbers' logarithm is taken. mean, std: (C, 1, 1) float32, of what is left.
    """
    decibels: bool
    mean: np.ndarray
    std: np.ndarray

    def apply(self, bands, tones):
        """(C, H, W) floats -> (H, W, 3) uint8; one band is repeated. What is not finite becomes 0."""
        values = to_decibels(bands) if self.decibels else bands
        values = np.nan_to_num((values - self.mean) / self.std, nan=-1e3, neginf=-1e3, posinf=1e3)
        if len(values) == 1:                            # one band has the tones of all channels together
            grey = np.mean(tones.mean) + np.mean(tones.std) * values
            values = np.repeat(grey, 3, 0)
        else:
            values = np.reshape(tones.mean, (3, 1, 1)) + np.reshape(tones.std, (3, 1, 1)) * values
        return np.ascontiguousarray(values.round().clip(0, 255).astype(np.uint8).transpose(1, 2, 0))


def measure_stretch(values, modality, scale="auto"):
    """The Stretch of (C, N) finite floats. scale: one of SCALES; auto takes the logarithm of SAR values that it makes
    more symmetric, as it does speckle's."""
    decibels = scale in ("linear", "power")
    if scale == "auto" and modality == "sar" and values.size and np.percentile(values, LEVELS[0]) >= 0:
        decibels = _skewness(to_decibels(values)) < _skewness(values)
    values = to_decibels(values) if decibels else values
    mean, std = robust_moments(values)
    flat = std < 1e-6 * np.maximum(np.abs(mean), 1e-6)
    mean, std = (part.astype(np.float32)[:, None, None] for part in (mean, np.where(flat, 1.0, std)))
    return Stretch(decibels, mean, std)


def to_decibels(values):
    """10 log10 of the values; nothing becomes BLACK_DB below the largest. The factor of amplitudes, 20, a stretch takes
    away."""
    shown = values[np.isfinite(values)]
    largest = max(shown.max(initial=0), np.finfo(np.float32).tiny)
    with np.errstate(invalid="ignore"):
        return 10 * np.log10(np.maximum(values, largest * 10 ** (BLACK_DB / 10)))


def _skewness(values):
    mean, std = robust_moments(values)
    low, high = np.percentile(values, LEVELS, axis=1, keepdims=True)
    inner = values.clip(low, high)
    return float(np.abs((((inner - mean[:, None]) / np.maximum(std, 1e-12)[:, None]) ** 3).mean(1)).mean())
