"""Frozen settings dataclasses as command line options: one field, one flag, one environment variable.

A field's metadata says the rest: ``help``, ``name`` (its spelling where it differs from the field's), ``secret``
(never shown), ``octal`` (a file mode) and ``choices``.
"""

from __future__ import annotations

import functools
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, Field, field, fields, is_dataclass
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from ..config import default_socket_path, option_name
from ..errors import ConfigError
from .local import announce, fill_in

ENV_PREFIX = "ETCD_PD_"

_Settings = TypeVar("_Settings")
_Command = TypeVar("_Command", bound=Callable[..., Any])


def socket_option(help: str = "the agent's socket") -> Any:
    """A field of settings: an agent's socket, ``--socket``."""
    return field(default_factory=default_socket_path, metadata={"help": help, "name": "socket"})


def settings_options(argument: str, cls: type[Any]) -> Callable[[_Command], _Command]:
    """Give a command one option per field of ``cls`` and pass it the settings as ``argument``.

    A value that breaks a rule of ``cls`` is a usage error that names the flag. A ``cls`` with ``seeks_local_cell`` is
    filled from the cell that runs on this machine, where no etcd is given.
    """

    def decorate(command: _Command) -> _Command:
        @functools.wraps(command)
        def with_settings(*args: Any, **values: Any) -> Any:
            own = {name: values.pop(name) for name, _, _ in _options(cls)}
            if getattr(cls, "seeks_local_cell", False):
                announce(fill_in(own, _is_given), own)
            return command(*args, **values, **{argument: build_settings(cls, own)})

        decorated: Any = with_settings
        for name, setting, kind in reversed(list(_options(cls))):
            decorated = _option(name, setting, kind)(decorated)
        return typing.cast(_Command, decorated)

    return decorate


def to_environ(settings: Any) -> dict[str, str]:
    """The environment variables that make a command read the same settings back."""
    environ: dict[str, str] = {}
    for setting in fields(settings):
        value = getattr(settings, setting.name)
        if is_dataclass(value):
            environ.update(to_environ(value))
        else:
            environ[_variable(option_name(setting))] = _spell(value, setting.metadata)
    return environ


def flag(name: str) -> str:
    """A setting's name as a flag."""
    return "--" + name.replace("_", "-")


def _variable(name: str) -> str:
    return ENV_PREFIX + name.upper()


def _options(cls: type[Any]) -> Iterator[tuple[str, Field[Any], Any]]:
    """Name, field and type of each option, nested settings flattened."""
    kinds = typing.get_type_hints(cls)
    for setting in fields(cls):
        kind = kinds[setting.name]
        if is_dataclass(kind):
            yield from _options(typing.cast(type[Any], kind))
        else:
            yield option_name(setting), setting, kind


def _option(name: str, setting: Field[Any], kind: Any) -> Callable[[_Command], _Command]:
    default = setting.default if setting.default_factory is MISSING else setting.default_factory()
    spelled = "" if default is MISSING else _spell(default, setting.metadata)
    return click.option(
        f"{flag(name)}/--no-{name.replace('_', '-')}" if kind is bool else flag(name),
        name,
        type=_converter(kind, setting.metadata),
        metavar=_metavar(kind, setting.metadata),
        show_default=bool(spelled) and not setting.metadata.get("secret"),
        envvar=_variable(name),
        show_envvar=True,
        help=setting.metadata.get("help"),
        # a flag's default must be no text: --help would name the flag that any text switches on
        **({"required": True} if default is MISSING else {"default": default if kind is bool else spelled}),
    )


def _converter(kind: Any, metadata: Mapping[str, Any]) -> Any:
    """What turns a word of the command line, or of the environment, into a field's value."""
    if metadata.get("choices"):
        return click.Choice(list(metadata["choices"]))
    if metadata.get("octal"):
        return _octal
    return {tuple[str, ...]: _words, tuple[int, ...]: _integers}.get(kind, kind)


def _metavar(kind: Any, metadata: Mapping[str, Any]) -> str | None:
    """How --help writes the value, where click's own word would not do."""
    if metadata.get("octal"):
        return "MODE"
    return {tuple[str, ...]: "TEXT,...", tuple[int, ...]: "INTEGER,..."}.get(kind)


def _octal(text: str) -> int:
    try:
        return int(text, 8)
    except ValueError:
        raise click.BadParameter(f"{text!r} is not a file mode such as 0660") from None


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _integers(text: str) -> tuple[int, ...]:
    try:
        return tuple(map(int, _words(text)))
    except ValueError:
        raise click.BadParameter(f"{text!r} is not a list of integers with commas between them") from None


def _is_given(name: str) -> bool:
    """Whether the option came as a flag or from the environment."""
    return click.get_current_context().get_parameter_source(name) is not ParameterSource.DEFAULT


def build_settings(cls: type[_Settings], values: Mapping[str, Any]) -> _Settings:
    """The settings object from its options' values, nested ones first.

    Raises:
        click.BadParameter: they break a rule.
    """
    kinds = typing.get_type_hints(cls)
    try:
        return cls(
            **{
                setting.name: build_settings(kinds[setting.name], values)
                if is_dataclass(kinds[setting.name])
                else values[option_name(setting)]
                for setting in fields(typing.cast(Any, cls))
            }
        )
    except ConfigError as error:
        hint = f"{flag(error.field)} / {_variable(error.field)}" if error.field in values else error.field
        raise click.BadParameter(error.rule, param_hint=hint) from error


def _spell(value: Any, metadata: Mapping[str, Any]) -> str:
    """A value as one writes it after a flag or in the environment."""
    if metadata.get("octal"):
        return f"{value:04o}"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(value)
