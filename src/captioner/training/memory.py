"""Memory: how much is free, and on the CPU freed memory that is kept for the next step."""

import ctypes
import os
import re
import resource
import sys
from pathlib import Path

import torch

# glibc's malloc.h: above this size memory comes from the system alone; above this much free memory
# at the heap's end it goes back.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
KEPT = 2**30  # bytes


def keep_freed_memory() -> bool:
    """Ask glibc to keep what tensors free, for the next step's tensors; whether it agreed.

    A step allocates tens of megabytes of activations. By default glibc gives such blocks back, and
    the kernel maps them again page by page, each filled with zeros: 500 to 7,000 page faults a
    step were measured, now none. For the whole process; elsewhere than on glibc nothing happens.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # musl has none
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, KEPT)) and bool(mallopt(M_TRIM_THRESHOLD, KEPT))


def free_memory(device: torch.device) -> int | None:
    """Bytes that could be allocated now on a torch device; None where the system does not say.

    On the CPU the least of what the machine, the container and the process's own limit leave.
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    found = [_of_machine(), _of_container(Path("/sys/fs/cgroup")), _of_process()]
    return min((one for one in found if one is not None), default=None)


def _of_machine() -> int | None:
    try:
        found = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
        if found is not None:
            return int(found[1]) * 1024
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return None


def _of_container(folder: Path) -> int | None:
    """What a control group of version 2 leaves; files in the page cache can be given up."""
    try:
        most, used = ((folder / f"memory.{one}").read_text() for one in ("max", "current"))
        files = re.search(r"^inactive_file (\d+)", (folder / "memory.stat").read_text(), re.M)
        return int(most) - int(used) + int(files[1] if files else 0)
    except (OSError, ValueError):  # no group, or no limit: "max"
        return None


def _of_process() -> int | None:
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit == resource.RLIM_INFINITY:
        return None
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except (OSError, ValueError):
        pages = 0
    return max(0, limit - pages * os.sysconf("SC_PAGE_SIZE"))
