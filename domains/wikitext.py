"""WikiText-2 and WikiText-103 (Merity et al. 2017): good and featured Wikipedia articles, to pretrain on."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from dabsmix.data.domain import Data, Domain
from dabsmix.data.download import Download
from dabsmix.errors import UserError
from dabsmix.modalities.text import BERT, BERT_FILE, HUGGING_FACE, corpus, identity, read_lines, tokenizer

GLUE = ("cola", "sst2", "mrpc", "qqp", "stsb", "mnli_matched", "mnli_mismatched", "qnli", "rte", "wnli")


def load(name: str, part: str, folder: Path, protocol: str) -> Data:
    """One line is one sample, and empty lines are skipped, as in DABS; both protocols are the same."""
    tokens = tokenizer(BERT, folder.parent)
    file = folder / f"wiki.{part}.tokens"
    if not file.is_file():
        raise UserError(
            f"{file}: no such file; fetch {name} again, or pretrain on wikitext2_valid, which reads wiki.valid.tokens"
        )

    def samples() -> Iterator[str]:
        return (line.strip() for _, line in read_lines(file) if line.strip())

    return corpus(name, identity(folder, [file], tokens), tokens, samples)


def _domain(name: str, size: str, part: str, title: str, sha256: str) -> Domain:
    return Domain(
        name=name,
        modality="text",
        title=f"{title} (Merity et al., 2017), 128 tokens a line",
        licence="CC BY-SA 4.0",
        folder=f"wikitext-{size}",
        needs=(f"wiki.{part}.tokens",),
        load=partial(load, name, part),
        downloads=(
            Download(
                (f"https://s3.amazonaws.com/research.metamind.io/wikitext/wikitext-{size}-v1.zip",),
                f"wikitext-{size}-v1.zip",
                f"sha256:{sha256}",
                HUGGING_FACE.format("wikitext"),
            ),
            BERT_FILE,
        ),
        batch_size=128,
        transfers=GLUE,
    )


SMALL = "92675f1d63015c1c8b51f1656a52d5bdbc33aafa60cc47a218a66e7ee817488c"

DOMAINS = (
    _domain(
        *("wikitext103", "103", "train", "WikiText-103, 1.8 million lines of Wikipedia"),
        sha256="242ba0f20b329cfdf1ccc61e9e9e5b59becf189db7f7a81cd2a0e2fc31539590",
    ),
    _domain("wikitext2", "2", "train", "WikiText-2, 37 thousand lines of Wikipedia", SMALL),
    _domain("wikitext2_valid", "2", "valid", "the validation file of WikiText-2 alone, a stand-in for training", SMALL),
)
