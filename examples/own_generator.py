"""Makes a prior of a generator that was written elsewhere, and attacks an update with it.

    python examples/own_generator.py

The same by command: gradinv prior wrap own_generator:Blobs --latent 6 --set side=16 --out my-prior
This audits data that you hold.
"""

import torch
from torch import nn

import gradinv


class Blobs(nn.Module):
    """Stands for your generator: bright spots at two places each, of any sizes."""

    def __init__(self, side: int = 16) -> None:
        super().__init__()
        self.side = side
        self.place = nn.Linear(6, 6)
        nn.init.eye_(self.place.weight)
        nn.init.zeros_(self.place.bias)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """Maps latents (batch, 6) to images (batch, 1, side, side) in [0, 1]."""
        x, y, size = self.place(z).unflatten(1, (3, 2, 1, 1)).unbind(1)
        grid = torch.linspace(-2, 2, self.side, device=z.device, dtype=z.dtype)
        far = (grid - x).square() + (grid[:, None] - y).square()
        return torch.exp(-far * torch.exp(size)).sum(1, keepdim=True).clamp(max=1)


def main(steps: int = 300) -> gradinv.Found:
    """Wraps the generator, looks over a client's shoulder, and searches its latents."""
    prior = gradinv.wrap_prior(Blobs(16), latent_shape=[6], settings={"side": 16})
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(256, 64), nn.Sigmoid(), nn.Linear(64, 4))
    with torch.no_grad():
        image = prior(torch.randn(1, 6))  # stands for a client's image
    update = gradinv.observe(model, (image, torch.tensor([2])))
    found = gradinv.invert(update, model, attack=f"gi-z:steps={steps}", prior=prior)
    error = (found.images - image).square().mean().item()
    print(f"mean squared error {error:.2g}; of a grey image {(image - 0.5).square().mean():.2g}")
    return found


if __name__ == "__main__":
    main()
