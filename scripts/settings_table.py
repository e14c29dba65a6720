"""Write the table of the agent's settings into README.md, or with --check say whether it is up to date."""

from __future__ import annotations

import pathlib
import re
import sys
from collections.abc import Iterator
from dataclasses import MISSING, fields
from typing import Any

from etcd_pd.config import AgentSettings, EtcdSettings, option_name

README = pathlib.Path(__file__).parent.parent / "README.md"
COMPUTED = {"socket": "by user", "agent_id": "host and pid"}


def rows(settings: Any) -> Iterator[str]:
    """One table row for each field."""
    for setting in fields(settings):
        if setting.name == "etcd":
            yield from rows(EtcdSettings)
            continue
        name = option_name(setting)
        default = setting.default if setting.default is not MISSING else None
        if isinstance(default, tuple):
            default = ", ".join(map(str, default))
        shown = COMPUTED.get(name) or (f"0{default:o}" if setting.metadata.get("octal") else f"{default}")
        yield f"| `{name}` | {shown} | {setting.metadata['help']} |"


def main() -> int:
    """Rewrite or check; 1 where --check finds a difference."""
    table = "\n".join(["| setting | default | meaning |", "|---|---|---|", *rows(AgentSettings)])
    text = README.read_text()
    block = f"<!-- settings -->\n{table}\n<!-- /settings -->"
    fresh = re.sub(r"<!-- settings -->.*<!-- /settings -->", lambda _: block, text, flags=re.DOTALL)
    if "--check" not in sys.argv:
        README.write_text(fresh)
    elif fresh != text:
        print("README.md: the settings table is out of date; run make fix", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
