"""Log lines for people and for programs."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest

from etcd_pd.cli.logs import LogSettings, configure
from etcd_pd.errors import ConfigError


@pytest.fixture(autouse=True)
def restored_root_logger() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def test_text_lines_hold_time_level_logger_and_message(capsys: pytest.CaptureFixture[str]) -> None:
    configure(LogSettings())
    logging.getLogger("etcd_pd.agent").warning("lease lost id=%x", 0x2A)
    time, level, logger, message = capsys.readouterr().out.rstrip("\n").split(maxsplit=3)
    assert time.endswith("Z") and "T" in time
    assert (level, logger, message) == ("WARNING", "etcd_pd.agent", "lease lost id=2a")


def test_json_lines_are_one_object_each(capsys: pytest.CaptureFixture[str]) -> None:
    configure(LogSettings(log_format="json"))
    log = logging.getLogger("etcd_pd.agent")
    log.info('a "quoted"\nmessage äöü')
    try:
        raise ValueError("why")
    except ValueError:
        log.exception("failed")
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert first["message"] == 'a "quoted"\nmessage äöü'
    assert (first["level"], first["logger"]) == ("info", "etcd_pd.agent")
    assert first["time"].endswith("Z")
    assert "exception" not in first
    assert "ValueError: why" in second["exception"]


def test_records_below_the_level_are_dropped(capsys: pytest.CaptureFixture[str]) -> None:
    configure(LogSettings(log_level="error"))
    logging.getLogger("etcd_pd").warning("quiet")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("wrong", [{"log_level": "loud"}, {"log_format": "xml"}])
def test_unknown_levels_and_formats_are_refused(wrong: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="must be one of"):
        LogSettings(**wrong)


def test_a_line_stays_one_line_when_others_wrote_in_it(capsys: pytest.CaptureFixture[str]) -> None:
    configure(LogSettings())
    logging.getLogger("etcd_pd.agent").warning("failed: %s", "x\n2026-01-01T00:00:00Z ERROR forged\x1b[2J")
    (line,) = capsys.readouterr().out.splitlines()
    assert "\x1b" not in line and line.endswith(r"x\n2026-01-01T00:00:00Z ERROR forged\x1b[2J")
