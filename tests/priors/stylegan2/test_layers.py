"""Against kernels that are formed for every image, zeros that are put in, and a filter in full."""

import math

import numpy as np
import pytest
import scipy.signal
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from gradinv.priors.stylegan2.layers import (
    EqualConv,
    EqualLinear,
    ModulatedConv,
    blur,
    leaky,
    upsampled,
)

TAPS = np.outer([1, 3, 3, 1], [1, 3, 3, 1]) / 64


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def filtered(x: torch.Tensor, before: int, after: int) -> torch.Tensor:
    """Returns every channel with zeros around it, filtered by scipy."""
    padded = np.pad(x.numpy(), ((0, 0), (0, 0), (before, after), (before, after)))
    return torch.from_numpy(
        np.stack(
            [
                [scipy.signal.convolve2d(channel, TAPS, mode="valid") for channel in image]
                for image in padded
            ]
        )
    )


def spread(x: torch.Tensor) -> torch.Tensor:
    """Returns x with a zero after every pixel."""
    y = x.new_zeros((*x.shape[:2], 2 * x.shape[2], 2 * x.shape[3]))
    y[:, :, ::2, ::2] = x
    return y


def reference(layer: ModulatedConv, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """Equations 1 and 3 of Karras et al. 2020 as they stand, one image after the other."""
    made = []
    for image, style_of in zip(x, w, strict=True):
        scale = layer.weight.shape[1] ** -0.5 / layer.kernel
        s = layer.affine.weight @ style_of / math.sqrt(len(style_of)) + layer.affine.bias
        kernel = scale * layer.weight * s[None, :, None, None]
        if layer.demodulate:
            kernel = kernel / (kernel.square().sum(dim=(1, 2, 3), keepdim=True) + 1e-8).sqrt()
        if layer.up:
            # A convolution in the mathematical sense, over all positions that touch the image.
            y = F.conv2d(spread(image[None])[..., :-1, :-1], kernel.flip(2, 3), padding=2)
            made.append(4 * filtered(y.detach(), 1, 1)[0])
        else:
            made.append(F.conv2d(image[None], kernel, padding=layer.kernel // 2)[0].detach())
    return torch.stack(made)


@pytest.mark.parametrize(("up", "kernel"), [(False, 1), (False, 3), (True, 3)])
@pytest.mark.parametrize("demodulate", [False, True])
def test_modulated_convolution_is_that_of_the_paper(up, demodulate, kernel):
    layer = ModulatedConv(5, 4, kernel, 6, demodulate=demodulate, up=up).double()
    torch.nn.init.normal_(layer.affine.bias)
    x, w = torch.randn(3, 5, 8, 8).double(), torch.randn(3, 6).double()
    torch.testing.assert_close(layer(x, w).detach(), reference(layer, x, w))


@pytest.mark.parametrize("up", [False, True])
def test_first_and_second_derivatives(up):
    layer = ModulatedConv(2, 2, 3, 3, up=up).double()
    x = torch.randn(2, 2, 4, 4).double().requires_grad_()
    w = torch.randn(2, 3).double().requires_grad_()
    assert torch.autograd.gradcheck(layer, (x, w))
    assert torch.autograd.gradgradcheck(layer, (x, w))


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 6), st.floats(0.1, 10), st.integers(0, 2**31))
def test_demodulated_outputs_do_not_depend_on_the_size_of_styles(channels, factor, seed):
    torch.manual_seed(seed)
    layer = ModulatedConv(channels, 3, 3, 4).double()
    torch.nn.init.zeros_(layer.affine.bias)
    x, w = torch.randn(2, channels, 4, 4).double(), torch.randn(2, 4).double()
    torch.testing.assert_close(layer(x, factor * w), layer(x, w), rtol=1e-4, atol=1e-5)


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 2**31))
def test_demodulated_outputs_have_unit_variance_for_white_inputs(seed):
    torch.manual_seed(seed)
    layer = ModulatedConv(16, 8, 3, 4)
    x = torch.randn(1, 16, 64, 64)
    variance = layer(x, torch.randn(1, 4))[..., 1:-1, 1:-1].var(dim=(2, 3))
    assert ((variance - 1).abs() < 0.2).all()


def test_every_image_sees_its_own_style_alone():
    layer = ModulatedConv(3, 3, 3, 4)
    x, w = torch.randn(2, 3, 4, 4), torch.randn(2, 4)
    both = layer(x, w)
    torch.testing.assert_close(both[:1], layer(x[:1], w[:1]))
    assert not torch.allclose(both[:1], layer(x[:1], w[1:]))


def test_blur_is_the_filter():
    x = torch.randn(2, 3, 6, 6).double()
    torch.testing.assert_close(blur(x, padding=2), filtered(x, 2, 2))


def test_upsampling_is_zeros_and_four_times_the_filter():
    x = torch.randn(2, 3, 5, 5).double()
    torch.testing.assert_close(upsampled(x), 4 * filtered(spread(x), 2, 1))
    # Inside, constants stay what they are.
    torch.testing.assert_close(
        upsampled(torch.ones(1, 1, 6, 6))[..., 2:-2, 2:-2].mean().item(), 1.0
    )


def test_equalised_weights():
    linear = EqualLinear(8, 5, bias=2.0, rate=0.01).double()
    x = torch.randn(3, 8).double()
    expected = x @ (linear.weight.T * 0.01 / math.sqrt(8)) + 2.0
    torch.testing.assert_close(linear(x), expected)
    # Weights of unit variance in effect, whatever the rate.
    many = EqualLinear(64, 4096, rate=0.01)
    assert abs(many(torch.randn(4, 64)).std().item() - 1) < 0.1
    convolution = EqualConv(3, 4, 3).double()
    image = torch.randn(1, 3, 6, 6).double()
    same = F.conv2d(image, convolution.weight / math.sqrt(27), padding=1)
    torch.testing.assert_close(convolution(image), same)


@pytest.mark.parametrize("kernel", [1, 3])
def test_halving_is_a_blur_and_every_second_pixel(kernel):
    convolution = EqualConv(2, 3, kernel, down=True).double()
    x = torch.randn(1, 2, 8, 8).double()
    weight = convolution.weight.detach() / math.sqrt(2 * kernel**2)
    blurred = filtered(x, 1 + kernel // 2, 1 + kernel // 2)
    expected = F.conv2d(blurred, weight)[..., ::2, ::2]
    torch.testing.assert_close(convolution(x).detach(), expected)
    assert expected.shape[-1] == 4


def test_leaky_relu_keeps_the_second_moment():
    x = torch.randn(100000)
    assert abs(leaky(x).square().mean().item() - 1.04) < 0.03
    torch.testing.assert_close(leaky(torch.tensor([-1.0, 2.0])), torch.tensor([-0.2, 2.0]) * 2**0.5)
