"""The Python face: every form of example through load, pretrain, transfer, load_encoder and SelfSupervised."""

import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_breast_cancer, load_digits
from transferring import QUICK

import dabsmix
from dabsmix import UserError
from dabsmix.cli import main
from dabsmix.modalities import memory, spectrogram
from dabsmix.run import Run
from dabsmix.source import Modality


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Probes of a few epochs."""
    monkeypatch.setattr("dabsmix.verbs.transfer.protocol", lambda name, batch_size, specs: QUICK)


SHORT: dict[str, Any] = dict(encoder="tiny", steps=2, batch_size=8)


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = (
        "import sys, dabsmix; print([m for m in ('torch', 'numpy', 'pandas', 'sklearn', 'tyro') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out == "[]\n"


def test_every_public_name_is_there_and_no_other() -> None:
    assert set(dabsmix.__all__) <= set(dir(dabsmix))
    for name in dabsmix.__all__:
        assert getattr(dabsmix, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'pretrian'"):
        dabsmix.pretrian  # noqa: B018


def test_a_named_domain_from_load_to_features(tmp_path: Path, quick: None) -> None:
    data = dabsmix.load("digits")
    run = dabsmix.pretrain(data, "dmix", out=tmp_path, alpha=2.0, checkpoint_every=1, **SHORT)
    assert isinstance(run, dabsmix.Run)
    assert (run.record.algorithm, run.record.hyper["alpha"], run.record.steps) == ("dmix", 2.0, 2)
    score = dabsmix.transfer(run, labels=["5/class"])
    assert isinstance(score, dabsmix.TransferRecord)
    assert str(score).startswith("digits-dmix-s0  digits  accuracy")
    assert set(score.to_frame()["label_fraction"]) == {"5/class", "1"}  # the majority class takes all
    digits = load_digits().images[:5] / 16
    features = dabsmix.load_encoder(str(run.path)).features(digits)
    assert features.shape == (5, 64)
    assert features.dtype == np.float32
    same = dabsmix.load_encoder(run).features(torch.from_numpy(digits).float()[:, None])
    np.testing.assert_allclose(features, same, atol=1e-6)


def test_a_run_is_the_same_from_python_and_from_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = dabsmix.pretrain("digits", "emix", out=tmp_path / "python", **SHORT)
    words = ["--domain=digits", "--algo=emix", "--encoder=tiny", "--steps=2", "--batch-size=8"]
    monkeypatch.setattr(sys, "argv", ["dabsmix", "pretrain", *words, "--out", str(tmp_path / "shell")])
    main()
    other = Run(Path(capsys.readouterr().out.strip()))
    assert other.record.encoder_sha256 == run.record.encoder_sha256
    assert other.record.config_hash == run.record.config_hash


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    for call, says in (
        (lambda: dabsmix.load("digit"), "did you mean 'digits'"),
        (lambda: dabsmix.load(), "name the data"),
        (lambda: dabsmix.load("digits", label="species"), "--label species is for your own data"),
        (lambda: dabsmix.load(data=np.zeros((4, 3))), "needs a modality"),
        (lambda: dabsmix.pretrain("digits", "dmix", alhpa=2), r"no setting 'alhpa' \(did you mean 'alpha'"),
        (lambda: dabsmix.pretrain("digits", "dmx"), "did you mean 'dmix'"),
        (lambda: dabsmix.transfer(tmp_path), "is not a run"),
        (lambda: dabsmix.load_encoder(tmp_path), "is not a run"),
    ):
        with pytest.raises(UserError, match=says) as caught:
            call()
        assert "\n" not in str(caught.value)


# --- a user's own


def table(n: int = 120) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"size": rng.normal(size=n), "weight": rng.normal(size=n), "kind": rng.choice(["a", "b"], n)})
    frame.loc[3, "size"] = np.nan
    return frame.assign(outcome=np.where(frame["weight"] > 0, "well", "ill"))


def test_a_frame_and_its_file_are_the_same_data(tmp_path: Path, quick: None) -> None:
    frame = table()
    frame.to_parquet(tmp_path / "patients.parquet", index=False)
    options = {"ignore": "kind"}
    of_frame = dabsmix.load(data=frame, modality="tabular", label="outcome", options=options)
    of_file = dabsmix.load(data=tmp_path / "patients.parquet", modality="tabular", label="outcome", options=options)
    assert of_frame.state == of_file.state
    assert of_frame.labelled is not None
    assert of_file.labelled is not None
    assert np.array_equal(of_frame.labelled.test.rows, of_file.labelled.test.rows)

    run = dabsmix.pretrain(of_frame, "none", out=tmp_path, **SHORT)
    score = dabsmix.transfer(run, labels=[1])  # reads the stored frame from the cache
    assert score.classes == ("ill", "well")
    scored = dabsmix.transfer(run, data=of_frame, labels=[1])
    assert scored == score
    extractor = dabsmix.load_encoder(run)
    few = frame.drop(columns=["outcome"]).iloc[:7]
    by_frame = extractor.features(few)
    few.to_csv(tmp_path / "few.csv", index=False)
    np.testing.assert_allclose(by_frame, extractor.features(tmp_path / "few.csv"), atol=1e-6)
    np.testing.assert_allclose(by_frame, extractor.features(few[["size", "weight"]].to_numpy()), atol=1e-6)
    with pytest.raises(UserError, match=r"no column 'weight'"):
        extractor.features(few[["size"]])
    with pytest.raises(UserError, match=r"a table of 3 columns; the encoder reads 2: size, weight"):
        extractor.features(np.zeros((2, 3)))
    with pytest.raises(UserError, match="to be those that were pretrained on"):
        dabsmix.transfer(run, data=dabsmix.load(data=table(90), modality="tabular", label="outcome"))


def test_categories_that_training_did_not_have_are_read_as_missing(tmp_path: Path) -> None:
    data = dabsmix.load(data=table().drop(columns="outcome"), modality="tabular")
    extractor = dabsmix.load_encoder(dabsmix.pretrain(data, "none", out=tmp_path, **SHORT))
    unseen = pd.DataFrame({"size": [0.5, 0.5], "weight": [0.5, 0.5], "kind": ["c", None]})
    one, other = extractor.features(unseen)
    np.testing.assert_array_equal(one, other)
    data, _ = extractor.read(unseen)
    assert data.notes == ("1 cell holds a category that no training row has; it is read as missing (1 in 'kind').",)
    with pytest.raises(UserError, match="column 'size' holds 'big' among numbers"):
        extractor.features(pd.DataFrame({"size": ["big"], "weight": [1.0], "kind": ["a"]}))


def photographs(n: int) -> list[Image.Image]:
    rng = np.random.default_rng(1)
    return [Image.fromarray(rng.integers(0, 256, (40, 30, 3), dtype=np.uint8)) for _ in range(n)]


def test_images_in_every_form_give_the_same_features(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    pictures = photographs(10)
    for i, picture in enumerate(pictures):
        picture.save(tmp_path / "photos" / f"{i}.png")
    data = dabsmix.load(data=tmp_path / "photos", modality="image", options={"size": 16, "patch": 8})
    extractor = dabsmix.load_encoder(dabsmix.pretrain(data, "none", out=tmp_path, **SHORT))
    expected = extractor.features(tmp_path / "photos")
    arrays = np.stack([np.asarray(picture) for picture in pictures])
    paths = [tmp_path / "photos" / f"{i}.png" for i in range(10)]
    tensor = torch.from_numpy(arrays).permute(0, 3, 1, 2)
    for x in (pictures, arrays, arrays / 255, arrays.transpose(0, 3, 1, 2), tensor, paths, list(map(str, paths))):
        np.testing.assert_allclose(extractor.features(x), expected, atol=1e-5)
    np.testing.assert_allclose(extractor.features(pictures[0]), expected[:1], atol=1e-5)
    np.testing.assert_allclose(extractor.features(str(paths[3])), expected[3:4], atol=1e-5)
    with pytest.raises(UserError, match="floats must have values from 0 to 1"):
        extractor.features(arrays.astype(float))
    with pytest.raises(UserError, match="images of shape"):
        extractor.features(np.zeros((2, 5, 8, 8), np.uint8))


def test_windows_of_a_sensor(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    frame = pd.DataFrame({"time": np.arange(640), "group": np.repeat(["p", "q"], 320), "x": rng.normal(size=640)})
    data = dabsmix.load(data=frame, modality="sensor", options={"window": 32})
    extractor = dabsmix.load_encoder(dabsmix.pretrain(data, "none", out=tmp_path, **SHORT))
    windows = frame["x"].to_numpy().reshape(20, 1, 32).copy()
    np.testing.assert_allclose(extractor.features(frame), extractor.features(windows), atol=1e-5)
    form = r"an array \(n, 1, 32\), which is \(n, channels, length\); bring the axes into this form"
    with pytest.raises(UserError, match=rf"examples of shape \(20, 1, 16\): the encoder reads {form}"):
        extractor.features(windows[:, :, :16])
    windows[3, 0, 5] = np.nan
    with pytest.raises(UserError, match="example 3 holds nan"):
        extractor.features(windows)


def test_texts(tmp_path: Path) -> None:
    texts = [f"the {colour} {noun} stands {where}" for colour in ("red", "blue") for noun in ("house", "tree")
             for where in ("here", "there", "alone")]  # fmt: skip
    frame = pd.DataFrame({"text": texts})
    data = dabsmix.load(data=frame, modality="text", options={"length": 16, "vocab_size": 300})
    extractor = dabsmix.load_encoder(dabsmix.pretrain(data, "none", out=tmp_path, **SHORT))
    frame.to_csv(tmp_path / "texts.csv", index=False)
    expected = extractor.features(tmp_path / "texts.csv")
    for x in (texts, tuple(texts), frame["text"], np.array(texts)):
        np.testing.assert_allclose(extractor.features(x), expected, atol=1e-5)
    assert extractor.features("one text").shape == (1, 64)
    with pytest.raises(UserError, match="text 1 is ''"):
        extractor.features(["a", ""])


def test_sequences(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    texts = ["".join(rng.choice(list("ACGT"), 20)) for _ in range(12)]
    (tmp_path / "genes.txt").write_text("\n".join(texts))
    data = dabsmix.load(data=tmp_path / "genes.txt", modality="sequence", options={"length": 16})
    extractor = dabsmix.load_encoder(dabsmix.pretrain(data, "none", out=tmp_path, **SHORT))
    np.testing.assert_allclose(extractor.features(texts), extractor.features(tmp_path / "genes.txt"), atol=1e-5)
    with pytest.raises(UserError, match="sequence 1: symbol 'X' at position 3 is not one of"):
        extractor.features(["ACGT", "ACXT"])


def test_waves_and_their_files(tmp_path: Path) -> None:
    import soundfile

    rng = np.random.default_rng(3)
    waves = (0.1 * rng.normal(size=(9, 4000))).astype(np.float32)
    (tmp_path / "calls").mkdir()
    for i, wave in enumerate(waves):
        soundfile.write(tmp_path / "calls" / f"{i}.wav", wave, 8000, subtype="FLOAT")
    options = {"rate": 8000, "seconds": 0.5, "mels": 32}
    data = dabsmix.load(data=tmp_path / "calls", modality="spectrogram", options=options)
    extractor = dabsmix.load_encoder(dabsmix.pretrain(data, "none", out=tmp_path, **SHORT))
    np.testing.assert_allclose(extractor.features(waves), extractor.features(tmp_path / "calls"), atol=1e-4)
    with pytest.raises(UserError, match="waves of int64: give floats from -1 to 1, or int16"):
        extractor.features(np.ones((2, 4000), np.int64))


@pytest.mark.parametrize(("kind", "subtype"), [("int16", "PCM_16"), ("int32", "PCM_32"), ("uint8", "PCM_U8")])
def test_waves_of_integers_are_read_as_files_are(kind: str, subtype: str, tmp_path: Path) -> None:
    import soundfile
    from scipy.io import wavfile

    rng = np.random.default_rng(3)
    for i in range(3):
        soundfile.write(tmp_path / f"{i}.wav", 0.1 * rng.normal(size=4000), 8000, subtype=subtype)
    waves = np.stack([wavfile.read(tmp_path / f"{i}.wav")[1] for i in range(3)])
    assert waves.dtype == kind
    state = spectrogram.load_own(tmp_path, rate=8000, seconds=0.5, mels=32).state
    read, _ = spectrogram.load_further(tmp_path, state)
    given = memory.further(waves, "spectrogram", read.specs, state)
    assert given is not None
    index = np.arange(3)
    np.testing.assert_allclose(given.pretrain.batch(index)[0], read.pretrain.batch(index)[0], atol=0.1)


def test_runs_of_an_earlier_version_normalise_with_their_domain_s_data(tmp_path: Path) -> None:
    run = dabsmix.pretrain("breast_cancer", "none", out=tmp_path, **SHORT)
    x = load_breast_cancer().data[:4]
    expected = dabsmix.load_encoder(run).features(x)
    record = json.loads((run.path / "run.json").read_text())
    (run.path / "run.json").write_text(json.dumps(record | {"data_state": {}, "modality": ""}))
    np.testing.assert_allclose(dabsmix.load_encoder(run.path).features(x), expected, atol=1e-6)


def test_the_encoder_s_module_can_be_trained_further(tmp_path: Path) -> None:
    extractor = dabsmix.load_encoder(dabsmix.pretrain("digits", "none", out=tmp_path, **SHORT))
    module = extractor.module.train()
    module((torch.zeros(2, 1, 8, 8),)).mean.sum().backward()
    assert all(p.grad is not None for name, p in module.named_parameters() if "blocks" in name)


# --- scikit-learn


def test_the_transformer_works_in_a_pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    monkeypatch.chdir(tmp_path)
    x, y = load_breast_cancer(return_X_y=True)
    x = x.astype(float)
    x[::7, 3] = np.nan
    model = make_pipeline(dabsmix.SelfSupervised(steps=3, algorithm="emix"), LogisticRegression(max_iter=500))
    assert model.fit(x[:400], y[:400]).score(x[400:], y[400:]) > 0.7
    assert list(tmp_path.iterdir()) == []  # no folder of a run is left behind
    restored = pickle.loads(pickle.dumps(model))
    np.testing.assert_allclose(restored.predict_proba(x[400:]), model.predict_proba(x[400:]), atol=1e-5)


def test_frames_keep_their_categories_and_other_modalities_their_shapes() -> None:
    frame = table().drop(columns="outcome")
    fitted = dabsmix.SelfSupervised(steps=2).fit(frame)
    assert list(fitted.feature_names_in_) == ["size", "weight", "kind"]
    assert fitted.transform(frame[:3]).shape == (3, 64)
    assert len(fitted.get_feature_names_out()) == 64
    cases: list[tuple[Modality, Any]] = [
        ("image", photographs(6)),
        ("image", np.random.default_rng(0).integers(0, 256, (6, 16, 16), dtype=np.uint8)),
        ("sensor", np.random.default_rng(0).normal(size=(6, 3, 40))),
        ("text", [f"text number {i}" for i in range(6)]),
    ]
    for modality, x in cases:
        estimator = dabsmix.SelfSupervised(modality, steps=2, batch_size=4, algorithm="emix")
        assert estimator.fit_transform(x).shape == (6, 64)
    with pytest.raises(UserError, match="arrays in memory are read as"):
        dabsmix.SelfSupervised("spectrogram", steps=2).fit(np.zeros((4, 100)))


# Checks of check_estimator that do not hold, each with its reason.
EXCEPTIONS: dict[str, str] = {}


@pytest.mark.slow
def test_scikit_learn_s_own_checks_of_an_estimator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sklearn.utils.estimator_checks import check_estimator

    monkeypatch.chdir(tmp_path)
    estimator = dabsmix.SelfSupervised(steps=2, algorithm="emix")
    results = check_estimator(estimator, expected_failed_checks=EXCEPTIONS, on_skip=None, on_fail=None)
    failed = {check["check_name"]: check["exception"] for check in results if check["status"] == "failed"}
    assert not failed
    assert sum(check["status"] == "passed" for check in results) > 40
    assert list(tmp_path.iterdir()) == []
