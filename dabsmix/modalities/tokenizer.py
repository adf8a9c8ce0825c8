"""Tokenizers: strings to token ids, by the name of a hub repository, by a file, or trained on the corpus at hand."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dabsmix.errors import UserError

__all__ = ["Sample", "Tokenizer", "tokenizer", "train_tokenizer"]

Sample = str | tuple[str, str]
"""A text, or a pair of texts that is read as one sequence."""

PAD_TOKENS = ("[PAD]", "<pad>")


class Tokenizer:
    """Strings to token ids.

    Args:
        name: its name or path as it was given; "trained" for one made from a corpus.
        text: contents of a ``tokenizer.json``, the ``tokenizers`` library's own format.

    Attributes:
        vocab: ids are below this.
        pad: the id that fills short sequences.
        digest: hex sha256 of everything that the ids depend on.

    Raises:
        UserError: there is no padding token, or the text is not in the library's format.
    """

    def __init__(self, name: str, text: str) -> None:
        import tokenizers

        try:
            self._inner = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # the library raises a bare Exception
            raise UserError(f"{name}: not a tokenizer.json of the tokenizers library ({error})") from error
        self._inner.no_truncation()
        self._inner.no_padding()
        pads = [token for token in PAD_TOKENS if self._inner.token_to_id(token) is not None]
        if not pads:
            raise UserError(f"{name}: the vocabulary has neither of the padding tokens {', '.join(PAD_TOKENS)}")
        self.name = name
        self.text = self._inner.to_str()
        self.pad: int = self._inner.get_vocab(with_added_tokens=True)[pads[0]]
        self.vocab = 1 + max(self._inner.get_vocab(with_added_tokens=True).values())
        self.digest = hashlib.sha256(self.text.encode()).hexdigest()

    def encode(self, samples: Sequence[Sample], length: int) -> NDArray[np.int32]:
        """Token ids, int32 ``(n, length)``: cut or padded on the right, the tokenizer's own special tokens included.

        A pair becomes one row (BERT: ``[CLS] first [SEP] second [SEP]``); if it does not fit, the longer text of the
        two loses tokens first.
        """
        samples = list(samples)
        rows = np.full((len(samples), length), self.pad, dtype=np.int32)
        if samples:
            self._inner.enable_truncation(length, strategy="longest_first")
            self._inner.enable_padding(length=length, pad_id=self.pad, pad_token=self._inner.id_to_token(self.pad))
            rows[:] = [encoding.ids for encoding in self._inner.encode_batch_fast(samples)]
        return rows

    def decode(self, rows: Iterable[NDArray[Any]]) -> list[str]:
        """The texts of rows of token ids, without special tokens and padding."""
        from tokenizers import decoders, pre_tokenizers

        if self._inner.decoder is None and isinstance(self._inner.pre_tokenizer, pre_tokenizers.ByteLevel):
            self._inner.decoder = decoders.ByteLevel()  # `train_tokenizer` sets none, and its ids must stay as they are
        return [self._inner.decode(ids.tolist(), skip_special_tokens=True) for ids in rows]

    def state(self) -> dict[str, Any]:
        """Plain JSON values from which `from_state` makes the same tokenizer."""
        return {"name": self.name, "tokenizer": json.loads(self.text)}

    def reference(self) -> dict[str, str]:
        """Plain JSON values that tell a published tokenizer from every other; `text.tokens_of` finds it again."""
        return {"name": self.name, "digest": self.digest}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Tokenizer:
        """The tokenizer that gave this state."""
        return cls(state["name"], json.dumps(state["tokenizer"]))


# --- where tokenizers come from


def tokenizer(name: str, root: Path) -> Tokenizer:
    """A tokenizer by the name of a hub repository or by a file; never fetches anything.

    Args:
        name: a path to a ``vocab.txt`` (WordPiece, one token per line) or ``tokenizer.json``, or to a folder with one
            of them; otherwise a repository's name, found as the folder ``root/name`` or in the Hugging Face cache.
        root: the data root.

    Raises:
        UserError: it is in none of these places (the message says what to fetch and where to put it), or damaged.
    """
    for place in (Path(name).expanduser(), root / name):
        for file in (place, place / "tokenizer.json", place / "vocab.txt"):
            if file.is_file():
                return _from_file(name, file)
    if re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) and (cached := _from_hub_cache(name)) is not None:
        return _from_file(name, cached)
    raise UserError(
        f"tokenizer {name!r} is neither a file, nor the folder {root / name}, nor in the Hugging Face cache: fetch "
        f"https://huggingface.co/{name}/resolve/main/tokenizer.json and put it into {root / name}"
    )


def _from_file(name: str, file: Path) -> Tokenizer:
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read as a tokenizer ({error}); fetch it again") from error
    if file.suffix == ".json":
        return Tokenizer(name, text)
    return Tokenizer(name, _wordpiece(file, text.splitlines()))


def _wordpiece(file: Path, tokens: list[str]) -> str:
    """BERT's tokenizer (Devlin et al. 2019) for a ``vocab.txt``, in which a token's id is its line number."""
    from tokenizers.implementations import BertWordPieceTokenizer

    for special in ("[PAD]", "[UNK]", "[CLS]", "[SEP]"):
        if tokens.count(special) != 1:
            raise UserError(
                f"{file}: {tokens.count(special)} lines {special} among {len(tokens)}; a WordPiece vocab.txt has one "
                "token per line, and each special token once"
            )
    # an uncased vocabulary has no ASCII capital outside its [SPECIAL] tokens
    lowercase = not any(re.search("[A-Z]", token) for token in tokens if not re.fullmatch(r"\[\w+\]", token))
    inner = BertWordPieceTokenizer(str(file), lowercase=lowercase)
    return str(inner.to_str())


def _from_hub_cache(name: str) -> Path | None:
    from transformers.utils import cached_file

    for file in ("tokenizer.json", "vocab.txt"):
        try:
            path = cached_file(name, file, local_files_only=True, _raise_exceptions_for_missing_entries=False)
        except OSError:
            continue
        if path is not None:
            return Path(path)
    return None


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Byte-level BPE (Radford et al. 2019) from a corpus, with BERT's special tokens around a text or a pair.

    Its alphabet is the bytes, so no text has an unknown token. The same texts always give the same tokenizer, which is
    not so for WordPiece in this library: the ids of its pieces follow the order of a hash map.

    Args:
        texts: the corpus, read once.
        vocab_size: at most this many tokens, special ones included; at least 260 (256 bytes, 4 special tokens).

    Raises:
        UserError: vocab_size is below 260.
    """
    from tokenizers import Tokenizer as Inner
    from tokenizers import models, normalizers, pre_tokenizers, processors, trainers

    special = ["[PAD]", "[CLS]", "[SEP]", "[MASK]"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    if vocab_size < len(special) + len(alphabet):
        raise UserError(f"vocab_size {vocab_size}: at least {len(special) + len(alphabet)} (the bytes, special tokens)")
    inner = Inner(models.BPE())
    inner.normalizer = normalizers.NFC()
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    inner.train_from_iterator(texts, trainer)
    return Tokenizer("trained", inner.to_str())
