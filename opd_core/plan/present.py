"""The memory that is there, found without torch: of the device of a config, and of the CPU."""

from __future__ import annotations

import ctypes
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

from opd_core.plan.cards import Card, card_of_device

CGROUP = Path("/sys/fs/cgroup")
_DRIVERS = ("libcuda.so.1", "nvcuda.dll")


def present_card(device: str) -> Card | None:
    """The CUDA device that `machine.device` = `device` will be; None where that is the CPU, or
    something whose memory is not known here.

    Asks the driver, which takes a moment that torch is spared later; torch itself would take
    seconds to import.
    """
    kind, _, number = device.partition(":")
    if kind not in ("auto", "cuda") or not _torch_has_cuda():
        return None
    return _ask_driver(int(number) if number.isdecimal() else 0)


def is_cpu(device: str) -> bool:
    """Whether `machine.device` = `device` will be the CPU."""
    return device == "cpu" or (device == "auto" and present_card("auto") is None)


def ram(groups: Path = CGROUP) -> int:
    """Bytes of memory that this process may use: the machine's, or what a container leaves it."""
    limits = [int(psutil.virtual_memory().total)]
    mine = ""
    with suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            if line.startswith("0::"):
                mine = line.removeprefix("0::/")
    folders = [groups / mine, *(groups / mine).parents]
    files = [f / "memory.max" for f in folders if f.is_relative_to(groups)]
    for file in (*files, groups / "memory" / "memory.limit_in_bytes"):
        with suppress(OSError, ValueError):  # "max": no limit
            limits.append(int(file.read_text()))
    return min(limits)


def _torch_has_cuda() -> bool:
    """By its version: builds for the CPU are named so."""
    with suppress(PackageNotFoundError):
        return "+cpu" not in version("torch")
    return False


def _ask_driver(ordinal: int) -> Card | None:
    """Name and memory of a CUDA device, as CUDA_VISIBLE_DEVICES lets this process see it."""
    driver = _driver()
    device, memory, text = ctypes.c_int(), ctypes.c_size_t(), ctypes.create_string_buffer(256)
    if driver is None or driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), ordinal):
        return None
    if driver.cuDeviceTotalMem_v2(ctypes.byref(memory), device):
        return None
    driver.cuDeviceGetName(text, len(text), device)
    return card_of_device(text.value.decode(errors="replace"), float(memory.value))


def _driver() -> ctypes.CDLL | None:
    for name in _DRIVERS:
        with suppress(OSError):
            return ctypes.CDLL(name)
    return None
