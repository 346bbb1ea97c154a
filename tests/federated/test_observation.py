"""The observation: what is in it, what must never be, and how it is stored."""

import dataclasses
import io
import itertools
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gradinv.data import ClientBatch
from gradinv.errors import ConfigError, ModelError, ObservationError, StorageError
from gradinv.federated.client import loss_gradient
from gradinv.federated.defenses import Clip, Noise, Sparsify
from gradinv.federated.observation import Observation, check_fits
from gradinv.federated.observing import observe
from gradinv.federated.protocol import FedAvg, FedSGD, Reveal
from gradinv.files import load_tensors, save_tensors
from gradinv.models.batchnorm import record_batch_statistics, running_statistics
from gradinv.models.convnet import ConvNet
from gradinv.models.weights import fingerprint

EVERYTHING = Reveal(labels=True, bn_statistics="exact")


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Every tensor that can be reached from a value, whatever holds it."""
    if isinstance(value, Tensor):
        yield value
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield from tensors_in(vars(value))
    elif isinstance(value, Mapping):
        yield from itertools.chain.from_iterable(map(tensors_in, value.values()))
    elif isinstance(value, list | tuple | set):
        yield from itertools.chain.from_iterable(map(tensors_in, value))


def holds_pixels(value: Any, images: Tensor) -> bool:
    """Whether any tensor shares the images' memory or has a row of an image as a run of entries.

    Rows count as they are and as the network normalises them, in any order of the dimensions.
    """
    rows = images.reshape(-1, images.shape[-1])
    rows = torch.cat([rows, (rows - 0.5) / 0.25]).double()
    for tensor in tensors_in(value):
        if tensor.untyped_storage().data_ptr() == images.untyped_storage().data_ptr():
            return True
        for order in itertools.permutations(range(tensor.dim())):
            flat = tensor.permute(order).flatten().double()
            if len(flat) < rows.shape[1]:
                continue
            windows = flat.unfold(0, rows.shape[1], 1)
            if torch.cdist(windows, rows, p=float("inf")).min() < 1e-3:
                return True
    return False


def bytes_hold_pixels(content: bytes, images: Tensor) -> bool:
    """Whether the bytes of a row of an image, in any usual format, are among ``content``."""
    rows = images.reshape(-1, images.shape[-1])
    formats = [
        *(rows.to(dtype) for dtype in (torch.float64, torch.float32, torch.float16)),
        (rows * 255).round().to(torch.uint8),
        (rows * 255).to(torch.uint8),
    ]
    return any(row.numpy().tobytes() in content for rows in formats for row in rows)


def everything_the_same(first: Observation, second: Observation) -> bool:
    left, right = list(tensors_in(first)), list(tensors_in(second))
    return (
        len(left) == len(right)
        and all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(left, right, strict=True))
        and list(first.gradient) == list(second.gradient)
        and list(first.bn_statistics or {}) == list(second.bn_statistics or {})
        and all(
            getattr(first, name) == getattr(second, name)
            for name in (
                "batch_size",
                "image_shape",
                "num_classes",
                "protocol",
                "defenses",
                "order",
            )
        )
        and (first.clients, dict(first.model)) == (second.clients, dict(second.model))
    )


class TestBarrier:
    @pytest.mark.parametrize("bn_statistics", ["none", "running", "exact"])
    @pytest.mark.parametrize("mode", ["eval", "train"])
    def test_no_pixel_of_the_batch(self, model, batch, mode, bn_statistics, tmp_path):
        observation = observe(
            model.train(mode == "train"),
            batch,
            protocol=FedSGD(mode=mode),
            reveal=Reveal(bn_statistics=bn_statistics),
        )
        assert not holds_pixels(observation, batch.images)
        observation.save(tmp_path / "update.safetensors")
        assert not bytes_hold_pixels((tmp_path / "update.safetensors").read_bytes(), batch.images)

    def test_nothing_but_the_fields_that_are_known(self, model, batch):
        assert set(vars(observe(model, batch, reveal=EVERYTHING))) == {
            *("gradient", "batch_size", "image_shape", "num_classes", "labels", "bn_statistics"),
            *("protocol", "defenses", "clients", "model", "order"),
        }

    def test_no_graph_leads_back_to_the_images(self, model, batch):
        images = batch.images.clone().requires_grad_()
        observation = observe(
            model, ClientBatch(images, batch.labels, batch.ids), reveal=EVERYTHING
        )
        assert not any(tensor.requires_grad for tensor in tensors_in(observation))

    @pytest.mark.parametrize(
        "leak",
        [
            lambda images: images,
            lambda images: images[1, 0].clone(),
            lambda images: torch.cat([torch.zeros(3), (images[2].flatten() - 0.5) / 0.25]),
            lambda images: images.permute(0, 3, 2, 1).contiguous(),
        ],
    )
    def test_the_search_would_find_a_leak(self, model, batch, leak):
        observation = observe(model, batch, reveal=EVERYTHING)
        gradient = {**observation.gradient, "leak": leak(batch.images)}
        leaking = dataclasses.replace(observation, gradient=gradient)
        assert holds_pixels(leaking, batch.images)

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.uint8])
    def test_the_search_of_the_file_would_find_a_leak(self, batch, dtype, tmp_path):
        scale = 255 if dtype == torch.uint8 else 1
        leak = {"leak": (batch.images[1] * scale).to(dtype)}
        save_tensors(tmp_path / "leak.safetensors", leak, {})
        assert bytes_hold_pixels((tmp_path / "leak.safetensors").read_bytes(), batch.images)


class TestObserve:
    def test_gradient_of_the_batch(self, model, batch):
        observation = observe(model, batch)
        expected = loss_gradient(model, batch.images, batch.labels)
        assert list(observation.gradient) == list(expected)
        for name, value in expected.items():
            assert torch.equal(observation.gradient[name], value), name
        assert observation.batch_size == 3
        assert observation.image_shape == (2, 8, 8)
        assert observation.num_classes == 5
        assert observation.clients == 1
        assert observation.protocol == FedSGD("eval")
        assert observation.defenses == ()
        assert observation.bn_statistics is None

    def test_labels_only_when_revealed(self, model, batch):
        assert observe(model, batch, reveal=Reveal(labels=False)).labels is None
        revealed = observe(model, batch).labels
        assert revealed is not None
        assert revealed.tolist() == [4, 0, 4]

    @pytest.mark.parametrize("mode", ["eval", "train"])
    def test_exact_statistics_are_those_of_the_batch(self, model, batch, mode):
        model.train(mode == "train")
        observation = observe(model, batch, protocol=FedSGD(mode), reveal=EVERYTHING)
        with record_batch_statistics(model) as expected, torch.no_grad():
            model(batch.images)
        assert observation.bn_statistics is not None
        assert list(observation.bn_statistics) == list(expected.statistics)
        for name, value in expected.statistics.items():
            torch.testing.assert_close(observation.bn_statistics[name].mean, value.mean)
            torch.testing.assert_close(observation.bn_statistics[name].var, value.var)

    def test_running_statistics_are_the_models(self, model, batch):
        observation = observe(model, batch, reveal=Reveal(bn_statistics="running"))
        assert observation.bn_statistics is not None
        for name, value in running_statistics(model).items():
            assert torch.equal(observation.bn_statistics[name].mean, value.mean)
            assert torch.equal(observation.bn_statistics[name].var, value.var)

    @pytest.mark.parametrize("mode", ["eval", "train"])
    def test_the_model_is_not_changed(self, model, batch, mode):
        model.train(mode == "train")
        before = fingerprint(model)
        observe(model, batch, protocol=FedSGD(mode), reveal=EVERYTHING)
        assert fingerprint(model) == before

    def test_defenses_in_their_order(self, model, batch, generator):
        defenses = (Clip(0.1), Noise(0.01), Sparsify(0.5))
        observation = observe(model, batch, defenses=defenses, generator=generator)
        expected = loss_gradient(model, batch.images, batch.labels)
        source = torch.Generator().manual_seed(0)
        for defense in defenses:
            expected = defense.apply(expected, source)
        for name, value in expected.items():
            assert torch.equal(observation.gradient[name], value), name
        assert observation.defenses == defenses

    def test_what_is_said_of_the_model(self, model, batch):
        observation = observe(model, batch, model_info={"spec": "tiny", "seed": "0"})
        assert observation.model == {
            "spec": "tiny",
            "seed": "0",
            "fingerprint": fingerprint(model),
        }

    def test_wrong_mode(self, model, batch):
        with pytest.raises(ModelError, match=r"got train mode in .*; call model\.eval\(\)"):
            observe(model.train(), batch)
        with pytest.raises(ModelError, match=r"got eval mode in .*; call model\.train\(\)"):
            observe(model.eval(), batch, protocol=FedSGD("train"))

    @pytest.mark.parametrize("kind", ["running", "exact"])
    def test_no_batch_norm_to_reveal(self, batch, kind):
        plain = nn.Sequential(nn.Flatten(), nn.Linear(128, 5)).eval()
        with pytest.raises(ModelError, match=f"layers whose {kind} statistics .*; reveal none"):
            observe(plain, batch, reveal=Reveal(bn_statistics=kind))
        assert observe(plain, batch).num_classes == 5

    def test_other_number_of_channels(self, batch):
        model = ConvNet(5, 1, 8, widths=(2,)).eval()
        with pytest.raises(ModelError, match=r"expected images of 1 channels .* got 2; load the"):
            observe(model, batch)

    def test_label_beyond_the_classes(self, batch):
        model = ConvNet(4, 2, 8, widths=(2,)).eval()
        with pytest.raises(ModelError, match=r"labels below 4 .* got 4; build .* at least 5 class"):
            observe(model, batch)

    def test_a_gradient_that_is_zero_everywhere_is_no_evidence(self, batch):
        model = ConvNet(1, 2, 8, widths=(2,)).eval()
        only = dataclasses.replace(batch, labels=torch.zeros(3, dtype=torch.long))
        for protocol in (FedSGD(), FedAvg(2)):
            with pytest.raises(
                ObservationError, match=r"not zero everywhere, got zeros .*at least 2 classes"
            ):
                observe(model, only, protocol=protocol, defenses=(Clip(1.0),))

    def test_a_gradient_that_a_defence_sets_to_zero_is_sent(self, model, batch):
        with torch.no_grad():
            model.head.weight.zero_()
        observation = observe(model, batch, defenses=(Clip(1e-300),))
        assert not any(value.any() for value in observation.gradient.values())

    def test_more_than_one_client(self, model, batch):
        with pytest.raises(ConfigError, match="expected one client, got clients=2; one batch is"):
            observe(model, batch, reveal=Reveal(clients=2))

    def test_noise_without_generator(self, model, batch):
        with pytest.raises(ConfigError, match=r"expected a torch\.Generator"):
            observe(model, batch, defenses=(Noise(0.1),))

    def test_all_tensors_that_are_not_finite_are_named(self, model, batch):
        with torch.no_grad():
            model.head.weight[0, 0] = torch.inf
        with pytest.raises(ObservationError, match=r"NaN or infinity in .*gradient/head\.weight"):
            observe(model, batch)


class TestObservation:
    def test_mask_only_when_the_sparsifier_is_known(self, model, batch):
        assert observe(model, batch, defenses=(Clip(1.0),)).sparsity_mask is None
        observation = observe(model, batch, defenses=(Clip(1.0), Sparsify(0.75)))
        mask = observation.sparsity_mask
        assert mask is not None
        assert list(mask) == list(observation.gradient)
        for name, value in observation.gradient.items():
            assert torch.equal(mask[name], value != 0)
        assert int(mask["head.weight"].sum()) == 80

    @pytest.mark.parametrize("before", [(), (Clip(0.1),)], ids=["", "clip"])
    @pytest.mark.parametrize("after", [(), (Clip(0.1),), (Noise(1e-9),)], ids=["", "clip", "noise"])
    def test_noise_does_not_hide_what_a_known_sparsification_left(
        self, model, batch, generator, before, after
    ):
        seen = observe(model, batch, defenses=(*before, Sparsify(0.75))).sparsity_mask
        defenses = (*before, Sparsify(0.75), Noise(1e-9), *after)
        observation = observe(model, batch, defenses=defenses, generator=generator)
        mask = observation.sparsity_mask
        assert mask is not None
        assert seen is not None
        assert all((value != 0).all() for value in observation.gradient.values())
        for name in seen:
            assert torch.equal(mask[name], seen[name])

    def test_a_sparsification_after_the_noise_is_seen_as_it_is(self, model, batch, generator):
        for defenses, left in (
            ((Noise(0.1), Sparsify(0.75)), 0.25),
            ((Sparsify(0.5), Noise(0.1), Sparsify(0.75)), 0.25),
            ((Sparsify(0.75), Noise(0.1), Sparsify(0.5)), 0.25),
            ((Sparsify(0.5), Sparsify(0.75), Noise(0.1)), 0.25),
        ):
            observation = observe(model, batch, defenses=defenses, generator=generator)
            mask = observation.sparsity_mask
            assert mask is not None
            value = observation.gradient["head.weight"]
            assert int(mask["head.weight"].sum()) == left * value.numel()
            chosen = value[mask["head.weight"]].abs().min()
            assert (value[~mask["head.weight"]].abs() <= chosen).all()

    def test_to_moves_floats_only(self, model, batch):
        observation = observe(model, batch, reveal=EVERYTHING)
        double = observation.to(dtype=torch.float64)
        assert {t.dtype for t in tensors_in(dict(double.gradient))} == {torch.float64}
        assert {t.dtype for t in tensors_in(double.bn_statistics)} == {torch.float64}
        assert double.labels is not None
        assert double.labels.dtype == torch.long
        meta = observation.to("cpu")
        assert everything_the_same(meta, observation)

    def test_without_labels_and_statistics_too(self, model, batch):
        observation = observe(model, batch, reveal=Reveal(labels=False)).to(dtype=torch.float64)
        assert observation.labels is None
        assert observation.bn_statistics is None

    def test_not_finite(self, model, batch):
        observation = observe(model, batch, reveal=EVERYTHING)
        gradient = dict(observation.gradient)
        gradient["head.bias"] = torch.tensor([0, torch.nan, 0, 0, 0])
        gradient["blocks.block1.bn.bias"] = torch.full((3,), -torch.inf)
        statistics = dict(observation.bn_statistics or {})
        statistics["blocks.block2.bn"] = dataclasses.replace(
            statistics["blocks.block2.bn"], var=torch.full((4,), torch.nan)
        )
        with pytest.raises(ObservationError) as caught:
            dataclasses.replace(observation, gradient=gradient, bn_statistics=statistics)
        assert str(caught.value) == (
            "expected finite numbers in the update, got NaN or infinity in "
            "gradient/blocks.block1.bn.bias, gradient/head.bias, bn_var/blocks.block2.bn; "
            "ask the client for it again"
        )

    @pytest.mark.parametrize(
        ("labels", "message"),
        [
            ([1, 2], r"expected 3 labels, one for each image, got shape \(2,\); observe"),
            ([1, 2, 5], "expected labels from 0 to 4, got 1 to 5; observe it again"),
            ([-1, 2, 3], "expected labels from 0 to 4, got -1 to 3"),
            ([1.0, 2.0, 3.0], r"whole numbers \(int64\) as labels, got float32; observe it"),
            ([True, False, True], r"whole numbers \(int64\) as labels, got bool"),
        ],
    )
    @pytest.mark.usefixtures("without_type_checks")
    def test_labels_that_cannot_be(self, model, batch, labels, message):
        with pytest.raises(ObservationError, match=message):
            dataclasses.replace(observe(model, batch), labels=torch.tensor(labels))

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"batch_size": 0}, "expected batch_size as a whole number above 0, got 0; observe"),
            ({"batch_size": -1}, "expected batch_size as a whole number above 0, got -1"),
            ({"batch_size": 3.0}, "expected batch_size as a whole number above 0, got 3.0"),
            ({"batch_size": True}, "expected batch_size as a whole number above 0, got True"),
            ({"num_classes": 0}, "expected num_classes as a whole number above 0, got 0"),
            ({"clients": -4}, "expected clients as a whole number above 0, got -4"),
            ({"image_shape": (1, 0, 32)}, r"numbers above 0 in image_shape, got \(1, 0, 32\)"),
            ({"image_shape": (1, 32)}, r"expected three whole numbers .*, got \(1, 32\)"),
            ({"image_shape": (1, 32, 3.5)}, r"expected three whole numbers .*, got \(1, 32, 3"),
        ],
    )
    @pytest.mark.parametrize("labels", [True, False])
    @pytest.mark.usefixtures("without_type_checks")
    def test_counts_that_cannot_be(self, model, batch, labels, settings, message):
        observation = observe(model, batch, reveal=Reveal(labels=labels))
        with pytest.raises(ObservationError, match=message):
            dataclasses.replace(observation, **settings)

    @pytest.mark.usefixtures("without_type_checks")
    def test_a_gradient_of_whole_numbers(self, model, batch):
        observation = observe(model, batch)
        gradient = {**observation.gradient, "head.bias": torch.zeros(5, dtype=torch.long)}
        with pytest.raises(ObservationError, match=r"got int64 in gradient/head\.bias; observe it"):
            dataclasses.replace(observation, gradient=gradient)

    def test_empty(self, model, batch):
        with pytest.raises(ObservationError, match="expected at least one gradient"):
            dataclasses.replace(observe(model, batch), gradient={})


@pytest.fixture
def stored(model, batch, tmp_path) -> Path:
    path = tmp_path / "update.safetensors"
    observe(model, batch, reveal=EVERYTHING).save(path)
    return path


def rewrite(path: Path, *, tensors: Mapping[str, Tensor | None] | None = None, **header) -> None:
    """Changes a stored update; None takes a tensor or a header's entry away."""
    old_tensors, old_header = load_tensors(path, what="an update")
    new_tensors = {**old_tensors, **(tensors or {})}
    save_tensors(
        path,
        {name: value for name, value in new_tensors.items() if value is not None},
        {name: value for name, value in {**old_header, **header}.items() if value is not None},
    )


class TestStorage:
    @pytest.mark.parametrize("reveal", [EVERYTHING, Reveal(labels=False)])
    def test_round_trip_bit_for_bit(self, model, batch, reveal, generator, tmp_path):
        observation = observe(
            model.train(),
            batch,
            protocol=FedSGD("train"),
            defenses=(Clip(0.3), Sparsify(0.95), Noise(1e-5)),
            reveal=reveal,
            generator=generator,
            model_info={"spec": "tiny"},
        ).to(dtype=torch.float64)
        observation.save(tmp_path / "update.safetensors")
        loaded = Observation.load(tmp_path / "update.safetensors")
        assert everything_the_same(loaded, observation)
        check_fits(loaded, model)

    def test_the_comparison_would_see_a_difference(self, model, batch):
        observation = observe(model, batch, reveal=EVERYTHING)
        gradient = {name: value + 1e-7 for name, value in observation.gradient.items()}
        assert not everything_the_same(
            observation, dataclasses.replace(observation, gradient=gradient)
        )
        assert not everything_the_same(observation, dataclasses.replace(observation, clients=2))

    def test_missing_file(self, tmp_path):
        with pytest.raises(StorageError, match=r"expected an update .*got nothing there"):
            Observation.load(tmp_path / "none.safetensors")

    def test_truncated(self, stored):
        content = stored.read_bytes()
        stored.write_bytes(content[: len(content) // 2])
        with pytest.raises(StorageError, match=r"expected an update .*truncated or foreign file"):
            Observation.load(stored)

    def test_foreign(self, tmp_path):
        from safetensors.torch import save_file

        save_file({"a": torch.zeros(1)}, tmp_path / "foreign.safetensors")
        with pytest.raises(StorageError, match="without gradinv's header; make it with gradinv"):
            Observation.load(tmp_path / "foreign.safetensors")

    def test_pickle_is_refused(self, tmp_path):
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w") as file:  # what torch.save writes
            file.writestr("archive/data.pkl", b"\x80\x02.")
        (tmp_path / "update.pt").write_bytes(archive.getvalue())
        with pytest.raises(StorageError, match=r"expected an update .*got a pickle"):
            Observation.load(tmp_path / "update.pt")

    def test_not_finite(self, stored):
        rewrite(stored, tensors={"gradient/head.bias": torch.full((5,), torch.nan)})
        with pytest.raises(
            ObservationError, match=r"update\.safetensors: .*infinity in gradient/head\.bias; ask"
        ):
            Observation.load(stored)

    @pytest.mark.usefixtures("without_type_checks")
    def test_labels_that_are_no_classes(self, stored):
        rewrite(stored, tensors={"labels": torch.tensor([1.0, 0.5, 4.0])})
        with pytest.raises(ObservationError, match=r"update\.safetensors: .*labels, got float32"):
            Observation.load(stored)

    @pytest.mark.parametrize(
        ("header", "message"),
        [
            ({"kind": "prior"}, "expected an update at .*, got 'prior' in its header; make one"),
            ({"kind": None}, "got 'no kind' in its header"),
            ({"schema": 2}, "expected schema 1 in the update at .*, got 2; use the version"),
            ({"batch_size": None}, "expected a whole update at .*without 'batch_size'; observe"),
            ({"image_shape": [1, 2]}, "three whole numbers above 0 in image_shape, got"),
            ({"image_shape": 3}, "expected a readable header .*"),
            ({"protocol": {"name": "fedprox"}}, "readable header .*unknown protocol 'fedprox'"),
            ({"protocol": {"name": "fedsgd", "epochs": 2}}, "readable header .*'epochs'"),
            ({"batch_size": 0}, r"update\.safetensors: expected batch_size .* above 0, got 0"),
            ({"batch_size": 3.5}, "expected batch_size as a whole number above 0, got 3.5"),
            ({"batch_size": "3"}, "expected batch_size as a whole number above 0, got '3'"),
            ({"clients": -4}, "expected clients as a whole number above 0, got -4"),
            ({"image_shape": [1, 0, 32]}, "three whole numbers above 0 in image_shape, got"),
            ({"image_shape": "123"}, "three whole numbers above 0 in image_shape, got"),
            ({"model": 3}, "expected a readable header .*'items'"),
            ({"defenses": "magic:1"}, r"update\.safetensors: expected a defence .*got 'magic'"),
        ],
    )
    @pytest.mark.usefixtures("without_type_checks")
    def test_headers_that_cannot_be(self, stored, header, message):
        rewrite(stored, **header)
        with pytest.raises(ObservationError, match=message):
            Observation.load(stored)

    @pytest.mark.parametrize("name", ["gradient/head.bias", "bn_var/blocks.block2.bn"])
    def test_a_tensor_is_missing(self, stored, name):
        rewrite(stored, tensors={name: None})
        with pytest.raises(ObservationError, match=f"got one without '{name}'; observe it again"):
            Observation.load(stored)


class TestFits:
    @pytest.mark.parametrize("reveal", [Reveal(), EVERYTHING])
    def test_own_network(self, model, batch, reveal):
        check_fits(observe(model, batch, reveal=reveal), model)

    def test_own_network_in_another_precision(self, model, batch):
        observation = observe(model, batch)
        check_fits(observation.to(dtype=torch.float64), model.double())

    def test_every_difference_is_listed(self, model, batch):
        observation = observe(model, batch, reveal=EVERYTHING)
        other = ConvNet(6, 2, 8, widths=(3, 5, 2)).eval()
        with pytest.raises(ObservationError) as caught:
            check_fits(observation, other)
        message = str(caught.value)
        for problem in (
            "parameter blocks.block3.conv.weight is missing",
            "parameter blocks.block3.bn.weight is missing",
            "parameter blocks.block3.bn.bias is missing",
            "parameter blocks.block2.conv.weight has shape (4, 3, 3, 3) instead of (5, 3, 3, 3)",
            "parameter blocks.block2.bn.weight has shape (4,) instead of (5,)",
            "parameter blocks.block2.bn.bias has shape (4,) instead of (5,)",
            "parameter head.weight has shape (5, 64) instead of (6, 32)",
            "parameter head.bias has shape (5,) instead of (6,)",
            "batch-norm layer blocks.block3.bn is missing",
            "batch-norm layer blocks.block2.bn has shape (4,) instead of (5,)",
        ):
            assert problem in message
        assert message.count("; ") == 10
        assert message.endswith("; give the network that the update was made with")

    def test_unexpected_names(self, model, batch):
        smaller = ConvNet(5, 2, 8, widths=(3,)).eval()
        with pytest.raises(
            ObservationError,
            match=r"parameter blocks\.block2\.conv\.weight is unexpected; .*"
            r"batch-norm layer blocks\.block2\.bn is unexpected",
        ):
            check_fits(observe(model, batch, reveal=EVERYTHING), smaller)

    def test_other_weights_are_noticed(self, model, batch):
        observation = observe(model, batch)
        with torch.no_grad():
            model.head.bias[0] += 1e-6
        with pytest.raises(
            ObservationError, match=r"one that was made with other weights .*; give the weights, or"
        ):
            check_fits(observation, model)

    def test_without_a_fingerprint_the_names_decide(self, model, batch):
        observation = dataclasses.replace(observe(model, batch), model={})
        with torch.no_grad():
            model.head.bias[0] += 1
        check_fits(observation, model)
