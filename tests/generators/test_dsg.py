"""DSG: slack alignment, layerwise sample enhancement, sample correlation inhibition, and the set's scope."""

import numpy as np
import pytest
import torch
from torch import nn
from toys import NETWORKS, conv_bn, head, image_spec, make_teacher

from zsq.contract import Silent
from zsq.core.errors import NonFiniteError, OptionError
from zsq.core.seeding import torch_generator
from zsq.engine import executed
from zsq.engine.joint import WithInput
from zsq.engine.objectives import TeacherPass, bn_alignment, gram_eigenvalues
from zsq.engine.parameterise import gaussian
from zsq.engine.slack import gaussian_eigenvalues, slacks
from zsq.engine.statistics import Alignment, SetSums, TappedTeacher
from zsq.generators import create
from zsq.generators.dsg import DSGOptions, enhancement_weights
from zsq.plan import Plan


@pytest.fixture(scope="module")
def tapped():
    return TappedTeacher(make_teacher(NETWORKS["downsample"], dtype=torch.float64))


@pytest.fixture(scope="module")
def layers(tapped):
    images = torch.randn(6, *tapped.spec.shape, generator=torch.Generator().manual_seed(0))
    return tapped(images.double())[1]


def slack_alignment(mean_slack_L, spread_slack_L, weights_NL=None):
    return Alignment(
        "sample",
        unbiased=True,
        distance="slack",
        over_channels="sum",
        sample_weights_NL=weights_NL,
        mean_slack_L=mean_slack_L,
        spread_slack_L=spread_slack_L,
    )


def prepared(teacher, tmp_path, overrides=None, seed=0, iterations=None):
    method = create("dsg", teacher, overrides, iterations)
    method.prepare(seed, tmp_path, Silent())
    return method


def test_no_gradient_within_the_slack(tapped):
    images = torch.randn(4, *tapped.spec.shape, dtype=torch.float64, requires_grad=True)
    wide = torch.full((3,), 1e3, dtype=torch.float64)
    loss = slack_alignment(wide, wide)(tapped(images)[1])
    (gradient,) = torch.autograd.grad(loss, images)
    assert loss == 0 and not gradient.any()


def test_without_slack_and_enhancement_it_is_zeroq_to_the_bit(layers):
    zero = torch.zeros(3, dtype=torch.float64)
    zeroq = Alignment("sample", unbiased=True, over_channels="sum")
    assert torch.equal(slack_alignment(zero, zero)(layers), zeroq(layers))
    assert torch.equal(slack_alignment(zero, zero, torch.ones(6, 3).double())(layers), zeroq(layers))


@pytest.mark.parametrize(("batch", "num_layers"), [(5, 3), (2, 4), (3, 3), (1, 1)])
@pytest.mark.parametrize("weight", [2.0, 4.0, 1.0])
def test_only_sample_i_below_l_enhances_layer_i(batch, num_layers, weight):
    wanted = np.ones((batch, num_layers))
    for i in range(min(batch, num_layers)):
        wanted[i, i] = weight
    assert np.array_equal(enhancement_weights(batch, num_layers, weight, "cpu"), wanted)


def test_enhanced_loss_against_the_papers_matrix_form(layers):
    """(1/N) 1^T (X . l) with the (sample, layer) matrix l of single losses."""
    zero = torch.zeros(3, dtype=torch.float64)
    plain = slack_alignment(zero, zero)
    gaps = [[part.numpy() for part in plain.gaps(sums)] for sums in layers]
    single = np.stack([np.square(mean).sum(1) + np.square(spread).sum(1) for mean, spread in gaps], 1)
    weights = np.ones((6, 3)) + np.eye(6, 3)
    found = slack_alignment(zero, zero, enhancement_weights(6, 3, 2.0, "cpu").double())(layers)
    np.testing.assert_allclose(found, (weights * single).sum() / 6, rtol=1e-9)


def test_the_methods_objective_against_numpy(tmp_path):
    """Slack, enhancement and the images' own statistics, with every constant moved."""
    teacher = make_teacher(NETWORKS["downsample"])
    method = prepared(teacher, tmp_path, {"epsilon": 0.4, "enhancement": 3.0})
    inversion = method.inversion(5)
    images = gaussian((5, *teacher.spec.shape), torch.Generator().manual_seed(1))
    logits, layers = inversion.tapped(images)
    terms = {t.name: t.function(TeacherPass(images, logits, layers, None)).item() for t in inversion.terms}
    single = np.zeros((5, 3))
    for index, sums in enumerate(layers):
        gaps = Alignment("sample", unbiased=True).gaps(sums)
        for values, slack_L in zip(gaps, (method.mean_slack_L, method.spread_slack_L), strict=True):
            beyond = np.maximum(np.abs(values.numpy()) - slack_L[index].item(), 0)
            single[:, index] += np.square(beyond).sum(1)
    wanted = (single * (1 + 2 * np.eye(5, 3))).sum() / 5
    assert terms["bn"] == pytest.approx(wanted, rel=1e-4)
    flat = images.numpy().reshape(5, 3, -1).astype(np.float64)
    own = np.square(flat.mean(2)) + np.square(np.sqrt(flat.var(2, ddof=1) + 1e-6) - np.sqrt(1 + 1e-6))
    assert terms["input"] == pytest.approx(own.sum(1).mean(), rel=1e-4)


@pytest.mark.parametrize("epsilon", [0.0, 0.5, 0.9, 1.0])
def test_slacks_are_percentiles_over_samples_and_channels(layers, epsilon):
    found = slacks(layers, epsilon)
    for index, sums in enumerate(layers):
        for slack_L, values in zip(found, Alignment("sample", unbiased=True).gaps(sums), strict=True):
            wanted = np.percentile(np.abs(values.numpy()), 100 * epsilon)
            assert slack_L[index].item() == pytest.approx(wanted, rel=1e-9)


def one_position(channels, outputs):
    """Its second batch norm sees one position per image, whose statistics are of all images together."""
    pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(
        conv_bn(channels, 8, 2), pooled, nn.Linear(8, 6), nn.BatchNorm1d(6), nn.Linear(6, outputs)
    )


@pytest.mark.parametrize("build", [NETWORKS["plain"], one_position])
def test_slacks_are_the_same_in_chunks_where_memory_asks_for_them(build, tmp_path, monkeypatch):
    teacher, passed, forward = make_teacher(build), [], TappedTeacher.forward
    whole = prepared(teacher, tmp_path, seed=5)
    largest = 3 * 16 * 16
    monkeypatch.setattr(executed, "FORWARD_BUDGET", 10 * executed.LAYER_COPIES * 4 * largest)
    monkeypatch.setattr(TappedTeacher, "forward", lambda s, x: passed.append(len(x)) or forward(s, x))
    parts = prepared(teacher, tmp_path, seed=5)
    assert passed == [10] * 6 + [4]
    torch.testing.assert_close(parts.mean_slack_L, whole.mean_slack_L)
    torch.testing.assert_close(parts.spread_slack_L, whole.spread_slack_L)


def test_a_slack_that_is_not_finite_stops_before_the_first_step(tmp_path):
    class Overflowing(nn.Sequential):
        def forward(self, x):
            return super().forward(x / (x.amax() < 2.5))

    def build(channels, outputs):
        return Overflowing(conv_bn(channels, 8, 2), head(8, outputs))

    with pytest.raises(NonFiniteError, match="dsg's slack is NaN or infinite"):
        prepared(make_teacher(build), tmp_path)


def test_slacks_grow_with_epsilon(layers):
    found = torch.stack([torch.cat(slacks(layers, epsilon)) for epsilon in (0, 0.3, 0.6, 0.9, 1.0)])
    assert (found.diff(dim=0) >= 0).all() and (found[-1] > found[0]).all()


def test_epsilon_1_leaves_no_loss_on_the_measured_batch(layers):
    assert slack_alignment(*slacks(layers, 1.0))(layers) == 0
    assert slack_alignment(*slacks(layers, 0.9))(layers) > 0


def test_slacks_are_measured_on_gaussian_images_of_the_runs_seed(tiny_teacher, tmp_path):
    method = prepared(tiny_teacher, tmp_path, seed=5)
    images = gaussian((64, *tiny_teacher.spec.shape), torch_generator(5, 0, "dsg slack"))
    wanted = slacks(TappedTeacher(tiny_teacher)(images)[1], 0.9)
    torch.testing.assert_close((method.mean_slack_L, method.spread_slack_L), wanted)
    other = prepared(tiny_teacher, tmp_path, seed=6)
    assert not torch.equal(method.mean_slack_L, other.mean_slack_L)
    assert list(tmp_path.iterdir()) == []


def test_the_objective_at_its_start_and_end(tiny_teacher, tmp_path):
    """The slack makes the images stop early: within it, not at the stored statistics."""
    method = prepared(tiny_teacher, tmp_path, iterations=200)
    (group,) = Plan(count=8, batch=8, shard_size=8, seed=0).groups
    images = method.synthesize(group, Silent()).standard_NCHW
    noise = create("noise", tiny_teacher).synthesize(group, Silent()).standard_NCHW
    tapped = TappedTeacher(tiny_teacher)
    alignment = slack_alignment(method.mean_slack_L, method.spread_slack_L)
    values = [
        bn_alignment(alignment)(TeacherPass(x, torch.empty(0), tapped(x)[1], None)) for x in (images, noise)
    ]
    assert values[0] < values[1] / 5


def test_default_terms_and_those_of_the_code(tiny_teacher, tmp_path):
    assert [term.name for term in prepared(tiny_teacher, tmp_path).inversion(2).terms] == ["bn", "input"]
    code = {"ce_weight": 2.0, "tv_weight": 0.01, "l2_weight": 0.01, "init": "uniform", "enhancement": 4}
    method = prepared(tiny_teacher, tmp_path, code, iterations=30)
    assert [term.name for term in method.inversion(2).terms] == ["bn", "input", "ce", "tv", "l2"]
    (group,) = Plan(count=3, batch=3, shard_size=3, seed=0).groups
    batch = method.synthesize(group, Silent())
    assert batch.targets_NK.shape == (3, 5) and all(np.isfinite(list(batch.losses.values())))
    paper = prepared(tiny_teacher, tmp_path, iterations=2).synthesize(group, Silent())
    assert paper.targets_NK is None


def test_published_constants_and_scaling():
    options = DSGOptions.resolve("dsg", image_spec(), {})
    assert (options.iterations, options.learning_rate, options.patience) == (500, 0.9, 260)
    assert (options.epsilon, options.enhancement, options.init) == (0.9, 2.0, "gaussian")
    assert (options.ce_weight, options.tv_weight, options.l2_weight) == (0, 0, 0)
    assert DSGOptions.resolve("dsg", image_spec(), {}, 50).patience == 26


def test_inhibition_against_numpy(tmp_path):
    """The public code's share of it: the weight over the number of layers."""
    teacher = make_teacher(NETWORKS["downsample"])
    method = prepared(teacher, tmp_path, {"inhibition": 6.0}, seed=3)
    (term,) = (term for term in method.inversion(5).terms if term.name == "inhibition")
    assert term.weight == pytest.approx(6.0 / len(method.tapped.names))
    images = torch.rand(5, *teacher.spec.shape, generator=torch.Generator().manual_seed(1)) + 1
    gaussians = gaussian((5, *teacher.spec.shape), torch_generator(3, 5, "dsg inhibition"))
    spectra = []
    for each in (images, gaussians):
        rows = each.numpy().reshape(5, -1).astype(np.float64)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        spectra.append(np.linalg.eigvalsh(rows @ rows.T))
    wanted = np.square(spectra[0] - spectra[1]).mean()
    found = term.function(TeacherPass(images, torch.empty(0), [], None))
    assert found.item() == pytest.approx(wanted, rel=1e-3) and wanted > 1


def test_inhibition_takes_equal_images_apart(tmp_path, tiny_teacher):
    """Its gradient is finite where all images are the same but for a thousandth."""
    method = prepared(tiny_teacher, tmp_path, {"inhibition": 1.0})
    (term,) = (term for term in method.inversion(4).terms if term.name == "inhibition")
    shape, rng = tiny_teacher.spec.shape, torch.Generator().manual_seed(0)
    start = torch.randn(1, *shape, generator=rng) + 1e-3 * torch.randn(4, *shape, generator=rng)
    images = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([images], 0.1)
    for _ in range(30):
        optimizer.zero_grad()
        term.function(TeacherPass(images, torch.empty(0), [], None)).backward()
        assert images.grad.isfinite().all()
        optimizer.step()
    assert gram_eigenvalues(start)[-1] > 3.9 and gram_eigenvalues(images.detach())[-1] < 2
    assert gaussian_eigenvalues((4, *shape), 0).sum().item() == pytest.approx(4)


def test_later_options_are_stated_where_they_are_set():
    """Runs without them say what they said before there were any."""
    stated = DSGOptions.resolve("dsg", image_spec(), {}).model_dump()
    assert "inhibition" not in stated and "scope" not in stated
    options = DSGOptions.resolve("dsg", image_spec(), {"inhibition": 1e-4, "scope": "set"}, 10)
    assert {"inhibition": 1e-4, "scope": "set"}.items() <= options.model_dump(mode="json").items()


@pytest.mark.parametrize("option", [{"ce_weight": 2.0}, {"enhancement": 4.0}])
def test_what_has_no_effect_on_a_set_is_refused(option):
    with pytest.raises(OptionError, match="no effect with scope=set"):
        DSGOptions.resolve("dsg", image_spec(), {"scope": "set", **option})


def test_the_sets_objective_against_numpy(tmp_path):
    """Slack around the statistics of this batch and of the others; of the images themselves there is none."""
    teacher = make_teacher(NETWORKS["downsample"])
    method = prepared(teacher, tmp_path, {"scope": "set", "epsilon": 0.4, "input_weight": 3.0})
    inversion = method.joint_inversion((5, 3))
    images = gaussian((8, *teacher.spec.shape), torch.Generator().manual_seed(1))
    layers = [inversion.tapped(part)[1] for part in images.split((5, 3))]
    others = [SetSums(sums.s1_NC.sum(0), sums.s2_NC.sum(0), 3) for sums in layers[1]]
    forward = TeacherPass(images[:5], torch.empty(0), layers[0], None, others=others)
    found = {term.name: (term.weight, term.function(forward).item()) for term in inversion.terms}
    own, *whole = (
        [values.numpy() for values in Alignment("batch", unbiased=True).gaps(sums)]
        for sums in WithInput(method.tapped)(images)[1]
    )
    wanted = 0.0
    for index, gaps in enumerate(whole):
        for values, slack_L in zip(gaps, (method.mean_slack_L, method.spread_slack_L), strict=True):
            wanted += np.square(np.maximum(np.abs(values) - slack_L[index].item(), 0)).sum()
    assert found["bn"] == (1.0, pytest.approx(wanted, rel=1e-4)) and wanted > 0
    assert found["input"] == (3.0, pytest.approx(sum(np.square(values).sum() for values in own), rel=1e-4))


def test_a_sets_slack_is_that_of_gaussian_sets(layers):
    found = slacks(layers, 0.9, "set")
    for index, sums in enumerate(layers):
        gaps = Alignment("batch", unbiased=True).gaps(sums)
        wanted = [np.percentile(np.abs(values.numpy()), 90) for values in gaps]
        np.testing.assert_allclose([slack_L[index] for slack_L in found], wanted, rtol=1e-9)


def test_a_set_is_one_group_and_ends_within_its_slack(tmp_path, tiny_teacher):
    method = prepared(tiny_teacher, tmp_path, {"scope": "set", "epsilon": 0.2}, iterations=150)
    assert (method.grouping(method.options), create("dsg", tiny_teacher).grouping(DSGOptions())) == (None, 1)
    (group,) = Plan(count=8, batch=4, shard_size=8, seed=0, batches_per_group=None).groups
    made = method.synthesize(group, Silent())
    assert made.standard_NCHW.shape == (8, *tiny_teacher.spec.shape) and made.targets_NK is None
    alignment = Alignment(
        "set",
        distance="slack",
        unbiased=True,
        mean_slack_L=method.mean_slack_L,
        spread_slack_L=method.spread_slack_L,
    )
    noise = create("noise", tiny_teacher).synthesize(group, Silent()).standard_NCHW
    values = [alignment(method.tapped(images)[1]) for images in (made.standard_NCHW, noise)]
    assert values[0] < values[1] / 5
