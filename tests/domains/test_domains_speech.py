"""Speech domains against upstream-format files: real ones where $DABSMIX_DATA has them, generated ones otherwise."""

import os
from pathlib import Path

import numpy as np
import pytest
import upstream_speech as upstream

from dabsmix.data.domain import Data, Domain, Split
from dabsmix.domains import audio_mnist, fluent_speech, librispeech, speech_commands, voxceleb1
from dabsmix.errors import UserError
from dabsmix.modalities.spectrogram import LARGE, log_mel, read_clip, small
from dabsmix.registry import domain, domains
from dabsmix.spec import Grid
from dabsmix.testing import check_domain

WORDS = ("yes", "stop", "cat", "zero")
SMALL_GRID = Grid(1, (64, 64), (8, 8))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DABSMIX_CACHE", str(tmp_path / "cache"))


def real(folder: str) -> Path:
    root = os.environ.get("DABSMIX_DATA")
    if not root or not (Path(root) / folder).exists():
        pytest.skip(f"no real {folder}: $DABSMIX_DATA does not have it")
    return Path(root) / folder


def load(root: Path, name: str, protocol: str = "v1") -> Data:
    card = domain(name)
    if protocol == "dabs":  # whose validation part is the test part: the contract of v1 does not hold
        return card.load(root / card.folder, protocol)
    return check_domain(card, root / card.folder)


def sizes(data: Data) -> tuple[int, ...]:
    return tuple(len(part) for part in data.require_labelled().splits.values())


def named(data: Data, split: Split) -> list[str]:
    assert split.label is not None
    return [data.require_labelled().task.classes[code] for code in split.label]


def groups(split: Split) -> set[int]:
    assert split.group is not None
    return set(split.group.tolist())


# --- Free Spoken Digit Dataset


def test_fsdd_tests_on_the_first_five_takes(tmp_path: Path) -> None:
    folder = upstream.write_fsdd(tmp_path)
    data = load(tmp_path, "fsdd")
    assert data.specs == (SMALL_GRID,)
    files = sorted(path.name for path in (folder / "recordings").iterdir())
    takes = [int(files[row].removesuffix(".wav").split("_")[2]) for row in data.require_labelled().test.rows]
    assert set(takes) == {0, 1, 2, 3, 4}
    assert named(data, data.require_labelled().test) == [files[row][0] for row in data.require_labelled().test.rows]
    assert sizes(data) == (130, 10, 100)  # a tenth of the 14 training takes of each digit is for validation
    assert any("Every speaker is in train and in test" in note for note in data.notes)


def test_fsdd_does_not_depend_on_the_order_of_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    upstream.write_fsdd(tmp_path, takes=7)
    before = load(tmp_path, "fsdd")
    walk = os.walk
    monkeypatch.setattr(
        os, "walk", lambda path, **how: ((root, dirs, files[::-1]) for root, dirs, files in walk(path, **how))
    )
    monkeypatch.setenv("DABSMIX_CACHE", str(tmp_path / "another"))
    after = load(tmp_path, "fsdd")
    for one, two in (
        (before.require_labelled().train, after.require_labelled().train),
        (before.require_labelled().validation, after.require_labelled().validation),
        (before.require_labelled().test, after.require_labelled().test),
    ):
        assert one is not None
        assert two is not None
        assert np.array_equal(one.rows, two.rows)
        assert np.array_equal(one.inputs[0][one.rows], two.inputs[0][two.rows])


def test_fsdd_with_a_stray_file(tmp_path: Path) -> None:
    folder = upstream.write_fsdd(tmp_path, takes=6)
    upstream.write_sound(folder / "recordings" / "ten.wav", upstream.tone(0.2, 8000, 90), 8000)
    with pytest.raises(UserError, match=r"ten\.wav: not named digit_speaker_index\.wav"):
        load(tmp_path, "fsdd")


def test_real_fsdd() -> None:
    data = load(real("free-spoken-digit-dataset").parent, "fsdd")
    assert sizes(data) == (1080, 120, 300)
    assert all(named(data, data.require_labelled().test).count(digit) == 30 for digit in "0123456789")


# --- Speech Commands


def test_speech_commands_split_by_upstreams_lists(tmp_path: Path) -> None:
    folder = upstream.write_speech_commands(tmp_path, "v0.01", WORDS, noise=[3.0])
    data = load(tmp_path, "speech_commands")
    assert data.specs == (SMALL_GRID,)
    assert data.require_labelled().task.classes == tuple(sorted(WORDS))
    assert sizes(data) == (32, 8, 8)
    files = sorted(path.relative_to(folder).as_posix() for path in folder.glob("[a-z]*/*.wav"))
    listed = (folder / "testing_list.txt").read_text().split()
    assert [files[row] for row in data.require_labelled().test.rows] == sorted(listed)
    assert named(data, data.require_labelled().test) == [file.split("/")[0] for file in sorted(listed)]
    # DABS's loader keeps line ends in the lists, a fault by which train holds the test clips
    assert not {files[row] for row in data.require_labelled().train.rows} & set(listed)
    assert not groups(data.require_labelled().train) & groups(data.require_labelled().test)


def test_dabs_trains_on_everything_except_test(tmp_path: Path) -> None:
    upstream.write_speech_commands(tmp_path, "v0.02", WORDS)
    data = load(tmp_path, "speech_commands_v2", "dabs")
    assert sizes(data) == (40, 8, 8)
    labelled = data.require_labelled()
    assert not set(labelled.train.rows) & set(labelled.test.rows)


def test_speech_commands_large_is_dabs_recipe(tmp_path: Path) -> None:
    folder = upstream.write_speech_commands(tmp_path, "v0.02", WORDS[:2])
    data = load(tmp_path, "speech_commands_v2_224", "dabs")
    file = sorted(folder.glob("[a-z]*/*.wav"))[0]
    expected = log_mel(read_clip(file, LARGE, own_rate=True).wave[None], 16_000, LARGE, squared=True)
    (x,) = data.normalise((data.pretrain.batch(np.array([0]))[0],))
    np.testing.assert_allclose(x.numpy(), (expected + 46.847) / 19.151, atol=0.01)


def test_twelve_classes(tmp_path: Path) -> None:
    folder = upstream.write_speech_commands(
        tmp_path, "v0.01", (*speech_commands.COMMANDS, "cat", "dog"), noise=[10, 20.5]
    )
    data = load(tmp_path, "speech_commands_12")
    labelled = data.require_labelled()
    assert len(labelled.task.classes) == 12
    assert sizes(data) == (8 * 12 + 8 + 16, 2 * 12 + 1 + 2, 2 * 12 + 1 + 2)
    for part, words, silent in ((labelled.train, 16, 24), (labelled.validation, 4, 3), (labelled.test, 4, 3)):
        names = named(data, part)
        assert (names.count("unknown"), names.count("silence")) == (words, silent)
    # the last clip is the last whole second of the last noise
    wave = read_clip(folder / "_background_noise_" / "noise_1.wav", small(16_000), begin=19)
    stored = labelled.test.inputs[0][labelled.test.rows[-1:]]
    np.testing.assert_allclose(stored, log_mel(wave.wave[None], 16_000, small(16_000)), atol=0.04)


def test_twelve_classes_need_the_noise(tmp_path: Path) -> None:
    upstream.write_speech_commands(tmp_path, "v0.01", speech_commands.COMMANDS)
    with pytest.raises(UserError, match="_background_noise_: no such folder"):
        load(tmp_path, "speech_commands_12")


def test_speech_commands_mistakes(tmp_path: Path) -> None:
    folder = upstream.write_speech_commands(tmp_path, "v0.01", WORDS)
    listed = folder / "testing_list.txt"
    content = listed.read_text()
    listed.write_text("\n".join(content.split()[1:]) + "\n")
    with pytest.raises(UserError, match="speaker 00000006 is in test and in train"):
        load(tmp_path, "speech_commands")
    listed.unlink()
    with pytest.raises(UserError, match=r"testing_list\.txt: no such file"):
        load(tmp_path, "speech_commands")
    listed.write_text(content)
    (folder / "cat" / "00000001_nohash_0.wav").write_bytes(b"RIFF")
    with pytest.raises(UserError, match=r"cat/00000001_nohash_0\.wav"):
        load(tmp_path, "speech_commands")


def test_real_speech_commands() -> None:
    data = load(real("speech_commands_v0.01").parent, "speech_commands")
    assert sizes(data) == (205, 44, 51)
    assert len(data.require_labelled().task.classes) == 30


# --- AudioMNIST, Fluent Speech Commands, VoxCeleb1


def test_audio_mnist_splits_by_speaker(tmp_path: Path) -> None:
    upstream.write_audio_mnist(tmp_path, speakers=(1, 4, 5, 12, 26, 57, 58))
    data = load(tmp_path, "audio_mnist")
    assert [groups(part) for part in data.require_labelled().splits.values()] == [{1, 57, 58}, {4, 12}, {5, 26}]
    assert (
        named(data, data.require_labelled().test) == list("0123456789") * 2
    )  # files are sorted by speaker, then digit
    assert len(set(audio_mnist.TEST) | set(audio_mnist.VALIDATION)) == 24  # of 60 speakers


@pytest.mark.parametrize("target", fluent_speech.CLASSES)
def test_fluent_speech(tmp_path: Path, target: str) -> None:
    folder = upstream.write_fluent_speech(tmp_path)
    data = load(tmp_path, f"fluent_speech_{target}")
    assert sizes(data) == (28, 14, 14)
    column = {"action": -3, "object": -2, "location": -1}[target]
    lines = (folder / "data" / "test_data.csv").read_text().splitlines()[1:]
    assert named(data, data.require_labelled().test) == [line.split(",")[column] for line in lines]
    assert len(groups(data.require_labelled().train)) == 2


def test_fluent_speech_bad_rows(tmp_path: Path) -> None:
    table = upstream.write_fluent_speech(tmp_path) / "data" / "valid_data.csv"
    content = table.read_text()
    table.write_text(content + "99,wavs/x.wav,s3,t,fly,none,none\n")
    with pytest.raises(UserError, match=r"valid_data\.csv:16: action 'fly' is not a known one"):
        load(tmp_path, "fluent_speech_action")
    table.write_text(content + "99,wavs/x.wav,s3\n")
    with pytest.raises(UserError, match=r"valid_data\.csv:16: not as many cells as the header"):
        load(tmp_path, "fluent_speech_action")


def test_voxceleb1(tmp_path: Path) -> None:
    folder = upstream.write_voxceleb1(tmp_path)
    data = load(tmp_path, "voxceleb1")
    assert sizes(data) == (6, 6, 6)
    assert named(data, data.require_labelled().test) == ["id10000"] * 2 + ["id10001"] * 2 + ["id10002"] * 2
    assert sizes(load(tmp_path, "voxceleb1", "dabs")) == (12, 6, 6)
    (folder / "iden_split.txt").write_text("1 id10000/video0/00000.wav\n4 id10000/video0/00001.wav\n")
    with pytest.raises(UserError, match=r"iden_split\.txt:2: '4 id10000/video0/00001\.wav' is not"):
        load(tmp_path, "voxceleb1")


# --- LibriSpeech


def test_librispeech_pretrains_on_the_available_parts_and_names_them(tmp_path: Path) -> None:
    upstream.write_librispeech(tmp_path, ["train-clean-100", "dev-clean"], speakers=2)
    data = load(tmp_path, "librispeech")
    assert data.specs == (Grid(1, (224, 224), (16, 16)),)
    assert (len(data.pretrain), data.labelled) == (20, None)
    assert "Without train-clean-360 and train-other-500, which is not there." in data.notes


def test_librispeech_without_training_sets(tmp_path: Path) -> None:
    upstream.write_librispeech(tmp_path, ["dev-clean"], speakers=2)
    with pytest.raises(UserError, match="none of train-clean-100, train-clean-360, train-other-500 is there"):
        load(tmp_path, "librispeech")


def test_librispeech_transfer_draws_as_dabs_does(tmp_path: Path) -> None:
    folder = upstream.write_librispeech(tmp_path, ["dev-clean"], speakers=4)
    data = load(tmp_path, "librispeech_transfer", "dabs")
    names = sorted(path.stem for path in folder.rglob("*.flac"))
    speakers = np.array([int(name.split("-")[0]) for name in names])
    draw = np.random.RandomState(42)
    train: list[int] = []
    for speaker in (100, 101, 102, 103):
        rows = np.where(speakers == speaker)[0]
        draw.shuffle(rows)
        train.extend(rows[:8])
    assert data.require_labelled().train.rows.tolist() == sorted(train)
    assert named(data, data.require_labelled().train) == [str(speakers[row]) for row in sorted(train)]
    assert sizes(data) == (32, 8, 8)
    assert sizes(load(tmp_path, "librispeech_transfer")) == (28, 4, 8)


def test_all_speech_transfers_of_librispeech_have_its_form() -> None:
    card = domain("librispeech")
    known = domains()
    assert set(card.transfers) <= set(known)
    large = {entry.name for entry in known.values() if entry.modality == "spectrogram" and "224x224" in entry.title}
    assert set(card.transfers) <= large


def sources() -> list[Domain]:
    return [*speech_commands.DOMAINS, *librispeech.DOMAINS, *voxceleb1.DOMAINS]


def test_checksums_are_cited() -> None:
    for card in sources():
        for download in card.downloads:
            assert download.checksum.startswith("sha256:")
            assert download.cited.startswith("torchaudio 2.11.0, datasets/")


def test_checksums_are_torchaudios() -> None:
    from torchaudio.datasets.librispeech import _CHECKSUMS as LIBRISPEECH
    from torchaudio.datasets.speechcommands import _CHECKSUMS as COMMANDS

    theirs = {url.rpartition("/")[2]: checksum for url, checksum in {**LIBRISPEECH, **COMMANDS}.items()}
    ours = {download.file.rpartition("/")[2]: download.checksum for card in sources() for download in card.downloads}
    assert len(ours) == 6
    assert ours == {file: f"sha256:{theirs[file]}" for file in ours}
