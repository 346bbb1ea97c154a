from dataclasses import replace
from pathlib import Path

import pytest
import torch

from gradinv.errors import ObservationError
from gradinv.federated import FedAvg, Federation, FedSGD, Observation, Reveal, simulate
from gradinv.metalearning import open_tasks
from gradinv.models import build_model, fingerprint
from tests.metalearning.conftest import INFO, SPEC


def test_every_update_finds_the_weights_that_it_was_made_with(folder):
    tasks = open_tasks(folder)
    assert len(tasks.tasks) == 6
    assert len(tasks.networks) == 2
    assert tasks.broken == ()
    assert (tasks.name, tasks.images, tasks.image_shape) == ("updates", 12, (1, 32, 32))
    assert tasks.offsets() == [0, 2, 4, 6, 8, 10]
    for task in tasks.tasks:
        model = tasks.networks[task.network].build()
        assert fingerprint(model) == Observation.load(task.path).model["fingerprint"]


def test_broken_updates_are_named_and_the_good_ones_used(folder):
    good = open_tasks(folder)
    whole = (folder / "round0-client001.safetensors").read_bytes()
    (folder / "round0-client001.safetensors").write_bytes(whole[: len(whole) // 2])
    (folder / "later.safetensors").write_bytes(b"\x80\x04 a pickle")
    stray = Observation.load(folder / "round1-client000.safetensors")
    replace(stray, model={**INFO, "fingerprint": "0" * 16}).save(
        folder / "round1-client000.safetensors"
    )
    tasks = open_tasks(folder)
    assert [task.name for task in tasks.tasks] == [
        "round0-client000.safetensors", "round0-client002.safetensors",
        "round1-client001.safetensors", "round1-client002.safetensors",
    ]  # fmt: skip
    pickle, truncated, unknown = tasks.broken
    assert "later.safetensors, got a pickle" in pickle
    assert "round0-client001.safetensors, got a truncated or foreign file" in truncated
    assert unknown.startswith("round1-client000.safetensors: expected the weights (0000")
    assert tasks.digest != good.digest


def test_an_update_of_several_clients_is_left_out_and_named(folder):
    path = folder / "round0-client001.safetensors"
    one = Observation.load(path)
    replace(one, clients=5).save(path)
    tasks = open_tasks(folder)
    assert len(tasks.tasks) == 5
    (left_out,) = tasks.broken
    assert left_out.startswith(
        "round0-client001.safetensors: expected the update of one client, got the sum of those of 5"
    )
    for each in folder.glob("*client*.safetensors"):
        replace(Observation.load(each), clients=5).save(each)
    with pytest.raises(ObservationError, match=r"got none that can be used .* got the sum of"):
        open_tasks(folder)


def test_updates_of_other_images_are_left_out(folder, images):
    model = build_model(SPEC, num_classes=3, channels=1, image_size=16, seed=0)
    smaller = type(images)(
        images.name, images.classes, images.labels, 1, 16,
        lambda index: images._decode(index)[:, ::2, ::2],
    )  # fmt: skip
    simulate(model, smaller, Federation(1, 1, 2), folder / "small", model_info=INFO)
    tasks = open_tasks(folder)
    assert len(tasks.tasks) == 6
    (left_out,) = tasks.broken
    assert "expected an update of images (1, 32, 32) like the others, got (1, 16, 16)" in left_out
    assert open_tasks(folder, image_shape=(1, 16, 16)).tasks[0].name.startswith("small/")


def test_a_folder_without_a_single_update(tmp_path):
    with pytest.raises(ObservationError, match=r"got none that can be used \(no safetensors there"):
        open_tasks(tmp_path / "nothing")


def test_an_update_that_says_nothing_of_its_network_needs_to_be_told(images, model):
    simulate(model, images, Federation(1, 1, 2), Path("u"))
    with pytest.raises(ObservationError, match="says which network and weights"):
        open_tasks(Path("u"))
    assert len(open_tasks(Path("u"), model=SPEC).tasks) == 1


def test_hidden_labels_are_read_and_local_steps_put_in_an_order(images, model):
    protocol = FedAvg(local_epochs=1, batch_size=1, lr=0.01)
    simulate(
        model, images, Federation(2, 1, 2), Path("u"), protocol=protocol, model_info=INFO,
        reveal=Reveal(labels=False),
    )  # fmt: skip
    tasks = open_tasks(Path("u"))
    batches = Federation(2, 1, 2).batches(images)[0]
    for task, batch in zip(tasks.tasks, batches, strict=True):
        observation = task.observation(tasks.networks[task.network].build())
        assert observation.labels is not None
        assert observation.labels.tolist() == sorted(batch.labels.tolist())
        assert observation.order is not None
        again = task.observation(tasks.networks[task.network].build())
        assert again.order == observation.order


def test_what_makes_a_set_its_own(folder, tasks):
    assert open_tasks(folder).digest == tasks.digest
    path = folder / "round0-client000.safetensors"
    update = Observation.load(path)
    first = next(iter(update.gradient.values()))
    with torch.no_grad():
        first.view(-1)[0] += 1
    update.save(path)
    assert open_tasks(folder).digest != tasks.digest


def test_a_network_is_in_the_mode_of_its_updates(folder, images, model):
    simulate(
        model.train(), images, Federation(1, 1, 2), folder / "train", model_info=INFO,
        protocol=FedSGD("train"),
    )  # fmt: skip
    tasks = open_tasks(folder)
    assert tasks.broken == ()
    modes = {task.name: tasks.networks[task.network].build().training for task in tasks.tasks}
    assert [name for name, training in modes.items() if training] == [
        "train/round0-client000.safetensors"
    ]


def test_a_server_that_watched_no_longer(folder):
    tasks = open_tasks(folder, rounds=1)
    assert {task.name[:6] for task in tasks.tasks} == {"round0"}
    assert len(tasks.networks) == 1
    update = Observation.load(folder / "round0-client000.safetensors")
    model = {name: text for name, text in update.model.items() if name != "round"}
    replace(update, model=model).save(folder / "extra.safetensors")
    (said,) = open_tasks(folder, rounds=1).broken
    assert "expected an update that says which round it is of, got none" in said


def test_it_is_told_of_every_file_and_may_be_stopped(folder):
    seen = []
    tasks = open_tasks(folder, callback=lambda: seen.append(1))
    assert len(seen) == 8 + 6  # 6 updates and 2 sets of weights are found, the updates read again
    assert len(tasks.tasks) == 6

    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        open_tasks(folder, callback=stop)
