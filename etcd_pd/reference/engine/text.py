"""From tokens to text, one token at a time, and from chat messages to a prompt."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from etcd_pd import ConfigError

from .errors import BadRequest

#: What a tokenizer puts where bytes are no UTF-8, or not yet: a later token may complete the character.
_INCOMPLETE = "\ufffd"


class TooManyTokens(Exception):
    """A text is longer than it may be; says how many tokens it has."""


class Tokenizer:
    """The tokenizer of a model directory: its tokenizer.json, and its chat template where it has one.

    Attributes:
        path: the directory.

    Raises:
        ConfigError: it cannot be loaded.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        file = Path(path) / "tokenizer.json"
        if not file.is_file():
            raise ConfigError("model_path", f"needs a tokenizer.json, and {path!r} has none")
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(file))
            self._chat = _ChatTemplate.load(Path(path))
        except Exception as error:  # the tokenizers library raises bare exceptions
            raise ConfigError("model_path", f"cannot load the tokenizer of {path!r}: {error}") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._longest = _longest_token(json.loads(self._tokenizer.to_str()))

    def encode(self, text: str, special: bool = True, below: float = math.inf) -> list[int]:
        """The tokens of a prompt, with those that the model wants around it unless it has them already.

        Other threads run meanwhile: ``encode()`` of the library would hold them back.

        Raises:
            TooManyTokens: there are not fewer than ``below``.
        """
        least = len(text) // self._longest if self._longest else 0
        if least >= below:
            raise TooManyTokens(f"{least} or more")
        [encoding] = self._tokenizer.encode_batch([text], add_special_tokens=special)
        if len(encoding) >= below:
            raise TooManyTokens(str(len(encoding)))
        return encoding.ids

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of tokens, without special ones."""
        return self._tokenizer.decode(token_ids)

    def render_chat(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The text that makes the model answer a chat, special tokens included.

        Raises:
            BadRequest: the model has no chat template, or its template refuses the messages.
        """
        if self._chat is None:
            raise BadRequest("messages", "this model has no chat template; use /v1/completions")
        return self._chat.render(messages)


def _longest_token(tokenizer: Mapping[str, Any]) -> int:
    """How many characters of a text one token may stand for; 0 where that is not known.

    It is known of byte-pair encodings of the bytes themselves: they drop nothing, and have no token for the unknown.
    """
    model = tokenizer["model"]
    steps = tokenizer["pre_tokenizer"] or {}
    of_bytes = "ByteLevel" in {step["type"] for step in steps.get("pretokenizers", [steps]) if "type" in step}
    if model["type"] != "BPE" or not of_bytes or tokenizer["normalizer"]:
        return 0
    added = (token["content"] for token in tokenizer["added_tokens"])
    return max(map(len, (*model["vocab"], *added)))


class _ChatTemplate:
    """A model's chat template, run where it can do no harm."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.globals["raise_exception"] = _refuse
        self._template = environment.from_string(source)
        self._special_tokens = special_tokens

    @classmethod
    def load(cls, directory: Path) -> _ChatTemplate | None:
        """The template of a model directory, None where it has none."""
        file = directory / "tokenizer_config.json"
        config: dict[str, Any] = json.loads(file.read_text("utf-8")) if file.is_file() else {}
        beside = directory / "chat_template.jinja"
        source = beside.read_text("utf-8") if beside.is_file() else config.get("chat_template")
        if not isinstance(source, str):
            return None
        tokens = {name: value for name, value in config.items() if name.endswith("_token") and value is not None}
        return cls(source, {name: _content(value) for name, value in tokens.items()})

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The prompt as text."""
        try:
            return self._template.render(messages=messages, add_generation_prompt=True, **self._special_tokens)
        except TemplateError as error:
            raise BadRequest("messages", f"the model's chat template refuses them: {error}") from None


def _content(token: Any) -> str:
    return str(token["content"] if isinstance(token, dict) else token)


def _refuse(message: str) -> None:
    raise TemplateError(message)


class TextStream:
    """The text of one request as its tokens come, held back while a later token may still change or end it.

    Args:
        tokenizer: what decodes tokens.
        stop: texts that end the request; the text ends before the first of them.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._stop = stop
        self._ids: list[int] = []
        # ids[start:read] were decoded to whole characters; they are the context in which the ids after them are decoded
        self._start = self._read = 0
        # how much of the text of ids[read:] was taken already
        self._taken = 0
        self._held = ""
        #: The stop text that was met, or None.
        self.matched: str | None = None

    def push(self, token_id: int) -> str:
        """Take one token; returns the text that became certain."""
        self._ids.append(token_id)
        return self._release(self._decode(final=False), final=False)

    def finish(self) -> str:
        """No token follows; returns the rest of the text."""
        return self._release(self._decode(final=True), final=True)

    def _decode(self, final: bool) -> str:
        context = self._tokenizer.decode(self._ids[self._start : self._read])
        fresh = self._tokenizer.decode(self._ids[self._start :])[len(context) :]
        # only the last replacement character can be the beginning of a character
        incomplete = fresh.endswith(_INCOMPLETE) and not final
        certain = fresh[:-1] if incomplete else fresh
        text = certain[self._taken :]
        self._taken = max(self._taken, len(certain))
        if not incomplete:
            self._start, self._read, self._taken = self._read, len(self._ids), 0
        return text

    def _release(self, text: str, final: bool) -> str:
        if self.matched is not None:
            return ""
        text = self._held + text
        found = [(text.find(stop), stop) for stop in self._stop if stop in text]
        if found:
            position, self.matched = min(found)
            self._held = ""
            return text[:position]
        keep = 0 if final else max((_overlap(text, stop) for stop in self._stop), default=0)
        cut = len(text) - keep
        self._held = text[cut:]
        return text[:cut]


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of ``text`` may be the beginning of ``stop``."""
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:size])), 0)
