"""Memory: the peak of one call as PyTorch's allocators see it, and what this process holds."""

import json
import os
import re
import resource
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

ALLOCATION = "[memory]"  # the name of an allocation or release in a profile's trace


def peak_allocated(call: Callable[[], object], device: torch.device) -> int:
    """Bytes of the most that `call` holds at a time, beyond what was allocated before it; on a CPU
    as the profiler sees it, without what oneDNN takes. Call once before to leave first uses out."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        result = call()
        torch.cuda.synchronize(device)
        del result
        return int(torch.cuda.max_memory_allocated(device) - before)
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it reports missing GPUs on standard error
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as taken:
        result = call()
    del result
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        taken.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    peak = held = 0
    for event in sorted((e for e in events if e.get("name") == ALLOCATION), key=lambda e: e["ts"]):
        held += int(event["args"]["Bytes"])
        peak = max(peak, held)
    return peak


def peak_bytes() -> int:
    """This process's largest resident memory so far: Linux's VmHWM where there is one, as the
    system's ru_maxrss also counts what a child holds of its parent for a moment."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return _of_status("VmHWM", peak if sys.platform == "darwin" else peak * 1024)


def own_bytes() -> int:
    """Memory of this process now that belongs to no file, or its peak where Linux does not say."""
    return _of_status("RssAnon", peak_bytes())


def _of_status(name: str, otherwise: int) -> int:
    """A size of Linux's /proc/self/status in bytes."""
    status = Path("/proc/self/status")
    text = status.read_text() if status.is_file() else ""
    found = re.search(rf"^{name}:\s*(\d+)", text, re.M)
    return int(found[1]) * 1024 if found else otherwise
