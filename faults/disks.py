"""A disk of its own for a test: an ext4 in a file that can be filled, or lose its power."""

import contextlib
import fcntl
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

MIB = 1024 * 1024

_EXT4_IOC_SHUTDOWN = 0x8004587D
_NO_LOG_FLUSH = 2


def why_not() -> str:
    """Why no such disk can be made here; "" where it can."""
    if os.name != "posix" or os.geteuid() != 0:
        return "only root may mount a disk made of a file"
    lacking = [name for name in ("mkfs.ext4", "mount", "umount") if shutil.which(name) is None]
    if lacking:
        return f"there is no {lacking[0]}"
    return "" if Path("/dev/loop-control").exists() else "there are no loop devices"


class Disk:
    """A mounted ext4, whose files are in `folder`."""

    def __init__(self, image: Path, folder: Path) -> None:
        self.folder = folder
        self._image = image

    def cut_power(self) -> None:
        """From now on nothing reaches the disk, what was written and not synced neither.

        Every write fails, until `power_on`; whoever has files open there must end first.
        """
        descriptor = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.ioctl(descriptor, _EXT4_IOC_SHUTDOWN, struct.pack("I", _NO_LOG_FLUSH))
        finally:
            os.close(descriptor)

    def power_on(self) -> None:
        """Mount what is on the disk, as after a start of the machine."""
        _run("umount", self.folder)
        self.mount()

    def mount(self) -> None:
        _run("mount", "-o", "loop", self._image, self.folder)


@contextlib.contextmanager
def mounted(folder: Path, mib: int) -> Iterator[Disk]:
    """An empty disk of so many MiB, its image and its mount point in `folder`, where the image
    stays to be looked into; only where `why_not` says nothing."""
    image, place = folder / "disk.img", folder / "disk"
    with image.open("wb") as file:
        file.truncate(mib * MIB)
    _run("mkfs.ext4", "-q", "-m", "0", image)
    place.mkdir()
    disk = Disk(image, place)
    disk.mount()
    try:
        yield disk
    finally:
        # Lazily: whoever still looks into it must not keep the folder from going away.
        _run("umount", "-l", place)


def _run(*command: str | Path) -> None:
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    if ran.returncode:
        raise OSError(f"{' '.join(map(str, command))}: {ran.stderr.strip()}")
