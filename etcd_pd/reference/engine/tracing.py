"""Whether this process traces requests, as OpenTelemetry's own environment variables say; how is in :mod:`.spans`.

Off, nothing of OpenTelemetry is loaded, and the loops pay one look at an attribute for each step of a request.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .spans import Spans

_log = logging.getLogger(__name__)

OTLP, CONSOLE, NONE = "otlp", "console", "none"
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
#: The one protocol whose exporter the extra brings.
_PROTOCOL = "http/protobuf"


def start(role: str, instance: str, dp_rank: int | None = None) -> Spans | None:
    """This process's spans, None where no exporter is configured or can be had: tracing never stops an engine.

    Args:
        role: ``prefill`` or ``decode``.
        instance: id of the instance.
        dp_rank: of a rank process; None in the front.
    """
    names = wanted_exporters(os.environ)
    if not names:
        return None
    try:
        from .spans import Spans, exporter

        process = instance if dp_rank is None else f"{instance}/dp{dp_rank}"
        return Spans([exporter(over_otlp=name == OTLP) for name in names], f"etcd-pd-{role}", process)
    except ImportError as error:
        _log.warning("no tracing, pip install 'etcd-pd[tracing]' reason=%r", str(error))
    except ValueError as error:
        _log.warning("no tracing, a variable of OpenTelemetry is wrong reason=%r", str(error))
    return None


def wanted_exporters(environ: Mapping[str, str]) -> list[str]:
    """The exporters that the environment names, of those that there are; ``otlp`` where it has only an endpoint."""
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return []
    named = [name.strip() for name in environ.get("OTEL_TRACES_EXPORTER", "").split(",") if name.strip()]
    if not named and any(environ.get(variable) for variable in _ENDPOINTS):
        named = [OTLP]
    for unknown in set(named) - {OTLP, CONSOLE, NONE}:
        _log.warning("no such exporter of traces name=%r", unknown)
    found = [name for name in (OTLP, CONSOLE) if name in named]
    protocol = next((environ[variable] for variable in _PROTOCOLS if environ.get(variable)), _PROTOCOL)
    if OTLP in found and protocol != _PROTOCOL:
        _log.warning("no tracing over OTLP: the protocol must be %s, not %r", _PROTOCOL, protocol)
        found.remove(OTLP)
    return found
