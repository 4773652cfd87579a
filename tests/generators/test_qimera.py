"""Qimera: superposed embeddings and soft targets."""

import pytest
import torch
from torch import nn
from toys import NETWORKS, head, image_spec, make_teacher

from zsq.contract import Silent
from zsq.core.errors import MismatchError
from zsq.engine.conditional import classifier_rows
from zsq.generators import create
from zsq.generators.qimera import Qimera, QimeraOptions
from zsq.plan import Plan


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def network_of(teacher, **options):
    network = create("qimera", teacher, options).network
    network.reset(rng())
    return network


def test_one_slot_is_the_plain_path_exactly(tiny_teacher):
    network = network_of(tiny_teacher, slots=1, superposed=1.0)
    plain = network_of(tiny_teacher, slots=3, superposed=0.0)
    ours, theirs = network.draw(6, rng(1)), plain.draw(6, rng(1))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert torch.equal(network(*ours), plain(*theirs))
    targets, classes, weights, noise = ours
    assert (weights == 1).all() and torch.equal(targets, torch.eye(5)[classes[:, 0]])
    single = nn.functional.layer_norm(network.embedding_KE[classes[:, 0]] + noise[:, 0], noise.shape[2:])
    assert torch.equal(network.latent(*ours), network.mapping(single))


@pytest.mark.parametrize("slots", [2, 7])
def test_soft_targets_are_the_weights_of_the_classes(tiny_teacher, slots):
    targets, classes, weights, noise = network_of(tiny_teacher).draw_slots(200, slots, rng())
    assert noise.shape == (200, slots, 12)
    torch.testing.assert_close(weights.sum(1), torch.ones(200))
    torch.testing.assert_close(targets.sum(1), torch.ones(200))
    assert ((targets > 0).sum(1) <= slots).all()
    repeats = 0
    for row in range(200):
        wanted = [0.0] * 5
        for label, weight in zip(classes[row].tolist(), weights[row].tolist(), strict=True):
            wanted[label] += weight
        repeats += len(set(classes[row].tolist())) < slots
        torch.testing.assert_close(targets[row], torch.tensor(wanted))
    assert repeats > 0


def test_the_latent_vector_mixes_the_mapped_embeddings(tiny_teacher):
    network = network_of(tiny_teacher).double()
    targets, classes, weights, noise = network.draw_slots(4, 3, rng())
    found = network.latent(targets, classes, weights.double(), noise.double())
    for n in range(4):
        parts = []
        for s in range(3):
            x = network.embedding_KE[classes[n, s]] + noise[n, s]
            x = (x - x.mean()) / (x.var(correction=0) + 1e-5).sqrt()
            parts.append(weights[n, s].double() * network.mapping(x))
        torch.testing.assert_close(found[n], torch.stack(parts).sum(0))


def test_equal_embeddings_leave_nothing_to_the_weights(tiny_teacher):
    network = network_of(tiny_teacher)
    with torch.no_grad():
        network.embedding_KE.copy_(network.embedding_KE[0].expand(5, -1).clone())
    targets, classes, weights, noise = network.draw_slots(4, 3, rng())
    noise = noise[:, :1].expand(-1, 3, -1)
    other = torch.rand(4, 3, generator=rng(9)).softmax(1)
    torch.testing.assert_close(
        network(targets, classes, weights, noise), network(targets, classes, other, noise)
    )


def test_conditional_norms_of_superposed_classes_are_convex(tiny_teacher):
    network = network_of(tiny_teacher, conditional_bn=True, slots=3, superposed=1.0)
    inputs = network.draw(6, rng())
    plain = network_of(tiny_teacher, conditional_bn=False)
    torch.testing.assert_close(network(*inputs), plain(*inputs))
    assert network.norm1.conditional and not plain.norm1.conditional


@pytest.mark.parametrize(("probability", "expected"), [(0.0, 0), (0.4, 160), (1.0, 400)])
def test_one_coin_a_batch_in_training(tiny_teacher, probability, expected):
    network, generator = network_of(tiny_teacher, superposed=probability), rng()
    kinds = [network.draw(2, generator)[1].shape[1] for _ in range(400)]
    assert set(kinds) <= {1, 2} and abs(kinds.count(2) - expected) < 35


def test_embeddings_start_at_the_classifiers_rows(tiny_teacher):
    wanted = tiny_teacher.network[2][2].weight
    network = network_of(tiny_teacher)
    assert torch.equal(network.embedding_KE, wanted) and network.mapping.out_features == 100
    assert network.embedding_KE.requires_grad
    assert network.embedding_KE.data_ptr() != wanted.data_ptr()
    frozen = network_of(tiny_teacher, freeze_embeddings=True)
    assert not frozen.embedding_KE.requires_grad
    random = network_of(tiny_teacher, embeddings="random")
    assert random.embedding_KE.shape == (5, 100) and random.embedding_KE.requires_grad


def test_the_last_executed_classifier_counts():
    class Backwards(nn.Module):
        """Its last layer is declared first; the layer before it has as many outputs."""

        def __init__(self, channels, outputs):
            super().__init__()
            self.last = nn.Conv2d(5, outputs, 1)
            self.body = NETWORKS["plain"](channels, outputs)

        def forward(self, x):
            return self.last(self.body(x)[..., None, None]).flatten(1)

    teacher = make_teacher(Backwards)
    rows = classifier_rows(teacher, 5, "qimera")
    assert torch.equal(rows, teacher.network.last.weight.flatten(1)) and not rows.requires_grad
    assert not any(module._forward_pre_hooks for module in teacher.network.modules())


def test_a_network_without_classifier_rows_is_refused_in_one_line():
    def build(channels, outputs):
        return nn.Sequential(*list(NETWORKS["plain"](channels, 7))[:2], head(12, 3), nn.Unflatten(1, (1, 3)))

    teacher = make_teacher(lambda c, k: nn.Sequential(build(c, k), nn.Upsample(size=5), nn.Flatten()))
    with pytest.raises(MismatchError, match=r"one row of weights per class.*--set embeddings=random"):
        create("qimera", teacher)
    assert create("qimera", teacher, {"embeddings": "random"}).network.length == 100


def trained(teacher, tmp_path, count=64, **options):
    method = create("qimera", teacher, {"latent": 32, **options}, iterations=4, batch=8)
    method.prepare(0, tmp_path, Silent())
    (group,) = Plan(count=count, batch=count, shard_size=count, seed=0).groups
    return method.synthesize(group, Silent())


def test_a_set_holds_both_kinds_of_images_and_their_targets(tiny_teacher, tmp_path):
    targets = trained(tiny_teacher, tmp_path / "some").targets_NK
    soft = (targets.amax(1) < 1).sum().item()
    # 0.4 of 64 by coin, of which a fifth meets the same class twice.
    assert 10 <= soft <= 32
    assert (trained(tiny_teacher, tmp_path / "none", superposed=0.0).targets_NK.amax(1) == 1).all()
    every = trained(tiny_teacher, tmp_path / "all", superposed=1.0, slots=20).targets_NK
    assert (every.amax(1) < 1).all()


def test_the_form_for_large_images_trains_too(tmp_path):
    teacher = make_teacher(spec=image_spec(channels=1, size=(12, 20)), outputs=30)
    options = QimeraOptions.published(image_spec(size=(224, 224))) | {"training_batch": 8, "superposed": 0.5}
    batch = trained(teacher, tmp_path, count=16, **options)
    assert batch.standard_NCHW.shape == (16, 1, 12, 20) and batch.standard_NCHW.isfinite().all()
    assert ((batch.targets_NK > 0).sum(1) > 20).any() and (batch.targets_NK.amax(1) == 1).any()


def test_frozen_embeddings_stay_and_free_ones_move(tiny_teacher, tmp_path):
    start = tiny_teacher.network[2][2].weight
    for frozen in (True, False):
        method = create("qimera", tiny_teacher, {"freeze_embeddings": frozen}, iterations=3, batch=4)
        method.prepare(0, tmp_path / str(frozen), Silent())
        assert torch.equal(method.network.embedding_KE, start) == frozen


def test_published_constants():
    small = QimeraOptions.resolve("qimera", image_spec(size=(32, 32)), {})
    large = QimeraOptions.resolve("qimera", image_spec(size=(224, 224)), {})
    for options in (small, large):
        assert (options.iterations, options.superposed, options.latent) == (80_000, 0.4, 100)
        assert (options.embeddings, options.freeze_embeddings) == ("classifier", False)
    assert (small.slots, small.training_batch, small.conditional_bn) == (2, 200, False)
    assert (large.slots, large.training_batch, large.conditional_bn) == (500, 16, True)
    assert Qimera.default_batch(image_spec(size=(224, 224))) == 16
