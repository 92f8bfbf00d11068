"""What tests with GPUs need of the machine."""

from __future__ import annotations

import subprocess


def gpus() -> int:
    """NVIDIA devices here; 0 without their driver."""
    try:
        listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return 0
    return len(listing.stdout.splitlines())
