"""Every text survives the tokenizer, and a stream never says what it must take back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from etcd_pd import ConfigError
from etcd_pd.reference.engine.errors import BadRequest
from etcd_pd.reference.engine.text import TextStream, Tokenizer, TooManyTokens

SPECIAL = ("<|end|>", "<|system|>", "<|user|>", "<|assistant|>")
texts = st.text(st.characters(exclude_categories=["Cs"])).filter(lambda text: not any(one in text for one in SPECIAL))


class Letters:
    """A tokenizer whose token ids are bytes, or whole texts."""

    def __init__(self, *pieces: str) -> None:
        self.pieces = pieces

    def decode(self, ids: list[int]) -> str:
        """The text."""
        return "".join(self.pieces[id] for id in ids)


@settings(max_examples=300, deadline=None)
@given(text=texts)
def test_every_text_round_trips(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert all(0 <= id < 1024 for id in ids)


@settings(max_examples=200, deadline=None)
@given(ids=st.lists(st.integers(0, 1023), max_size=40))
def test_a_stream_says_in_pieces_what_decode_says_at_once(tokenizer: Tokenizer, ids: list[int]) -> None:
    stream = TextStream(tokenizer)
    pieces = [stream.push(id) for id in ids]
    assert "".join(pieces) + stream.finish() == tokenizer.decode(ids)


def test_half_a_character_is_held_back(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("🦩")
    assert len(ids) > 1
    stream = TextStream(tokenizer)
    assert [stream.push(id) for id in ids][:-1] == [""] * (len(ids) - 1)


def stream_of(pieces: list[str], stop: list[str]) -> tuple[list[str], str, str | None]:
    stream = TextStream(Letters(*pieces), stop)  # type: ignore[arg-type]
    said = []
    for id in range(len(pieces)):
        said.append(stream.push(id))
        if stream.matched is not None:
            return said, "", stream.matched
    return said, stream.finish(), stream.matched


def test_a_stop_text_across_tokens_is_cut_and_never_shown() -> None:
    assert stream_of(["one ", "EN", "D", " two"], ["END"]) == (["one ", "", ""], "", "END")


def test_what_only_looked_like_a_stop_text_is_said_later() -> None:
    assert stream_of(["a", "EN", "x"], ["END"]) == (["a", "", "ENx"], "", None)
    assert stream_of(["a", "EN"], ["END"]) == (["a", ""], "EN", None)


def test_the_first_of_several_stop_texts_counts() -> None:
    assert stream_of(["ab", "cd", "ef"], ["e", "bc"]) == (["a", ""], "", "bc")
    assert stream_of(["abcdef"], ["e", "c"]) == (["ab"], "", "c")


@settings(max_examples=300, deadline=None)
@given(
    pieces=st.lists(st.text("ab", min_size=1, max_size=4), max_size=12),
    stop=st.lists(st.text("ab", min_size=1, max_size=5), min_size=1, max_size=3),
)
def test_stopping_is_the_same_however_the_text_is_cut(pieces: list[str], stop: list[str]) -> None:
    said, rest, matched = stream_of(pieces, stop)
    whole = "".join(pieces)
    position = min((whole.find(one) for one in stop if one in whole), default=len(whole))
    # a stop text is met as soon as it is complete, so a longer one that begins before may not be complete yet
    assert whole.startswith("".join(said) + rest)
    if matched is None:
        assert "".join(said) + rest == whole
        assert position == len(whole)
    else:
        assert whole[len("".join(said)) :].startswith(matched)


def test_a_chat_becomes_a_prompt(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(
        tokenizer.render_chat([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]),
        special=False,
    )
    assert ids[0] == 1
    assert ids[-1] == 3
    assert tokenizer.decode(ids) == "Be brief.Hi"


def test_a_model_without_chat_template_says_so(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(Path(tokenizer.path, "tokenizer.json").read_bytes())
    with pytest.raises(BadRequest, match="no chat template"):
        Tokenizer(str(tmp_path)).render_chat([{"role": "user", "content": "Hi"}])


def test_a_template_that_refuses_or_misbehaves_is_a_bad_request(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(Path(tokenizer.path, "tokenizer.json").read_bytes())
    for source in ("{{ raise_exception('no system role') }}", "{{ messages.__class__.__mro__ }}"):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": source}))
        with pytest.raises(BadRequest, match="refuses"):
            Tokenizer(str(tmp_path)).render_chat([{"role": "user", "content": "Hi"}])


def test_a_directory_without_tokenizer_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="tokenizer.json") as caught:
        Tokenizer(str(tmp_path))
    assert caught.value.field == "model_path"
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigError, match="cannot load"):
        Tokenizer(str(tmp_path))


def test_a_text_is_refused_when_its_tokens_are_too_many_and_at_once_when_its_length_says_so(
    tokenizer: Tokenizer,
) -> None:
    prose = "the river does not decide where to go " * 50
    for text in ("x", prose, "\n" * 5000, "\u00fc\U0001f600" * 300, "<|end|>" * 40):
        tokens = tokenizer.encode(text)
        assert tokenizer.encode(text, below=len(tokens) + 1) == tokens
        with pytest.raises(TooManyTokens):
            tokenizer.encode(text, below=len(tokens))
    with pytest.raises(TooManyTokens, match="or more"):
        tokenizer.encode("a" * 12_000_000, below=100_000)
