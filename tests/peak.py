"Peak memory of this process alone."
import resource
import sys
from pathlib import Path


def peak_mib() -> float:
    "Peak resident memory of this process; a child's `ru_maxrss` on Linux begins at what its parent had."
    status = Path("/proc/self/status")
    if status.is_file(): return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 1024)
