"""Where log records go: stdout, one line a record, for people or for a collector."""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import dataclass, field
from datetime import datetime, timezone

from ..errors import ConfigError
from .printable import printable

LEVELS = ("debug", "info", "warning", "error")
FORMATS = ("text", "json")


@dataclass(frozen=True)
class LogSettings:
    """What is logged, and how."""

    log_level: str = field(default="info", metadata={"help": "least important records to log", "choices": LEVELS})
    log_format: str = field(default="text", metadata={"help": "lines for people, or JSON objects", "choices": FORMATS})

    def __post_init__(self) -> None:
        if self.log_level not in LEVELS:
            raise ConfigError("log_level", f"must be one of {', '.join(LEVELS)}")
        if self.log_format not in FORMATS:
            raise ConfigError("log_format", f"must be one of {', '.join(FORMATS)}")


def configure(settings: LogSettings) -> None:
    """Send the process's log records to stdout."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonLines() if settings.log_format == "json" else TextLines())
    logging.basicConfig(level=settings.log_level.upper(), handlers=[handler], force=True)


class TextLines(logging.Formatter):
    """``time LEVEL logger message``; messages carry their own key=value pairs."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The line; what others wrote in it cannot begin another one."""
        record.message = printable(record.message)
        return super().formatMessage(record)

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        """UTC with milliseconds."""
        return _utc(record)


class JsonLines(logging.Formatter):
    """One JSON object a line: time, level, logger, message, and exception where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as JSON."""
        entry = {
            "time": _utc(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False)


def _utc(record: logging.LogRecord) -> str:
    return (
        datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    )
