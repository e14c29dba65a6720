"""``python3 -m etcd_pd.kubernetes.client_copy DIRECTORY``: put this package where an unmodified engine image finds it.

Copied is the package with its metadata: SGLang finds plug-ins by the entry points that stand there. What an engine
imports of it needs the standard library alone.
"""

from __future__ import annotations

import shutil
import sys
from importlib.metadata import distribution
from pathlib import Path


def copy_to(directory: Path) -> int:
    """Copy all files of the installed package; how many.

    Raises:
        PackageNotFoundError: it is not installed.
    """
    found = distribution("etcd-pd")
    files = [file for file in found.files or () if file.parts[0] != ".." and file.suffix != ".pyc"]
    for file in files:
        target = directory / file
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(str(found.locate_file(file)), target)
    return len(files)


if __name__ == "__main__":
    print(f"copied {copy_to(Path(sys.argv[1]))} files to {sys.argv[1]}")
