"""Whether the kernel was told to keep its memory from everybody: asked to explain a refusal, never
to foresee one. Source: security/lockdown/lockdown.c.
"""

from __future__ import annotations

import re
from pathlib import Path

from ig.errors import KernelRefused

_FILE = Path("/sys/kernel/security/lockdown")


def explained() -> KernelRefused | None:
    """Return the refusal that a lockdown for confidentiality explains, None if none is known of."""
    try:
        said = _FILE.read_text("ascii")
    except OSError:  # no such feature, no securityfs mounted, or no right to look
        return None
    level = re.search(r"\[(\w+)\]", said)
    if not level or level[1] != "confidentiality":
        return None
    return KernelRefused(
        "This kernel is locked down for confidentiality: nobody may trace it, not even root.",
        f"{_FILE} says {level[1]}.",
        "Boot without lockdown=confidentiality (integrity does no harm here); "
        "`ig snapshot socket` and `ig list-containers` work as it is.",
    )
