"""Images on their device: augmented views against plain twins."""

import pytest
import torch

from dabsmix.data.standardise import Standardise
from dabsmix.modalities import image as image_module
from dabsmix.modalities.image import Pixels, augmented, blurred, hue_shifted, imix_view


def batch(count: int, side: int, channels: int = 3) -> torch.Tensor:
    return torch.rand(count, channels, side, side, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("flip", [False, True])
def test_a_small_image_is_shifted_by_whole_pixels(flip: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each view is a crop of the padded image, mirrored or not, and the crops differ."""
    monkeypatch.setattr(image_module, "JITTER", 0.0)
    images = batch(64, 16)
    views = augmented(images, torch.Generator().manual_seed(0), flip=flip)
    padded = torch.nn.functional.pad(images, (4, 4, 4, 4))
    shifts = []
    for image, view in zip(padded, views, strict=True):
        crops = {
            (top, left, mirrored): crop.flip(-1) if mirrored else crop
            for top in range(9)
            for left in range(9)
            for mirrored in (False, True)
            for crop in [image[:, top : top + 16, left : left + 16]]
        }
        shifts += [key for key, crop in crops.items() if torch.allclose(crop, view, atol=1e-4)]
    assert len(shifts) == 64
    assert len({key[:2] for key in shifts}) > 30
    assert {key[2] for key in shifts} == ({False, True} if flip else {False})


def test_colour_jitter_equals_a_plain_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_module, "PADDING", 0)  # a shift by floor(U(0, 1)) = 0 pixels
    images = batch(8, 16)
    views = augmented(images, torch.Generator().manual_seed(3), flip=False)
    draws = torch.Generator().manual_seed(3)
    _, _, bright, contrast, saturation = (torch.rand(8, generator=draws) for _ in range(5))
    for number in range(8):
        image = (images[number] * (0.6 + 0.8 * bright[number])).clamp(0, 1)
        image = (image.mean() + (image - image.mean()) * (0.6 + 0.8 * contrast[number])).clamp(0, 1)
        grey = (image[0] + image[1] + image[2]) / 3
        image = torch.stack([grey + (band - grey) * (0.6 + 0.8 * saturation[number]) for band in image]).clamp(0, 1)
        torch.testing.assert_close(views[number], image, rtol=1e-4, atol=1e-4)


def test_a_large_image_is_cropped_within_its_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """In an image whose pixels hold their column, a crop is a ramp whose slope and ends give its width and place."""
    monkeypatch.setattr(image_module, "JITTER", 0.0)
    ramp = (torch.arange(64) + 0.5) / 64
    images = ramp.expand(200, 1, 64, 64)
    row = augmented(images, torch.Generator().manual_seed(0), flip=False)[:, 0, 32]
    inner = row[:, 10] - row[:, 5]
    width = inner / 5 * 64
    assert float(width.min()) > 0.2**0.5 * 0.75**0.5 * 0.99  # area at least 0.2, ratio at least 3:4
    assert float(width.max()) <= 1.001
    assert float(row.min()) >= 0.0
    assert float(width.std()) > 0.1
    constant = augmented(torch.full((20, 3, 64, 64), 0.5), torch.Generator().manual_seed(1), flip=True)
    torch.testing.assert_close(constant[:, :, 4:-4, 4:-4], torch.full((20, 3, 56, 56), 0.5))


def test_augmentation_follows_its_generator_and_keeps_the_scale() -> None:
    pixels = Pixels(Standardise((100.0, 120.0, 90.0), (50.0, 60.0, 70.0)), 255, flip=True)
    (images,) = pixels.normalise((torch.randint(0, 256, (16, 3, 32, 32), dtype=torch.uint8),))
    text = torch.arange(16)
    first, same = (pixels.augment((images, text), torch.Generator().manual_seed(4)) for _ in range(2))
    other = pixels.augment((images, text), torch.Generator().manual_seed(5))
    assert torch.equal(first[0], same[0])
    assert not torch.allclose(first[0], other[0])
    assert first[1] is text
    mean, std = torch.tensor(pixels.standardise.mean), torch.tensor(pixels.standardise.std)
    low, high = -mean / std, (255 - mean) / std
    assert (first[0].amin(dim=(0, 2, 3)) >= low - 1e-4).all()
    assert (first[0].amax(dim=(0, 2, 3)) <= high + 1e-4).all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16])
def test_pixels_run_on_the_device(dtype: torch.dtype) -> None:
    pixels = Pixels(Standardise((100.0,) * 3, (50.0,) * 3), 255, flip=True)
    stored_images = torch.arange(2 * 3 * 32 * 32).remainder(256).view(2, 3, 32, 32).to(dtype)
    (on_cpu,) = pixels.normalise((stored_images,))
    (on_gpu,) = pixels.normalise((stored_images.cuda(),))
    torch.testing.assert_close(on_cpu, on_gpu.cpu())
    (view,) = pixels.augment((on_gpu,), torch.Generator("cuda").manual_seed(0))
    assert view.shape == on_cpu.shape
    assert torch.isfinite(view).all()


# --- i-Mix's view


def test_hue_and_blur_are_torchvisions() -> None:
    from torchvision.transforms.functional import adjust_hue, gaussian_blur

    images = batch(6, 24)
    images[0] = 0.3  # grey has no hue
    shift = torch.linspace(-0.5, 0.5, 6)
    for image, moved, amount in zip(images, hue_shifted(images, shift), shift.tolist(), strict=True):
        torch.testing.assert_close(moved, adjust_hue(image, amount), rtol=0, atol=1e-4)
    sigma = torch.linspace(0.1, 2.0, 6)
    inner = (slice(None), slice(6, -6), slice(6, -6))  # torchvision mirrors at the edge
    for image, smooth, width in zip(images, blurred(images, sigma), sigma.tolist(), strict=True):
        torch.testing.assert_close(smooth[inner], gaussian_blur(image, [13, 13], [width, width])[inner])


@pytest.mark.parametrize("side", [16, 64])
def test_imix_view_is_a_plain_loop_over_torchvision(side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Image by image, with cropping switched off: the draws of an image decide which changes it gets."""
    from torchvision.transforms import functional as tv

    monkeypatch.setattr(image_module, "_resampled", lambda images, width, *_: images)
    images = batch(12, side)
    views = imix_view(images, torch.Generator().manual_seed(3), flip=True)
    generator = torch.Generator().manual_seed(3)
    names = ["area", "ratio", "left", "top", "mirrored", "bright", "contrast", "saturation", "hue", "jitter", "grey"]
    drawn = {name: torch.rand(12, generator=generator).tolist() for name in [*names, "sigma", "blur"]}
    for number in range(12):
        image = images[number]
        if drawn["jitter"][number] < 0.8:
            image = tv.adjust_brightness(image, 0.6 + 0.8 * drawn["bright"][number])
            image = tv.adjust_contrast(image, 0.6 + 0.8 * drawn["contrast"][number])
            image = tv.adjust_saturation(image, 0.6 + 0.8 * drawn["saturation"][number])
            image = tv.adjust_hue(image, 0.2 * drawn["hue"][number] - 0.1)
        if drawn["grey"][number] < 0.2:
            image = tv.rgb_to_grayscale(image, num_output_channels=3)
        if side == 64 and drawn["blur"][number] < 0.5:
            image = blurred(image[None], torch.tensor([0.1 + 1.9 * drawn["sigma"][number]]))[0]
        torch.testing.assert_close(views[number], image, rtol=1e-3, atol=1e-3)


def test_the_protocol_chooses_the_view() -> None:
    images = batch(4, 16)
    for imix, function in ((True, imix_view), (False, augmented)):
        pixels = Pixels(Standardise(0.0, 1.0), 1, flip=True, imix=imix)
        (view,) = pixels.augment((images,), torch.Generator().manual_seed(1))
        torch.testing.assert_close(view, function(images, torch.Generator().manual_seed(1), flip=True))
