"""Views of sounds, sensors and rows, change by change against plain versions."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from dabsmix.data.standardise import Standardise
from dabsmix.modalities import augmentation
from dabsmix.modalities.augmentation import SensorViews, SoundViews, TableViews, hertz, mel_scale, rotations
from dabsmix.modalities.spectrogram import Form

FORM = Form(rate=8000, samples=8000, fft=512, hop=512, mels=12, patch=4)
MEAN, STD = -30.0, 12.0


class Drawn:
    """Uniform draws that a test sets, in order, each as a share of its range."""

    def __init__(self, shares: list[Any]) -> None:
        self.shares = shares

    def __call__(self, examples: torch.Tensor, generator: torch.Generator) -> Any:
        def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
            share = self.shares.pop(0)
            factor = torch.as_tensor(share).expand(len(examples), *shape)
            return low + (high - low) * factor

        return uniform


def sound(monkeypatch: pytest.MonkeyPatch, shares: list[Any]) -> tuple[np.ndarray[Any, Any], ...]:
    """A spectrogram in decibels and its view with these draws: for each change on or off (0 or 1), then its value."""
    decibels = torch.rand(2, 1, 12, 16, generator=torch.Generator().manual_seed(0)) * 60 - 60
    monkeypatch.setattr(augmentation, "draws", Drawn(shares))
    views = SoundViews(Standardise(MEAN, STD), FORM)
    (view,) = views.augment(((decibels - MEAN) / STD,), torch.Generator())
    return decibels[:, 0].numpy(), (view * STD + MEAN)[:, 0].numpy()


OFF: list[Any] = [1.0, 0.5]


def test_sounds_without_changes_stay_equal(monkeypatch: pytest.MonkeyPatch) -> None:
    before, view = sound(monkeypatch, [*OFF * 5, 0.5])
    np.testing.assert_allclose(view, before, atol=1e-3)


def test_amplitude_adds_decibels(monkeypatch: pytest.MonkeyPatch) -> None:
    before, view = sound(monkeypatch, [0.0, 0.0, *OFF * 4, 0.5])
    np.testing.assert_allclose(view, before + 20 * math.log10(0.7), atol=1e-3)


def test_a_shift_moves_frames_and_lets_silence_in(monkeypatch: pytest.MonkeyPatch) -> None:
    before, view = sound(monkeypatch, [*OFF * 3, 0.0, 0.0, *OFF, 0.5])  # -16 // 4
    for i in range(2):
        for frame in range(16):
            expected = before[i, :, frame + 4] if frame + 4 < 16 else np.full(12, before[i].min())
            np.testing.assert_allclose(view[i, :, frame], expected, atol=1e-3)


def test_a_stretch_reads_between_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    before, view = sound(monkeypatch, [*OFF * 2, 0.0, 1.0, *OFF * 2, 0.5])  # 1.2 times as fast
    for i in range(2):
        for frame in range(12):
            low, part = int(1.2 * frame), 1.2 * frame - int(1.2 * frame)
            expected = (1 - part) * before[i, :, low] + part * before[i, :, min(low + 1, 15)]
            np.testing.assert_allclose(view[i, :, frame], expected, atol=1e-2)
        np.testing.assert_allclose(view[i, :, 15], before[i].min(), atol=1e-3)  # 1.2 · 15 is beyond the end


def test_speed_moves_the_loudest_band_as_it_moves_pitch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(augmentation, "draws", Drawn([*OFF, 0.0, 1.0, *OFF * 3, 0.5]))
    form = Form(rate=16000, samples=16000, fft=1024, hop=1000, mels=128, patch=4)
    top = float(mel_scale(torch.tensor(8000.0)))
    centres = [float(hertz(torch.tensor((band + 1) / 129 * top))) for band in range(128)]
    tone = min(range(128), key=lambda band: abs(centres[band] - 2000))
    decibels = torch.full((1, 1, 128, 17), -80.0)
    decibels[:, :, tone] = 0.0
    (view,) = SoundViews(Standardise(0.0, 1.0), form).augment((decibels,), torch.Generator())
    loudest = int(view[0, 0, :, 3].argmax())
    assert abs(centres[loudest] / centres[tone] - 1.2) < 0.03


def test_noise_has_its_share_of_the_amplitude(monkeypatch: pytest.MonkeyPatch) -> None:
    share = torch.rand(2, 1, 12, 16, generator=torch.Generator().manual_seed(3))
    before, view = sound(monkeypatch, [*OFF * 4, 0.0, 1.0, share])
    for i in range(2):
        power = 10 ** (before[i] / 10)
        white = -np.log(1 - share[i, 0].numpy()) * power.mean()
        np.testing.assert_allclose(view[i], 10 * np.log10(0.55**2 * power + 0.45**2 * white), atol=1e-3)


def test_mel_scale_is_torchaudios() -> None:
    from torchaudio.functional import melscale_fbanks

    banks = melscale_fbanks(4001, 0.0, 8000.0, 40, 16000, norm=None, mel_scale="slaney")
    top = mel_scale(torch.tensor(8000.0))
    centres = hertz(torch.arange(1, 41) / 41 * top)
    frequencies = torch.linspace(0, 8000, 4001)[banks.argmax(dim=0)]
    torch.testing.assert_close(centres, frequencies, rtol=0, atol=2.0)  # to the grid of frequencies


def test_rotations_are_rodrigues_by_hand() -> None:
    generator = torch.Generator().manual_seed(0)
    height, longitude, angle = (torch.rand(5, generator=generator).double() * 2 - 1 for _ in range(3))
    matrices = rotations(height, longitude, angle)
    for i in range(5):
        z, ring = float(height[i]), math.sqrt(1 - float(height[i]) ** 2)
        axis = np.array([ring * math.cos(float(longitude[i])), ring * math.sin(float(longitude[i])), z])
        for basis in np.eye(3):
            turned = (
                basis * math.cos(float(angle[i]))
                + np.cross(axis, basis) * math.sin(float(angle[i]))
                + axis * (axis @ basis) * (1 - math.cos(float(angle[i])))
            )
            np.testing.assert_allclose(matrices[i].numpy() @ basis, turned, atol=1e-6)


def sensor(monkeypatch: pytest.MonkeyPatch, shares: list[Any]) -> tuple[torch.Tensor, torch.Tensor]:
    readings = torch.randn(3, 4, 20, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(augmentation, "draws", Drawn(shares))
    views = SensorViews(Standardise((1.0, 2.0, -1.0, 0.5), (2.0, 0.5, 1.0, 3.0)), triaxial=(1,))
    return readings, views.augment((readings,), torch.Generator())[0]


JITTER, SCALING, ROTATION = [0.5, 1.0], [0.5, 1.0], [0.5, 0.5, 0.5, 1.0]
PERMUTATION: list[Any] = [torch.tensor([0.25, 0.5, 0.75]), torch.tensor([0.1, 0.2, 0.3, 0.4]), 1.0]


def test_a_sensor_without_changes_stays_equal(monkeypatch: pytest.MonkeyPatch) -> None:
    before, view = sensor(monkeypatch, [*JITTER, *SCALING, *ROTATION, *PERMUTATION])
    assert torch.equal(view, before)


def test_pieces_are_permuted(monkeypatch: pytest.MonkeyPatch) -> None:
    draws = torch.tensor([0.3, 0.1, 0.4, 0.2])  # the pieces from first to last: 1, 3, 0, 2
    cuts = torch.tensor([0.75, 0.5, 0.2])
    before, view = sensor(monkeypatch, [*JITTER, *SCALING, *ROTATION, cuts, draws, 0.0])
    pieces = [before[:, :, :4], before[:, :, 4:10], before[:, :, 10:15], before[:, :, 15:]]
    sizes = sorted(range(4), key=lambda piece: float(draws[piece]))
    assert view.shape == before.shape
    ranks = draws.argsort().tolist()  # each piece gets the rank of its number
    expected = torch.cat([pieces[piece] for piece in sorted(range(4), key=lambda piece: ranks[piece])], dim=2)
    assert torch.equal(view, expected)
    assert sizes != [0, 1, 2, 3]


def test_scaling_is_of_readings_in_their_unit(monkeypatch: pytest.MonkeyPatch) -> None:
    share = (1 + math.erf(1 / 2**0.5)) / 2  # a normal draw of 1
    before, view = sensor(monkeypatch, [*JITTER, share, 0.0, *ROTATION, *PERMUTATION])
    mean, std = torch.tensor([1.0, 2.0, -1.0, 0.5]), torch.tensor([2.0, 0.5, 1.0, 3.0])
    for channel in range(4):
        raw = (before[:, channel] * std[channel] + mean[channel]) * 1.1
        torch.testing.assert_close(view[:, channel], (raw - mean[channel]) / std[channel], rtol=1e-4, atol=1e-4)


def test_a_quarter_turn_about_the_vertical_swaps_two_axes(monkeypatch: pytest.MonkeyPatch) -> None:
    turn = [1.0, 0.5, 0.75, 0.0]  # height 1 is the third axis; 0.75 of -π to π is a quarter turn
    before, view = sensor(monkeypatch, [*JITTER, *SCALING, *turn, *PERMUTATION])
    raw = before * torch.tensor([2.0, 0.5, 1.0, 3.0])[:, None] + torch.tensor([1.0, 2.0, -1.0, 0.5])[:, None]
    expected = torch.stack([raw[:, 0], -raw[:, 2], raw[:, 1], raw[:, 3]], dim=1)
    expected = (expected - torch.tensor([1.0, 2.0, -1.0, 0.5])[:, None]) / torch.tensor([2.0, 0.5, 1.0, 3.0])[:, None]
    torch.testing.assert_close(view, expected, rtol=1e-4, atol=1e-4)


def test_padding_stays_at_the_end_of_a_recording_and_gaps_stay_gaps() -> None:
    readings = torch.randn(64, 2, 20, generator=torch.Generator().manual_seed(0))
    lengths = torch.arange(64) % 15 + 4
    readings[torch.arange(20) >= lengths[:, None, None].expand(-1, 2, -1)] = torch.nan
    readings[:, 1, 2] = torch.nan
    views = SensorViews(Standardise((0.0, 0.0), (1.0, 1.0)))
    (view,) = views.augment((readings,), torch.Generator().manual_seed(1))
    read = ~view.isnan()
    assert torch.equal(read[:, 0], torch.arange(20) < lengths[:, None])
    assert torch.equal(read[:, 1].sum(dim=1), lengths - 1)
    assert not torch.equal(read[:, 1], ~readings[:, 1].isnan())  # moved with its piece


def test_masking_noise_zeroes_the_columns_that_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = torch.tensor([[1.0, 2.0, 3.0, 4.0], [5.0, math.nan, 7.0, 8.0]])
    monkeypatch.setattr(augmentation, "draws", Drawn([torch.tensor([[0.1, 0.3], [0.3, 0.1]])]))
    (view,) = TableViews(columns=(2, 1)).augment((rows,), torch.Generator())
    expected = torch.tensor([[1.0, 2.0, 0.0, 4.0], [5.0, math.nan, 7.0, 8.0]])  # an empty cell stays empty
    torch.testing.assert_close(view, expected, equal_nan=True)
