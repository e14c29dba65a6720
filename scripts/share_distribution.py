"""share_distribution.py NAME ENVIRONMENT: links a distribution of this environment into another one of the same Python.

With it come those that it requires, as a CUDA build of torch requires NVIDIA's libraries, but for those that the other
environment has in a version of its own.
"""

from __future__ import annotations

import sys
from importlib.metadata import Distribution, PackageNotFoundError, distribution, distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def required(name: str) -> dict[str, Distribution]:
    """The distribution and all that it requires here, by canonical name."""
    found: dict[str, Distribution] = {}
    waiting = [name]
    while waiting:
        key = canonicalize_name(waiting.pop())
        if key in found:
            continue
        try:
            found[key] = distribution(key)
        except PackageNotFoundError:
            continue  # not needed on this machine, or pip would have brought it
        requirements = map(Requirement, found[key].requires or ())
        waiting += [each.name for each in requirements if not each.marker or each.marker.evaluate({"extra": ""})]
    return found


def main() -> None:
    """Make the links, in place of older ones."""
    name, environment = sys.argv[1:]
    target = Path(environment, "lib", f"python{sys.version_info[0]}.{sys.version_info[1]}", "site-packages")
    for entry in target.iterdir():
        if entry.is_symlink():
            entry.unlink()
    own = {canonicalize_name(each.metadata["Name"]) for each in distributions(path=[str(target)])}
    for key, found in required(name).items():
        if key in own:
            continue
        source = Path(str(found.locate_file("")))
        for top in {file.parts[0] for file in found.files or () if file.parts[0] not in ("..", "__pycache__")}:
            if not (target / top).exists():
                (target / top).symlink_to(source.resolve() / top)


if __name__ == "__main__":
    main()
