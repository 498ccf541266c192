"""Tokenizers as the artifacts carry them: `tokenizer.json` through the `tokenizers` library, no transformers needed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from modelbuild.artifact import Artifact
from modelbuild.errors import problem
from modelbuild.lib.samples import Encoded

FILE, CONFIG, SPECIAL = "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"


class Padding(msgspec.Struct, frozen=True):
    """What a tokenizer pads with, and on which side; `found` is False when it has no padding token."""

    token_id: int
    type_id: int
    left: bool
    found: bool


class Tokenizer:
    """The tokenizer of an artifact."""

    def __init__(self, artifact: Artifact) -> None:
        """Raises a `ProblemError` when the artifact has no `tokenizer.json` or it does not load."""
        from tokenizers import Tokenizer as Rust

        if FILE not in artifact.descriptor.tokenizer:
            raise problem(
                "the artifact that `tokenizer` names has no `tokenizer.json`",
                artifact=f"format {artifact.descriptor.format}",
                tokenizer_files=", ".join(artifact.descriptor.tokenizer) or "none",
                hint="write it with `AutoTokenizer.from_pretrained(folder).save_pretrained(folder)`"
                if artifact.descriptor.tokenizer
                else "name a target that carries a tokenizer, such as the checkpoint",
            )
        try:
            self.rust = Rust.from_file(str(artifact.path / FILE))
        except Exception as e:  # the library raises bare Exception
            raise problem("the tokenizer does not load", file=FILE, cause=str(e).splitlines()[0]) from None
        self.lowercase = bool(artifact.descriptor.settings.get("lowercase"))
        self.padding = _padding(self.rust, artifact.path)
        self.rust.no_padding()
        self.rust.no_truncation()

    @property
    def vocab_size(self) -> int:
        """One more than the highest token id, added tokens included."""
        return 1 + max(self.rust.get_vocab(with_added_tokens=True).values(), default=-1)

    def special_tokens(self, pair: bool) -> int:
        """How many tokens are added to every text or pair."""
        return int(self.rust.num_special_tokens_to_add(pair))

    def truncate(self, max_length: int) -> None:
        """Cut what `encode` gives to `max_length` tokens, special ones included; of a pair the longer text first."""
        self.rust.enable_truncation(max_length, strategy="longest_first")

    @property
    def vocabulary(self) -> str:
        """A digest of all tokens and their ids: equal for tokenizers whose ids mean the same."""
        tokens = sorted(self.rust.get_vocab(with_added_tokens=True).items())
        return hashlib.sha256(msgspec.json.encode(tokens)).hexdigest()[:32]

    def encode(self, rows: Sequence[tuple[str, ...]], *, places: bool = False) -> Iterator[tuple[Encoded, bool]]:
        """Encode one or two texts per row; whether something was cut comes with each. `places`: with the tokens'."""
        texts = [tuple(t.lower() for t in row) for row in rows] if self.lowercase else rows
        for found in self.rust.encode_batch([row[0] if len(row) == 1 else row for row in texts]):
            where = _places(found) if places else None
            yield Encoded(found.ids, found.type_ids, where), bool(found.overflowing)


def _places(found: Any) -> list[tuple[int, int, int]]:
    """Which text each token is of (-1: none, it was added), and its [start, end) there, in characters."""
    return [(-1 if s is None else s, *o) for s, o in zip(found.sequence_ids, found.offsets, strict=True)]


def _padding(rust: Any, folder: Path) -> Padding:
    """From the tokenizer's own padding section, else the padding token that its config files or `config.json` name."""
    own = rust.padding or {}
    config = _json(folder / CONFIG)
    side = config.get("padding_side") or own.get("direction") or "right"
    token = config.get("pad_token") or _json(folder / SPECIAL).get("pad_token") or own.get("pad_token")
    content = token.get("content") if isinstance(token, dict) else token
    found = rust.token_to_id(content) if isinstance(content, str) else None
    if found is None:
        found = own.get("pad_id", _json(folder / "config.json").get("pad_token_id"))
    return Padding(found or 0, own.get("pad_type_id", 0), side == "left", found is not None)


def _json(path: Path) -> dict[str, Any]:
    """The JSON object in a file that may be missing."""
    if not path.is_file():
        return {}
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except msgspec.MsgspecError as e:
        raise problem(f"`{path.name}` is not a JSON object", file=path, cause=e) from None
