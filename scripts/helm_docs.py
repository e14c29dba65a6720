#!/usr/bin/env python3
"""Writes what follows from helm/etcd-pd/values.yaml: its values.schema.json, the table in its README.md, and
files/defaults.json, from which templates take what a release of an older chart has no value for.

The comment above a key describes it. A line ``# @ {...}`` in it adds to the key's JSON schema, whose type is otherwise
that of the default. Mappings are closed: a key that values.yaml does not have is refused, unless a schema line opens
it. A mapping with an anchor is described once; one that merges it has the same keys.

    scripts/helm_docs.py            write all
    scripts/helm_docs.py --check    write nothing; fail where one differs
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap

CHART = Path(__file__).parents[1] / "helm" / "etcd-pd"
BEGIN, END = "<!-- values: made from values.yaml -->", "<!-- end of values -->"

#: Shapes that values.yaml refers to.
DEFINITIONS: dict[str, Any] = {
    "resources": {
        "type": "object",
        "properties": {
            "requests": {"type": "object", "additionalProperties": {"type": ["string", "number"]}},
            "limits": {"type": "object", "additionalProperties": {"type": ["string", "number"]}},
            "claims": {"type": "array", "items": {"type": "object"}},
        },
        "additionalProperties": False,
    },
    "modelClaim": {
        "type": "object",
        "description": "name of the claim, path of the model in it",
        "properties": {"name": {"type": "string", "minLength": 1}, "path": {"type": "string"}},
        "additionalProperties": False,
        "if": {"minProperties": 1},
        "then": {"required": ["name"]},
    },
    "modelHub": {
        "type": "object",
        "description": "repository, revision, and Secret with the token",
        "properties": {
            "repository": {"type": "string", "minLength": 1},
            "revision": {"type": "string"},
            "secretName": {"type": "string"},
            "secretKey": {"type": "string"},
        },
        "additionalProperties": False,
        "if": {"minProperties": 1},
        "then": {"required": ["repository"]},
    },
    "modelImage": {
        "type": "object",
        "description": "reference of the image, path of the model in it, and when to pull",
        "properties": {
            "reference": {"type": "string", "minLength": 1},
            "path": {"type": "string"},
            "pullPolicy": {"enum": ["Always", "IfNotPresent", "Never"]},
        },
        "additionalProperties": False,
        "if": {"minProperties": 1},
        "then": {"required": ["reference"]},
    },
    "probe": {
        "type": "object",
        "description": "keys of a probe but for what it asks",
        "properties": {
            key: {"type": "integer", "minimum": 0 if key == "initialDelaySeconds" else 1}
            for key in (
                "initialDelaySeconds",
                "periodSeconds",
                "timeoutSeconds",
                "failureThreshold",
                "successThreshold",
            )
        },
        "additionalProperties": False,
    },
}
TYPES = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array"}


class Key:
    """One key of values.yaml: its path, its default, and what its comment says."""

    def __init__(self, path: str, value: Any, comment: str) -> None:
        self.path, self.value = path, value
        lines = [line.lstrip("#").strip() for line in comment.splitlines() if line.strip()]
        self.help = " ".join(line for line in lines if not line.startswith("@ "))
        self.extra: dict[str, Any] = {}
        for line in lines:
            if line.startswith("@ "):
                self.extra |= json.loads(line[2:])


def main(arguments: list[str]) -> int:
    """Write or check these files."""
    values = YAML().load((CHART / "values.yaml").read_text())
    schema = make_schema(values)
    readme = (CHART / "README.md").read_text()
    head, _, rest = readme.partition(BEGIN)
    _, _, tail = rest.partition(END)
    wanted = {
        CHART / "values.schema.json": json.dumps(schema, indent=2) + "\n",
        CHART / "files" / "defaults.json": json.dumps(defaults(values, ""), indent=0) + "\n",
        CHART / "README.md": f"{head}{BEGIN}\n{make_table(values)}{END}{tail}",
    }
    stale = [path for path, text in wanted.items() if not path.exists() or path.read_text() != text]
    for path in stale:
        if "--check" in arguments:
            print(f"helm_docs: {path.name} is not what values.yaml says; run make manifests", file=sys.stderr)
        else:
            path.write_text(wanted[path])
    return 1 if stale and "--check" in arguments else 0


def make_schema(values: CommentedMap) -> dict[str, Any]:
    """The JSON schema of the values; ``global`` is open: all charts of a parent read it."""
    definitions = dict(DEFINITIONS)
    schema = mapping_schema(values, "", definitions)
    schema["properties"]["global"]["additionalProperties"] = True
    schema["properties"]["enabled"] = {"type": "boolean", "description": "whether a parent chart wants this one"}
    return {"$schema": "http://json-schema.org/draft-07/schema#", **schema, "$defs": definitions}


def mapping_schema(mapping: CommentedMap, path: str, definitions: dict[str, Any]) -> dict[str, Any]:
    properties = {}
    for key in keys_of(mapping, path):
        properties[key.path.rpartition(".")[2]] = key_schema(key, definitions)
    return {"type": "object", "properties": properties, "additionalProperties": False}


def key_schema(key: Key, definitions: dict[str, Any]) -> dict[str, Any]:
    described = {"description": key.help} if key.help else {}
    if not isinstance(key.value, CommentedMap):
        return {"type": TYPES[_kind(key.value)], **described, **key.extra}
    anchor = key.value.anchor.value or merged_anchor(key.value)
    if anchor:
        if anchor not in definitions:
            definitions[anchor] = mapping_schema(key.value, key.path, definitions)
        return {**described, "$ref": f"#/$defs/{anchor}"}
    if "$ref" in key.extra:
        return {**described, **key.extra}
    if key.value and not key.extra:
        return {**described, **mapping_schema(key.value, key.path, definitions)}
    return {"type": "object", **described, **key.extra}


def make_table(values: CommentedMap) -> str:
    """A Markdown table with a row for each value."""
    rows = ["| value | default | meaning |", "|---|---|---|"]
    rows += [f"| `{path}` | {default} | {help} |" for path, default, help in table_rows(values, "")]
    return "\n".join(rows) + "\n"


def table_rows(mapping: CommentedMap, path: str) -> list[tuple[str, str, str]]:
    rows: list[tuple[str, str, str]] = []
    for key in keys_of(mapping, path):
        nested = isinstance(key.value, CommentedMap)
        if nested and merged_anchor(key.value):
            rows.append((f"{key.path}.*", "", key.help))
        elif nested and key.value and not key.extra:
            rows += table_rows(key.value, key.path)
        else:
            rows.append((key.path, f"`{json.dumps(plain(key.value))}`", key.help.replace("|", "\\|")))
    return rows


def defaults(mapping: CommentedMap, path: str) -> dict[str, Any]:
    """The default of every value by its path. A shape (``$ref``) is one value, of which people may leave out parts."""
    found: dict[str, Any] = defaults(next(iter(mapping.merge)), path) if merged_anchor(mapping) else {}
    for key in keys_of(mapping, path):
        if isinstance(key.value, CommentedMap) and (key.value or merged_anchor(key.value)) and not key.extra:
            found |= defaults(key.value, key.path)
        else:
            found[key.path] = plain(key.value)
    return found


def keys_of(mapping: CommentedMap, path: str) -> list[Key]:
    """The keys of a mapping with the comments above them; without those of a mapping that it merges."""
    keys = []
    for name in mapping.lc.data or ():
        where = f"{path}.{name}" if path else str(name)
        keys.append(Key(where, mapping[name], comment_above(mapping, name)))
    return keys


def comment_above(mapping: CommentedMap, name: str) -> str:
    """The comment right above a key: read from the text, since parsers attach it to whatever came before."""
    line: int = mapping.lc.key(name)[0]
    text = (CHART / "values.yaml").read_text().splitlines()
    lines: list[str] = []
    while line > 0 and text[line - 1].lstrip().startswith("#"):
        line -= 1
        lines.insert(0, text[line].strip())
    return "\n".join(lines)


def merged_anchor(mapping: CommentedMap) -> str:
    """The anchor that a mapping takes over with ``<<``, or nothing."""
    merged = list(mapping.merge)
    return str(merged[0].anchor.value) if merged else ""


def plain(value: Any) -> Any:
    """A value without the parser's types."""
    return json.loads(json.dumps(value))


def _kind(value: Any) -> type:
    return next(kind for kind in TYPES if isinstance(value, kind))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
