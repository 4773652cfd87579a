"""FDDA: centres from given images, plain and distorted alignment, classes, and what counts as read."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from toys import NETWORKS, image_spec, make_teacher

from zsq.config import GenerateConfig
from zsq.contract import Silent
from zsq.core.errors import MismatchError, OptionError, RunFolderError
from zsq.engine.amortise import FreshInputs
from zsq.engine.classes import first_deep_layer
from zsq.engine.memories import FreshNoise, centre_alignment, on_images
from zsq.engine.objectives import TeacherPass, cross_entropy
from zsq.generators import create
from zsq.generators.fdda import NOISE, FDDAOptions, mixed_half, single_half
from zsq.plan import Plan
from zsq.shards.reader import ShardDataset
from zsq.synthesis import synthesize

TEACHER = make_teacher(NETWORKS["downsample"])


def pixels_and_labels(teacher=TEACHER, count=40, seed=0):
    """Noise, labelled as the teacher sees it: several images of some classes."""
    pixels = torch.randint(
        256, (count, *teacher.spec.shape), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8
    )
    with torch.no_grad():
        return pixels, teacher.logits(teacher.spec.pixels_to_standard(pixels)).argmax(1)


def method(images=None, teacher=TEACHER, overrides=None, iterations=3, batch=8):
    made = create("fdda", teacher, overrides, iterations, batch=batch)
    made.read(*(images or pixels_and_labels(teacher)))
    return made


def first_of(labels, k):
    return int((labels == k).nonzero()[0])


def as_forward(made, images, k):
    tapped = made.training(FreshInputs(made.network, "cpu", made.options)).tapped
    logits, layers = tapped(images)
    targets = F.one_hot(torch.full((len(images),), k), logits.shape[1]).float()
    return TeacherPass(images, logits, layers, targets)


def test_centres_are_the_statistics_of_the_first_image_of_a_class():
    pixels, labels = pixels_and_labels()
    made = method((pixels, labels))
    k = int(labels[0])
    inputs, network = [], TEACHER.network
    handles = [
        m.register_forward_pre_hook(lambda m, x: inputs.append(x[0][0].double().flatten(1).numpy()))
        for m in (network.branch[0][1], network.branch[2], network.shortcut[1])
    ]
    network(TEACHER.spec.pixels_to_standard(pixels[:1]))
    for handle in handles:
        handle.remove()
    assert made.centres.skipped == first_deep_layer(3) == 0
    for values, mean_KC, var_KC in zip(inputs, made.centres.mean_KC, made.centres.var_KC, strict=True):
        np.testing.assert_allclose(mean_KC[k], values.mean(1), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(var_KC[k], values.var(1), rtol=1e-4, atol=1e-5)


def test_a_batch_that_is_the_given_image_has_no_loss():
    pixels, labels = pixels_and_labels()
    made, k = method((pixels, labels)), int(labels[0])
    image = TEACHER.spec.pixels_to_standard(pixels[:1])
    centred = centre_alignment(made.centres)
    assert centred(as_forward(made, image, k)).item() == pytest.approx(0, abs=1e-9)
    assert centred(as_forward(made, image.roll(1, 3) * 1.5, k)).item() > 1e-4


def test_distortion_adds_the_variance_of_its_noise_on_average():
    pixels, labels = pixels_and_labels()
    made, k = method((pixels, labels)), int(labels[0])
    forward = as_forward(
        made, torch.randn(4, *TEACHER.spec.shape, generator=torch.Generator().manual_seed(1)), k
    )
    noise = FreshNoise(1, [mean.shape[1] for mean in made.centres.mean_KC], "cpu")
    distorted, generator = centre_alignment(made.centres, noise, NOISE), torch.Generator().manual_seed(0)
    draws = []
    for step in range(800):
        noise.before_step(step, generator)
        draws.append(distorted(forward).item())
    plain = centre_alignment(made.centres)(forward).item()
    assert np.mean(draws) == pytest.approx(plain + 0.25 + 1.0, rel=0.05) and np.std(draws) > 0.1


def test_layers_before_the_deep_ones_do_not_count():
    """Their own sums get no gradient from the class terms."""
    from dataclasses import replace

    teacher = make_teacher()
    made = method(teacher=teacher)
    forward = as_forward(made, torch.randn(4, *teacher.spec.shape), 0)
    layers = [replace(s, s1_NC=s.s1_NC.detach().requires_grad_()) for s in forward.layers]
    centres = replace(
        made.centres, skipped=1, mean_KC=made.centres.mean_KC[1:], var_KC=made.centres.var_KC[1:]
    )
    centre_alignment(centres)(replace(forward, layers=layers)).backward()
    assert layers[0].s1_NC.grad is None and layers[1].s1_NC.grad.any()


@pytest.mark.parametrize("count", [1, 2, 5, 8])
def test_a_batch_is_half_mixed_and_half_of_one_class(count):
    made = method()
    targets, noise = made.network.draw(count, torch.Generator().manual_seed(0))
    single = targets[single_half(count)]
    assert len(noise) == count and len(single) == max(1, count // 2) and (single == single[0]).all()
    assert len(targets[mixed_half(count)]) == max(1, count - count // 2)


def test_a_term_on_some_images_is_that_of_a_smaller_batch():
    made = method()
    images = torch.randn(6, *TEACHER.spec.shape)
    whole, part = as_forward(made, images, 1), as_forward(made, images[3:], 1)
    half = on_images(cross_entropy, single_half)
    assert half(whole).item() == pytest.approx(cross_entropy(part).item(), rel=1e-5)


def test_classes_without_a_rightly_classified_image_are_never_asked_for(tmp_path):
    pixels, labels = pixels_and_labels()
    kept = [int(k) for k in labels.unique()][:2]
    wrong = torch.where(torch.isin(labels, torch.tensor(kept)), labels, (labels + 1) % 5)
    keep = torch.isin(labels, torch.tensor(kept)) | ~torch.isin(wrong, torch.tensor(kept))
    made = method((pixels[keep], wrong[keep]))
    made.prepare(0, tmp_path, Silent())
    (group,) = Plan(count=60, batch=60, shard_size=60, seed=0).groups
    assert sorted(made.synthesize(group, Silent()).targets_NK.argmax(1).unique().tolist()) == sorted(kept)
    drawn, _ = made.network.draw(200, torch.Generator().manual_seed(0))
    assert set(drawn.argmax(1).tolist()) <= set(kept)


def test_unlabelled_images_count_as_the_teacher_sees_them():
    pixels, labels = pixels_and_labels()
    blind = method((pixels, torch.full_like(labels, -1)))
    known = method((pixels, labels))
    pairs = zip(blind.centres.mean_KC, known.centres.mean_KC, strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_images_that_the_teacher_sees_otherwise_are_refused():
    pixels, labels = pixels_and_labels()
    with pytest.raises(MismatchError, match="none of the 40 images of --real is classified as labelled"):
        method((pixels, (labels + 1) % 5))


def test_terms_and_published_constants():
    made = method()
    terms = made.training(FreshInputs(made.network, "cpu", made.options)).terms
    assert [(term.name, term.weight) for term in terms] == [
        ("ce", 1.0),
        ("bn", 0.2),
        ("distorted", 0.9),
        ("centred", 0.01),
    ]
    large = FDDAOptions.resolve("fdda", image_spec(size=(224, 224)), {})
    assert (large.iterations, large.training_batch, large.conditional_bn) == (70_000, 32, True)


def config(real, **changes):
    values = {"teacher": "toy", "method": "fdda", "count": 4, "batch": 4, "iterations": 2, "real": real}
    return GenerateConfig(**(values | changes))


@pytest.fixture
def folders(tmp_path):
    """Class folders with two images each; the second of every class is not an image at all."""
    from PIL import Image

    pixels, labels = pixels_and_labels()
    for k in labels.unique().tolist():
        folder = tmp_path / "real" / str(k)
        folder.mkdir(parents=True)
        array = pixels[first_of(labels, k)].permute(1, 2, 0).numpy()
        Image.fromarray(array).save(folder / "a.png")
        (folder / "b.png").write_bytes(b"not an image")
    return tmp_path / "real"


def test_of_real_images_one_per_class_is_read_and_the_manifest_says_so(folders, tmp_path):
    """The others are not even opened."""
    run = synthesize.generate(config(str(folders)), tmp_path / "run", teacher=TEACHER)
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["data_read"] == manifest["method"]["data_read"] == "1 image per class"
    assert ShardDataset(run).provenance.data_read == "1 image per class"


def test_with_synthetic_images_nothing_real_is_read(tmp_path):
    source = synthesize.generate(
        GenerateConfig(teacher="toy", method="noise", count=40), tmp_path / "noise", teacher=TEACHER
    )
    run = synthesize.generate(config(str(source)), tmp_path / "run", teacher=TEACHER)
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["data_read"] == "none" and manifest["config"]["real"] == str(source)


def test_shards_pass_on_what_was_read_for_them(folders, tmp_path):
    first = synthesize.generate(config(str(folders), count=30), tmp_path / "first", teacher=TEACHER)
    second = synthesize.generate(config(str(first)), tmp_path / "second", teacher=TEACHER)
    assert ShardDataset(second).provenance.data_read == "1 image per class"


def test_without_real_it_is_refused_and_other_images_are_no_resume(folders, tmp_path):
    with pytest.raises(OptionError, match="fdda without --real; expected --real SRC: 1 image per class"):
        synthesize.generate(config(None), tmp_path / "run", teacher=TEACHER)
    assert not (tmp_path / "run").exists()
    run = synthesize.generate(config(str(folders)), tmp_path / "run", teacher=TEACHER)
    next(run.glob("shards/*.h5")).unlink()
    from PIL import Image

    changed = next(folders.glob("*/a.png"))
    Image.fromarray(255 - np.asarray(Image.open(changed))).save(changed)
    with pytest.raises((RunFolderError, MismatchError)):
        synthesize.generate(config(str(folders)), run, teacher=TEACHER, resume=True)
