from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from gradinv.data import load_images
from gradinv.errors import ConfigError, DataError, ModelError, StorageError
from gradinv.federated import Federation, Noise, Observation, Sparsify, loss_gradient, simulate
from gradinv.federated.protocol import FedAvg
from gradinv.files import read_json, write_json
from gradinv.models import build_model, fingerprint, load_weights
from tests.audit.world import build

SMALL = Federation(clients=3, rounds=2, batch_size=2, lr=0.5, seed=4)


@pytest.fixture
def images(_in_a_folder_of_its_own, tmp_path):
    build(tmp_path)
    return load_images(tmp_path / "images", image_size=32, channels=1)


def network():
    return build_model("tiny_net:make", num_classes=3, channels=1, image_size=32, seed=0)


def weights_of(number):
    model = network()
    load_weights(model, Path("f", f"round{number}-weights.safetensors"))
    return model


def test_no_image_is_used_twice_and_every_client_has_its_own(images):
    rounds = SMALL.batches(images)
    assert [len(batches) for batches in rounds] == [3, 3]
    ids = [number for batches in rounds for batch in batches for number in batch.ids]
    assert len(set(ids)) == len(ids) == 12


def test_the_network_moves_against_the_mean_of_the_clients_updates(images):
    seen = []
    simulate(
        network(), images, SMALL, Path("f"), callback=lambda done, total: seen.append((done, total))
    )
    assert seen == [(n, 6) for n in range(1, 7)]
    first, second = weights_of(0), weights_of(1)
    own = [loss_gradient(first, batch.images, batch.labels) for batch in SMALL.batches(images)[0]]
    for name, parameter in second.named_parameters():
        mean = (own[0][name] + own[1][name] + own[2][name]) / 3
        expected = first.get_parameter(name) - 0.5 * mean
        assert torch.allclose(parameter, expected, atol=1e-6), name
        assert not torch.equal(parameter, first.get_parameter(name))


def test_every_update_names_the_weights_that_it_was_made_with(images):
    simulate(network(), images, SMALL, Path("f"), model_info={"spec": "tiny_net:make"})
    for number in range(2):
        for client in range(3):
            update = Observation.load(Path("f", f"round{number}-client{client:03d}.safetensors"))
            assert update.model["fingerprint"] == fingerprint(weights_of(number))
            assert update.model["client"] == str(client)
            assert update.model["spec"] == "tiny_net:make"


def test_the_clients_chance_is_not_that_of_an_attacker_with_their_seed(images):
    """Who could draw a client's noise again would take it off the update."""
    simulate(network(), images, SMALL, Path("f"), defenses=(Noise(1.0),))
    model, batch = weights_of(0), SMALL.batches(images)[0][0]
    sent = Observation.load(Path("f", "round0-client000.safetensors")).gradient
    true = loss_gradient(model, batch.images, batch.labels)
    drawn = Noise(1.0).apply(true, torch.Generator().manual_seed(SMALL.seed))
    for name, value in sent.items():
        if value.numel() > 20:
            noise, other = ((each[name] - true[name]).flatten() for each in (sent, drawn))
            assert 0.5 < noise.std() < 1.5
            assert abs(torch.cosine_similarity(noise, other, dim=0)) < 0.9
    again = simulate(network(), images, SMALL, Path("g"), defenses=(Noise(1.0),))
    assert again == 6
    repeated = Observation.load(Path("g", "round0-client000.safetensors")).gradient
    assert all(torch.equal(repeated[name], value) for name, value in sent.items())


def test_the_server_averages_what_was_sent_defences_included(images):
    simulate(network(), images, SMALL, Path("f"), defenses=(Sparsify(0.5),))
    first, second = weights_of(0), weights_of(1)
    updates = [
        Observation.load(Path("f", f"round0-client{client:03d}.safetensors")) for client in range(3)
    ]
    for name, parameter in second.named_parameters():
        mean = torch.stack([update.gradient[name] for update in updates]).mean(dim=0)
        assert torch.allclose(parameter, first.get_parameter(name) - 0.5 * mean, atol=1e-6), name


def test_the_server_of_fedavg_takes_the_mean_of_the_clients_weights(images):
    protocol = FedAvg(local_epochs=2, lr=0.1)
    simulate(network(), images, SMALL, Path("f"), protocol=protocol)
    first, second = weights_of(0), weights_of(1)
    updates = [
        Observation.load(Path("f", f"round0-client{client:03d}.safetensors")) for client in range(3)
    ]
    for name, parameter in second.named_parameters():
        own = [first.get_parameter(name) - 0.1 * update.gradient[name] for update in updates]
        assert torch.allclose(parameter, torch.stack(own).mean(dim=0), atol=1e-6), name


def test_a_finished_folder_is_left_as_it_is_and_another_federation_refused(images):
    simulate(network(), images, SMALL, Path("f"))
    before = {path: path.stat().st_mtime_ns for path in Path("f").iterdir()}
    assert simulate(network(), images, SMALL, Path("f")) == 6
    assert {path: path.stat().st_mtime_ns for path in Path("f").iterdir()} == before
    with pytest.raises(ConfigError, match=r"got another federation; use the same settings"):
        simulate(network(), images, replace(SMALL, lr=0.1), Path("f"))


class StopError(Exception):
    pass


def simulated_until(images, updates, federation=SMALL):
    def stop(done, total):
        if done == updates:
            raise StopError

    with pytest.raises(StopError):
        simulate(network(), images, federation, Path("f"), callback=stop)


def contents():
    return {path.name: path.read_bytes() for path in Path("f").iterdir()}


def test_a_stopped_federation_ends_as_one_that_was_not(images):
    simulate(network(), images, SMALL, Path("f"))
    whole = contents()
    Path("f").rename("whole")
    simulated_until(images, 4)
    assert read_json(Path("f/federation.json"))["state"] == "unfinished"
    assert simulate(network(), images, SMALL, Path("f")) == 6
    assert contents() == whole


def test_another_federation_cannot_take_the_folder_of_a_stopped_one(images):
    simulated_until(images, 3)
    before = contents()
    smaller = replace(SMALL, clients=2, rounds=1)
    with pytest.raises(ConfigError, match=r"got another federation; use the same settings"):
        simulate(network(), images, smaller, Path("f"))
    assert contents() == before


def test_a_federation_that_failed_before_its_first_update_binds_nobody(images):
    wrong_mode = network().train()
    with pytest.raises(ModelError):
        simulate(wrong_mode, images, SMALL, Path("f"))
    assert simulate(network(), images, replace(SMALL, clients=2), Path("f")) == 4
    assert read_json(Path("f/federation.json"))["federation"]["clients"] == 2


def test_files_of_unknown_origin_are_neither_overwritten_nor_learned_from(images):
    Path("f").mkdir()
    Path("f/round0-client007.safetensors").write_bytes(b"mine")
    with pytest.raises(
        ConfigError, match=r"without federation\.json, got round0-client007.*; move them, or use"
    ):
        simulate(network(), images, SMALL, Path("f"))
    assert contents() == {"round0-client007.safetensors": b"mine"}


def test_a_record_that_is_no_record(images):
    Path("f").mkdir()
    Path("f/federation.json").write_text("[]")
    with pytest.raises(StorageError, match=r"a federation in f/federation\.json, got list"):
        simulate(network(), images, SMALL, Path("f"))


def test_other_images_under_the_same_name_are_another_federation(images):
    simulate(network(), images, SMALL, Path("f"))
    record = read_json(Path("f/federation.json"))
    file = sorted(Path("images").rglob("*.png"))[SMALL.batches(images)[1][2].ids[0]]
    Image.new("L", (32, 32), 99).save(file)
    again = load_images(Path("images"), image_size=32, channels=1)
    with pytest.raises(ConfigError, match="got another content of the images; use the same"):
        simulate(network(), again, SMALL, Path("f"))
    # Records from before there was a digest say nothing about it.
    del record["content of the images"]
    write_json(Path("f/federation.json"), record)
    assert simulate(network(), again, SMALL, Path("f")) == 6


def test_settings_without_meaning(images):
    with pytest.raises(ConfigError, match="expected rounds of at least 1, got 0"):
        Federation(rounds=0)
    with pytest.raises(ConfigError, match="expected seed of at least 0, got -1"):
        Federation(seed=-1)
    with pytest.raises(ConfigError, match="expected a server's lr above 0 and finite, got nan"):
        Federation(lr=float("nan"))
    with pytest.raises(DataError, match="expected at least 40 images"):
        Federation(clients=20, rounds=1, batch_size=2).batches(images)
