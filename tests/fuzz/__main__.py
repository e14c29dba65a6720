"""Nights of hostile bytes: ``python -m tests.fuzz [libFuzzer's options] [CORPUS]``, or ``make fuzz``."""

from __future__ import annotations

import logging
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["etcd_pd"]):
    import etcd_pd.agent.agent
    import etcd_pd.agent.connection  # noqa: F401

from tests.unit.agent.test_strangers import HOSTILE

from .attack import Attacker, as_input


def main() -> None:
    """Fuzz until told to stop; a crash leaves its input behind."""
    logging.disable(logging.CRITICAL)
    for option in sys.argv[1:]:
        if not option.startswith("-"):
            corpus = Path(option)
            corpus.mkdir(parents=True, exist_ok=True)
            for number, packet in enumerate(HOSTILE):
                (corpus / f"known-{number}").write_bytes(as_input(packet))
    with tempfile.TemporaryDirectory(prefix="etcd-pd-") as directory:
        attacker = Attacker(Path(directory))
        atheris.Setup(sys.argv, attacker)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
