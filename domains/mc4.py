"""mC4 (Xue et al. 2021): web pages in seven languages, to pretrain on; a document's first 128 tokens are a sample.

DABS streams all of it, without the shuffling that it means to do. Here it is as many of each language's shards as lie
in the folder, of which one each is fetched: a few hundred thousand pages; batches are shuffled as everywhere.

The shards are read as a user's JSON lines are (`dabsmix.modalities.packed`), but not written into one more file first:
the languages take turns, once to count the pages and once to tokenise them, straight into the memory-mapped rows.
"""

from collections.abc import Iterator
from pathlib import Path

from dabsmix.data.domain import Data, Domain
from dabsmix.data.download import Download
from dabsmix.errors import UserError
from dabsmix.modalities.packed import json_rows
from dabsmix.modalities.text import XLM_ROBERTA, XLM_ROBERTA_FILE, corpus, identity, tokenizer

REVISION = "1ddc917116b730e1859edef32896ec5c16be51d0"
SHARDS = {"en": 11264, "fr": 2048, "de": 2048, "zh": 1024, "es": 2048, "ja": 1024, "ko": 1024}
"""Shards of every language, in DABS's order of languages."""


def load(folder: Path, protocol: str) -> Data:
    """The languages' pages in turn, until one language has no more; both protocols are the same."""
    tokens = tokenizer(XLM_ROBERTA, folder.parents[1])
    files = {language: sorted(folder.glob(f"c4-{language}.tfrecord-*.json.gz")) for language in SHARDS}
    for language, shards in files.items():
        if not shards:
            raise UserError(f"{folder}: no shard c4-{language}.tfrecord-*.json.gz; fetch one, or all with the domain")

    def pages() -> Iterator[str]:
        for turn in zip(*map(_texts, files.values()), strict=False):
            yield from turn

    every = [file for shards in files.values() for file in shards]
    return corpus("mc4", identity(folder, every, tokens), tokens, pages, "Each language gives as many pages.")


def _texts(shards: list[Path]) -> Iterator[str]:
    """The pages of one language in the order of its shards."""
    for shard in shards:
        for number, page in enumerate(json_rows(shard), start=1):
            if not isinstance(text := page.get("text"), str):
                raise UserError(f"{shard}:{number}: a page without a text; fetch it again")
            yield text


DOMAINS = (
    Domain(
        name="mc4",
        modality="text",
        title="mC4, web pages in seven languages (Xue et al., 2021), their first 128 tokens",
        licence="ODC-BY, and Common Crawl's terms of use",
        folder="c4/multilingual",
        needs=tuple(f"c4-{language}.tfrecord-*.json.gz" for language in SHARDS),
        load=load,
        downloads=(
            *(
                Download(
                    (f"https://huggingface.co/datasets/allenai/c4/resolve/{REVISION}/multilingual/{name}",),
                    f"c4/multilingual/{name}",
                )
                for name in (f"c4-{code}.tfrecord-00000-of-{shards:05}.json.gz" for code, shards in SHARDS.items())
            ),
            XLM_ROBERTA_FILE,
        ),
        batch_size=128,
        transfers=tuple(f"paws_{language}" for language in SHARDS),
    ),
)
