import torch

from gradinv.priors.stylegan2.discriminator import Residual, StyleDiscriminator


def judge() -> StyleDiscriminator:
    torch.manual_seed(0)
    return StyleDiscriminator(image_size=16, channels=3, base_channels=4)


def test_one_score_for_each_image():
    assert judge()(torch.rand(8, 3, 16, 16)).shape == (8,)


def test_the_spread_of_groups_of_four_counts():
    """Equal images get another score than images that differ, which is what stops a collapse."""
    network = judge()
    images = torch.rand(4, 3, 16, 16)
    alike = images[:1].expand(4, -1, -1, -1)
    assert (network(alike)[0] - network(images)[0]).abs() > 1e-4


def test_a_block_keeps_the_size_of_white_features():
    torch.manual_seed(0)
    made = Residual(16, 32)(torch.randn(8, 16, 16, 16))
    assert made.shape == (8, 32, 8, 8)
    # The blur takes most of white noise away, in both paths.
    assert 0.05 < made.std() < 1.5


def test_twice_differentiable():
    network = judge().double()
    images = torch.rand(4, 3, 16, 16).double().requires_grad_()
    (gradient,) = torch.autograd.grad(network(images).sum(), images, create_graph=True)
    gradient.square().sum().backward()
    assert images.grad is not None
    assert images.grad.abs().max() > 0
