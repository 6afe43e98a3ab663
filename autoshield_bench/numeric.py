"""The numeric class of a machine: what decides the last bits of a float32 result. Found without importing torch."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Literal

Device = Literal["cpu", "cuda", "mps"]

_X86_LEVELS = ("amx_tile", "avx512_bf16", "avx512f", "avx2", "avx", "sse4_2")


def torch_build() -> str:
    """Return torch's build, such as ``2.13.0+cpu``, read from its version file; empty where torch is missing."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return ""
    try:
        text = (Path(spec.origin).parent / "version.py").read_text(encoding="utf-8")
    except OSError:
        return ""
    found = re.search(r"^__version__\s*=\s*['\"]([^'\"]+)", text, re.MULTILINE)
    return found.group(1) if found else ""


def instruction_set() -> str:
    """Return the widest vector instructions that the processor's kernels may use, as one word."""
    machine = platform.machine().lower()
    flags = _cpu_field("flags").split()
    level = next((name for name in _X86_LEVELS if name in flags), "")
    asked = (os.environ.get(name, "") for name in ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA"))
    # These stand in every record, so nothing but the name of an instruction set may pass.
    limits = [limit for limit in asked if re.fullmatch(r"[A-Za-z0-9_]{1,24}", limit)]
    return "-".join([machine, *([level] if level else []), *limits])


def processor() -> str:
    """Return the processor's name as it gives it itself."""
    return _cpu_field("model name") or platform.processor() or platform.machine()


@functools.cache
def resolve_device(wish: str) -> Device:
    """Return the device for ``auto``, ``cpu``, ``cuda`` or ``mps``; asks torch only where a GPU may be present.

    Raises ValueError where the device is not to be had.
    """
    if wish == "cpu":
        return "cpu"
    may_have_cuda = any(Path("/dev").glob("nvidia[0-9]*")) or Path("/dev/dxg").exists() or Path("/dev/kfd").exists()
    if wish == "auto" and not may_have_cuda:
        return "cpu"  # on a Mac too: small networks run no faster on its GPU, and it is chosen by name
    available = _accelerators()
    if wish == "auto":
        return "cuda" if "cuda" in available else "cpu"
    if wish not in available:
        raise ValueError(f"{wish} is not available on this machine")
    return "cuda" if wish == "cuda" else "mps"


@functools.cache
def _accelerators() -> dict[str, str]:
    """Return the accelerators that torch finds, with their kind; asked in a process of its own."""
    # This one stays without torch, and without a context on the device, which takes memory there.
    done = subprocess.run([sys.executable, "-P", "-c", _QUESTION], capture_output=True, text=True, check=False)
    try:
        found = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        return {}
    return {str(name): str(kind) for name, kind in found.items()}


_QUESTION = """
import json, torch
found = {}
if torch.cuda.is_available():
    found["cuda"] = "sm%d%d" % torch.cuda.get_device_capability()
if torch.backends.mps.is_available():
    found["mps"] = "mps"
print(json.dumps(found))
"""


def numeric_class(device: Device) -> str:
    """Return device kind, instruction set and torch build as one line; part of every key."""
    if device == "cpu":
        return f"cpu/{instruction_set()}/{torch_build()}"
    if device == "cuda":
        return f"cuda/{_accelerators().get('cuda', '')}/{torch_build()}"
    return f"mps/{platform.machine()}/{torch_build()}"


def short_class(numeric: str) -> str:
    """Return a numeric class as a short name that fits into a file's, such as ``cpu-3f0c2a9b``."""
    kind = re.sub(r"[^a-z0-9]", "", numeric.partition("/")[0].lower())[:8]
    return f"{kind or 'unknown'}-{hashlib.sha256(numeric.encode(errors='backslashreplace')).hexdigest()[:8]}"


@functools.cache
def _cpu_field(name: str) -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    found = re.search(rf"^{re.escape(name)}\s*:\s*(.*)$", text, re.MULTILINE)
    return found.group(1).strip() if found else ""
