"""`dabsmix list` says "here" only if every file that a load needs is present."""

from collections.abc import Callable
from pathlib import Path

import pytest
import upstream
import upstream_image
import upstream_sequence
import upstream_speech
import upstream_tabular
import upstream_text

from dabsmix.domains import covtype
from dabsmix.errors import UserError
from dabsmix.registry import domain, domains

Write = Callable[[Path], object]


def glue(folder: str) -> Write:
    def write(root: Path) -> None:
        upstream_text.write_glue(root, folder)
        upstream_text.write_bert_vocab(root)

    return write


def paws(root: Path) -> None:
    upstream_text.write_paws_x(root, "de")
    upstream_text.write_xlm_roberta(root)


def mc4(root: Path) -> None:
    upstream_text.write_mc4(root, ["en", "fr", "de", "zh", "es", "ja", "ko"])
    upstream_text.write_xlm_roberta(root)


def wikitext(root: Path) -> None:
    upstream_text.write_wikitext(root)
    upstream_text.write_bert_vocab(root)


def vqa(root: Path) -> None:
    upstream_image.write_vqa(root)
    upstream_text.write_bert_vocab(root)


WRITERS: dict[str, Write] = {
    "adult": lambda root: upstream_tabular.write_adult(root / "adult"),
    "aircraft": upstream_image.write_aircraft,
    "audio_mnist": lambda root: upstream_speech.write_audio_mnist(root, speakers=[1, 12, 26]),
    "caltech101": upstream_image.write_caltech101,
    "chexpert": upstream_image.write_chexpert,
    "cifar100": upstream_image.write_cifar100,
    "cola": glue("CoLA"),
    "covtype": lambda root: upstream_tabular.write_covtype(root / "covtype" / "covtype.data"),
    "cu_birds": upstream_image.write_cu_birds,
    "eurosat": upstream_image.write_eurosat,
    "eurosat_all": lambda root: upstream_image.write_eurosat(root, multispectral=True),
    "fluent_speech_action": upstream_speech.write_fluent_speech,
    "fluorescence": lambda root: upstream_sequence.write_tape(root, "fluorescence"),
    "fsdd": upstream_speech.write_fsdd,
    "genomics": upstream_sequence.write_genomics,
    "higgs": lambda root: upstream_tabular.write_higgs(root / "higgs" / "HIGGS.csv"),
    "imagenet": upstream_image.write_imagenet,
    "librispeech": lambda root: upstream_speech.write_librispeech(root, ["train-clean-360"]),
    "mc4": mc4,
    "pamap2": upstream.write_pamap2,
    "paws_de": paws,
    "pfam": lambda root: upstream_sequence.write_tape(root, "pfam"),
    "speech_commands_v2": lambda root: upstream_speech.write_speech_commands(root, "v0.02", ["yes", "no"]),
    "speech_commands_12": lambda root: upstream_speech.write_speech_commands(root, "v0.01", ["yes", "cat"], noise=[2]),
    "stl10": upstream_image.write_stl10,
    "svhn": upstream_image.write_svhn,
    "tiny_imagenet": upstream_image.write_tiny_imagenet,
    "uci_har": upstream.write_uci_har,
    "vgg_flower": upstream_image.write_vgg_flower,
    "voxceleb1": upstream_speech.write_voxceleb1,
    "vqa": vqa,
    "wafer": upstream_sequence.write_wafers,
    "wikitext2": wikitext,
    "xray8": upstream_image.write_xray8,
}


def test_every_domain_with_files_names_those_that_it_needs() -> None:
    assert [card.name for card in domains().values() if card.folder and not card.needs] == []


@pytest.mark.parametrize("name", WRITERS)
def test_here_means_every_file_that_a_load_needs(name: str, tmp_path: Path) -> None:
    card = domain(name)
    assert not card.complete(tmp_path)
    WRITERS[name](tmp_path)
    assert card.complete(tmp_path)
    folder = card.present(tmp_path)
    assert folder is not None
    hidden = tmp_path / "hidden"
    for pattern in card.needs:
        needed = [path for one in pattern.split("|") for path in folder.glob(one)]
        assert needed, pattern
        for place, path in enumerate(needed):  # such as a test part that was not unpacked
            path.rename(hidden.with_name(f"hidden{place}"))
        assert not card.complete(tmp_path), pattern
        with pytest.raises(UserError):
            card.load(folder, "v1")
        for place, path in enumerate(needed):
            hidden.with_name(f"hidden{place}").rename(path)
    assert card.complete(tmp_path)


def test_a_tokenizer_is_needed_too(tmp_path: Path) -> None:
    wikitext(tmp_path)
    (tmp_path / "bert-base-uncased" / "vocab.txt").unlink()
    assert not domain("wikitext2").complete(tmp_path)


def test_an_interrupted_download_is_not_here(tmp_path: Path) -> None:
    upstream_tabular.write_covtype(tmp_path / "covtype" / "covtype.data")
    assert domain("covtype").complete(tmp_path)
    file = tmp_path / covtype.DOWNLOADS[0].file
    file.with_name(f".{file.name}.part").touch()
    assert not domain("covtype").complete(tmp_path)
