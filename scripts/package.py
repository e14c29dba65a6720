"""Build the wheel and the sdist into a directory (default: dist/): the same bytes from the same sources.

Times in the archives are $SOURCE_DATE_EPOCH, by default that of the last commit. The sources are copied first, so that
what an earlier build left behind gets into neither.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import tempfile

ROOT = pathlib.Path(__file__).parent.parent
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "etcd_pd")
#: The earliest time that a wheel, being a zip archive, can hold.
EARLIEST = 315532800


def main(arguments: list[str]) -> int:
    """Build, and print each archive with its SHA-256."""
    out = pathlib.Path(arguments[0] if arguments else ROOT / "dist").resolve()
    epoch = source_date()
    with tempfile.TemporaryDirectory(prefix="etcd-pd-package-") as directory:
        source = pathlib.Path(directory, "source")
        source.mkdir()
        for name in SOURCES:
            copy(ROOT / name, source / name)
        built = pathlib.Path(directory, "built")
        subprocess.run(
            [sys.executable, "-m", "build", "--no-isolation", "--outdir", built, source],
            check=True,
            stdout=subprocess.DEVNULL,
            env={**os.environ, "SOURCE_DATE_EPOCH": str(epoch)},
        )
        out.mkdir(parents=True, exist_ok=True)
        for archive in sorted(built.iterdir()):
            data = repacked(archive.read_bytes(), epoch) if archive.suffix == ".gz" else archive.read_bytes()
            (out / archive.name).write_bytes(data)
            print(f"{hashlib.sha256(data).hexdigest()}  {out / archive.name}")
    return 0


def source_date() -> int:
    """Seconds since 1970 that stand for when these sources were made."""
    given = os.environ.get("SOURCE_DATE_EPOCH")
    if given:
        return max(int(given), EARLIEST)
    asked = subprocess.run(["git", "log", "-1", "--format=%ct"], cwd=ROOT, capture_output=True, text=True, check=False)
    return max(int(asked.stdout.strip() or 0), EARLIEST)


def copy(source: pathlib.Path, target: pathlib.Path) -> None:
    """Copy a file or a tree, without what running it left behind, and with plain permissions."""
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy(source, target)
    for path in (target, *target.rglob("*")) if target.is_dir() else (target,):
        path.chmod(0o755 if path.is_dir() else 0o644)


def repacked(sdist: bytes, epoch: int) -> bytes:
    """The same tar archive without the hour and the user of its making: setuptools writes both."""
    packed = io.BytesIO()
    with (
        tarfile.open(fileobj=io.BytesIO(sdist)) as old,
        gzip.GzipFile(filename="", mode="wb", fileobj=packed, mtime=epoch) as compressed,
        tarfile.open(fileobj=compressed, mode="w", format=tarfile.GNU_FORMAT) as new,
    ):
        for member in sorted(old.getmembers(), key=lambda member: member.name):
            member.mtime, member.uid, member.gid, member.uname, member.gname = epoch, 0, 0, "", ""
            new.addfile(member, old.extractfile(member) if member.isfile() else None)
    return packed.getvalue()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
