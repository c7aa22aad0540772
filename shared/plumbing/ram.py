"""How much memory is free, and was taken: Linux, macOS and Windows tell it in ways of their own."""
import ctypes
import os
import sys

try:
    import resource
except ImportError:                                                   # Windows
    resource = None


def free_memory():
    """Bytes that are free; where the system tells only how many are built in (macOS), half of these."""
    try:
        with open("/proc/meminfo") as info:
            return next(int(line.split()[1]) * 1024 for line in info if line.startswith("MemAvailable"))
    except (OSError, StopIteration):                                  # not Linux
        pass
    if hasattr(os, "sysconf"):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    status = _MemoryStatus(length=ctypes.sizeof(_MemoryStatus))
    ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status))
    return status.free


def peak_memory():
    """The most that this process has had in memory, in bytes; None on Windows."""
    if resource is None:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class _MemoryStatus(ctypes.Structure):
    """Windows' MEMORYSTATUSEX."""
    _fields_ = [("length", ctypes.c_uint32), ("load", ctypes.c_uint32), ("built_in", ctypes.c_uint64),
                ("free", ctypes.c_uint64), *((f"other{i}", ctypes.c_uint64) for i in range(5))]
