"""What is written about a model in its directory: read without loading any weight."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import msgspec

from etcd_pd import ConfigError

from .settings import EMULATED, EngineSettings

#: The cost model has no positions to run out of.
EMULATED_CONTEXT = 1 << 20
#: What a fingerprint reads of each file: its beginning, and a sample at each of these steps, since a model that was
#: trained further may begin as before.
_FINGERPRINT_BYTES, _STEP_BYTES, _SAMPLE_BYTES = 1 << 20, 8 << 20, 4096


class ModelCard(msgspec.Struct, frozen=True):
    """What the front and the ranks of an instance know about its model.

    Attributes:
        path: the model's directory.
        name: what /v1/models calls it.
        model_type: ``model_type`` of its config.json.
        architectures: ``architectures`` of its config.json.
        vocabulary: token ids are below this.
        context: most tokens of prompt and answer together.
        end_tokens: the tokens by which the model itself ends a text.
        fingerprint: what prefill and decode must have in common: configuration, weights (sizes and samples),
            number format and compute mode.
    """

    path: str
    name: str
    model_type: str
    architectures: tuple[str, ...]
    vocabulary: int
    context: int
    end_tokens: frozenset[int]
    fingerprint: str


def read_card(path: str, settings: EngineSettings) -> ModelCard:
    """Read the model directory's config.json.

    Raises:
        ConfigError: it cannot be read, or is no causal model's.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(path, local_files_only=True)
        context = int(config.max_position_embeddings)
        vocabulary = int(config.vocab_size)
        fingerprint = _fingerprint(path, f"{settings.dtype} {settings.compute}")
    except Exception as error:  # transformers and its helpers raise whatever they like
        raise ConfigError("model_path", f"cannot read the model in {path!r}: {error}") from error
    return ModelCard(
        path=path,
        name=settings.served_model_name or os.path.basename(os.path.normpath(path)),
        model_type=str(config.model_type),
        architectures=tuple(config.architectures or ()),
        vocabulary=vocabulary,
        context=EMULATED_CONTEXT if settings.compute == EMULATED else context,
        end_tokens=_end_tokens(path) | _as_set(config.eos_token_id),
        fingerprint=fingerprint,
    )


def model_modules(path: str) -> list[str]:
    """The modules that load such a model, for who wants them loaded beforehand. They may not exist."""
    file = Path(path) / "config.json"
    kind = json.loads(file.read_text("utf-8")).get("model_type") if file.is_file() else None
    named = isinstance(kind, str) and kind.isidentifier()
    return ["transformers.modeling_utils", *([f"transformers.models.{kind}.modeling_{kind}"] if named else [])]


def go_offline() -> None:
    """Keep transformers from asking any hub, and from drawing progress bars. Before it is imported."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"


def _end_tokens(path: str) -> frozenset[int]:
    """Those of generation_config.json, which may name more than config.json does."""
    file = Path(path) / "generation_config.json"
    return _as_set(json.loads(file.read_text("utf-8")).get("eos_token_id")) if file.is_file() else frozenset()


def _as_set(tokens: int | list[int] | None) -> frozenset[int]:
    return frozenset(tokens if isinstance(tokens, list) else [] if tokens is None else [tokens])


def _fingerprint(path: str, mode: str) -> str:
    digest = hashlib.sha256(mode.encode())
    for file in sorted(Path(path).iterdir()):
        if file.suffix == ".safetensors" or file.name in ("config.json", "tokenizer.json"):
            size = file.stat().st_size
            digest.update(f"{file.name} {size}".encode())
            with file.open("rb") as content:
                digest.update(content.read(_FINGERPRINT_BYTES))
                for start in range(_STEP_BYTES, size, _STEP_BYTES):
                    content.seek(start)
                    digest.update(content.read(_SAMPLE_BYTES))
    return digest.hexdigest()[:32]
