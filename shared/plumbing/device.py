"""The device and the precision of a run."""
import functools
import os

import torch

from shared.plumbing.errors import InputError

AMPS = ("auto", "bf16", "fp16", "off")


def choose_device(name):
    """`auto` (CUDA when there is one), or any name that torch knows. InputError where it is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device {name} cannot be used here ({str(error).splitlines()[0]}): try --device cpu")
    return device


def autocast_dtype(amp, device):
    """torch.bfloat16, torch.float16 or None for `--amp` on this device.

    auto: on CUDA bf16 where it is native, else fp16; on a CPU bf16 only where the processor computes in it
    (AVX512_BF16 or AMX), since emulation is slower than float32; else off.
    """
    if amp not in AMPS:
        raise InputError(f"--amp {amp}: give one of {', '.join(AMPS)}")
    if amp != "auto":
        return {"bf16": torch.bfloat16, "fp16": torch.float16, "off": None}[amp]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return torch.bfloat16 if device.type == "cpu" and _cpu_has_bf16() else None


def autocast(device, amp):
    """A function that gives a torch.autocast context for `--amp` on this device; it does nothing where amp is off."""
    dtype = autocast_dtype(amp, device)
    return functools.partial(torch.autocast, device.type, dtype=dtype, enabled=dtype is not None)


def _cpu_has_bf16():
    if not os.path.exists("/proc/cpuinfo"):
        return False
    with open("/proc/cpuinfo") as info:
        flags = info.read().split()
    return "avx512_bf16" in flags or "amx_bf16" in flags
