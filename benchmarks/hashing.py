"""How fast files are digested: beside plainly reading them, and what is looked at again when nothing changed.

`.venv/bin/python benchmarks/hashing.py [--gb 4] [--folder DIR]`; needs modelbuild, and disk for the files. Exits 1 when
a digest is wrong or a file is read that should not be.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import meter
import xxhash
from meter import BenchmarkError

from modelbuild import digest
from modelbuild.digest import StatCache

CHUNK = 1 << 20
FILES, FILE_BYTES = 20, 256 << 20


def read_plainly(path: Path) -> None:
    """All bytes through one buffer of 1 MiB, thrown away."""
    buffer = bytearray(CHUNK)
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def cost(work: Callable[[], object]) -> tuple[float, float]:
    """CPU-seconds and wall seconds of this process and its threads."""
    cpu, wall = time.process_time(), time.monotonic()
    work()
    return time.process_time() - cpu, time.monotonic() - wall


def fill(path: Path, size: int) -> None:
    """A file of random bytes, one block repeated with a counter so that no two blocks are equal."""
    block = os.urandom(8 << 20)
    with path.open("wb") as file:
        for number in range(size // len(block)):
            file.write(number.to_bytes(8, "little") + block[8:])


def speed(path: Path, rounds: int) -> list[list[str]]:
    """Rows of the table of one large file, the two ways in turns."""
    read_plainly(path)
    plain, ours = [], []
    for number in range(rounds):
        for work, seen in ((read_plainly, plain), (digest.of_file, ours))[:: 1 if number % 2 else -1]:
            seen.append(cost(lambda work=work: work(path)))
    gigabytes = path.stat().st_size / 1e9
    base = statistics.median(wall for _, wall in plain)
    rows = []
    for name, seen in (("plain read", plain), ("digest", ours)):
        cpu, wall = (statistics.median(values) for values in zip(*seen, strict=True))
        rows.append([name, f"{gigabytes / wall:.2f}", f"{base / wall:.2f}", f"{cpu:.2f}"])
    return rows


def unchanged(folder: Path) -> list[list[str]]:
    """Rows of the table of many files: first seen, unchanged, touched, and after that."""
    paths = [folder / f"{i}.bin" for i in range(FILES)]
    for path in paths:
        fill(path, FILE_BYTES)
    time.sleep(2.1)  # what was written just now is no longer young to the stat cache
    rows = []

    def look(name: str, reads: int) -> None:
        cache = StatCache(folder / "digests.sqlite")
        before = cache.read_bytes
        cpu, wall = cost(lambda: ([cache.digest(p) for p in paths], cache.save()))
        read = (cache.read_bytes - before) / FILE_BYTES
        cache.close()
        if round(read) != reads:
            raise BenchmarkError(f"{name}: {read:.1f} files were read and not {reads}")
        rows.append([name, f"{read:.0f}", f"{1000 * cpu:.1f}", f"{1000 * wall:.1f}"])

    look("first", FILES)
    look("unchanged", 0)
    for path in paths:
        path.touch()
    time.sleep(2.1)
    look("touched", FILES)
    look("unchanged since", 0)
    cpu, wall = cost(lambda: [p.stat() for p in paths])
    rows.append([f"{FILES} stats alone", "0", f"{1000 * cpu:.1f}", f"{1000 * wall:.1f}"])
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gb", type=float, default=4.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where the files are made; by default the temporary folder")
    options = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory(prefix="hashing-", dir=options.folder) as temporary:
            folder = Path(temporary)
            large = folder / "large.bin"
            fill(large, int(options.gb * 1e9))
            with large.open("rb") as file:
                expected = xxhash.xxh3_128()
                while chunk := file.read(CHUNK):
                    expected.update(chunk)
            if digest.of_file(large) != expected.hexdigest():
                raise BenchmarkError("the digest is not xxh3-128 of the file")
            first = speed(large, options.rounds)
            large.unlink()
            second = unchanged(folder)
    except BenchmarkError as e:
        meter.say(f"error: {e}")
        return 1
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    sys.stdout.write(f"{meter.machine()}; medians of {options.rounds} rounds in turns; peak memory {peak:.0f} MB.\n\n")
    sys.stdout.write(meter.table([f"{options.gb:g} GB, in the page cache", "GB/s", "of plain", "CPU-s"], first) + "\n")
    head = [f"{FILES} files of {FILE_BYTES >> 20} MiB", "files read", "CPU ms", "wall ms"]
    sys.stdout.write(meter.table(head, second))
    return 0


if __name__ == "__main__":
    sys.exit(main())
