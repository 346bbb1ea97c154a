"""What people take from Hugging Face and timm: networks are audited, an autoencoder is a prior.

Small members of each family with random weights, without dropout, whose masks no server knows. The
packages are the extra ``zoo``.
"""

import pytest
import torch
from torch import nn

import gradinv

HUGGING_FACE = {
    "ViT": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
            "intermediate_size": 64, "image_size": 32, "patch_size": 8},
    "ResNet": {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 1],
               "layer_type": "basic"},
    "ConvNext": {"patch_size": 2, "hidden_sizes": [16, 32, 32, 32], "depths": [1, 1, 1, 1],
                 "image_size": 32},
    "MobileNetV2": {"image_size": 32, "depth_multiplier": 0.25, "classifier_dropout_prob": 0.0},
    "Swin": {"image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [1, 1],
             "num_heads": [2, 2], "window_size": 4, "drop_path_rate": 0.0},
}  # fmt: skip
TIMM = {
    "resnet18": {},
    "vit_tiny_patch16_224": {"img_size": 64},
    "mobilenetv3_small_100": {},
    "efficientnet_b0": {},
    "convnext_atto": {},
}


def hugging_face(name: str) -> nn.Module:
    zoo = pytest.importorskip("transformers", reason="needs the extra zoo: Hugging Face")
    config = getattr(zoo, f"{name}Config")(num_labels=10, **HUGGING_FACE[name])
    return getattr(zoo, f"{name}ForImageClassification")(config)


def timm(name: str) -> nn.Module:
    zoo = pytest.importorskip("timm", reason="needs the extra zoo: timm")
    return zoo.create_model(name, pretrained=False, num_classes=10, **TIMM[name])


# Pixels a side: at 32 the last batch norms of timm's mobile networks see one value of each image.
SIDES = {hugging_face: 32, timm: 64}
CASES = [(hugging_face, name) for name in HUGGING_FACE] + [(timm, name) for name in TIMM]


@pytest.fixture(params=["eval", "train"])
def mode(request) -> str:
    return request.param


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0].__name__}-{case[1]}")
def case(request, mode) -> tuple[nn.Module, int]:
    make, name = request.param
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make(name).train(mode == "train"), SIDES[make]


def batch(count: int, side: int) -> tuple[torch.Tensor, torch.Tensor]:
    source = torch.Generator().manual_seed(0)
    return torch.rand(count, 3, side, side, generator=source), torch.arange(count) % 2


@pytest.mark.slow
def test_an_update_is_observed_and_its_inversion_gets_somewhere(case):
    network, side = case
    update = gradinv.observe(network, batch(2, side))
    found = gradinv.invert(update, network, attack="gi-x:steps=30", progress=False)
    (stage,) = found.content["stages"]
    assert found.cost is not None
    # An untrained EfficientNet puts out nearly nothing: its update is the last bias's alone.
    assert found.cost < stage["start"] or stage["start"] < 1e-6
    assert found.images.shape == (2, 3, side, side)


@pytest.mark.slow
def test_an_audit_comes_to_a_verdict(case):
    network, side = case
    result = gradinv.audit(
        network, *batch(12, side), batch_size=2, batches=2, defense=["none"],
        attack=["gi-x:steps=30"], progress=False,
    )  # fmt: skip
    (verdict,) = result.verdicts
    # Whoever compares updates names the images of any network.
    assert verdict.level in {"PARTIAL", "SEVERE"}
    assert "names 4 of 4 knowing the rest of the batch" in verdict.sentence


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
def test_an_autoencoder_of_diffusers_is_a_prior():
    diffusers = pytest.importorskip("diffusers", reason="needs the extra zoo: diffusers")
    settings = {
        "down_block_types": ["DownEncoderBlock2D"] * 2,
        "up_block_types": ["UpDecoderBlock2D"] * 2,
        "block_out_channels": [8, 16],
        "norm_num_groups": 4,
        "sample_size": 32,
    }
    prior = gradinv.wrap_prior(
        diffusers.AutoencoderKL(**settings), latent_shape=[4, 16, 16], output_range=(-1, 1),
        method="decode", settings=settings, out="prior",
    )  # fmt: skip
    assert prior.image_shape == (3, 32, 32)
    assert not any(name.startswith("module.encoder") for name in prior.state_dict())
    latents = torch.randn(2, 4, 16, 16)
    assert torch.equal(gradinv.load_prior("prior")(latents), prior(latents))
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 4))
    update = gradinv.observe(network, (prior(latents), torch.tensor([1, 2])))
    found = gradinv.invert(update, network, attack="gi-z/w:steps=3,3:restarts=1", prior=prior)
    assert found.images.shape == (2, 3, 32, 32)
