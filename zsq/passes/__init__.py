"""Analytic passes by name: on the float network before a fit, or on the fitted student."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from torch import Tensor, fx, nn

from zsq.core.errors import MismatchError, OptionError, UnknownNameError
from zsq.graph import capture
from zsq.graph.fold import Gaussian, fold_batch_norms
from zsq.graph.norms import stores_statistics
from zsq.passes.correction import (
    adapt_batch_norms,
    correct_bias,
    correct_bias_analytically,
)
from zsq.passes.equalization import absorb_bias, equalize, relu6_to_relu
from zsq.passes.expectations import expected_inputs
from zsq.passes.pruning import prune
from zsq.passes.smoothing import smooth
from zsq.placement.pairs import pairs_of


@dataclass(frozen=True)
class Prepared:
    """A captured copy of a float network under passes; `outputs` are distributions of its folded layers.

    `norm_batches` are the images to fit on, for passes that look at them. `masks`: name of a weight -> which
    of its elements pruning left.
    """

    network: fx.GraphModule
    outputs: Mapping[str, Gaussian]
    norm_batches: Sequence[Tensor] = ()
    masks: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Fitted:
    """A quantized network beside the float one it stands for, and the images that it was fitted on."""

    network: fx.GraphModule
    prepared: Prepared
    norm_batches: Sequence[Tensor]

    def reference(self) -> fx.GraphModule:
        """A copy of the float network whose layers correspond: folded where the student folded its BNs."""
        reference = capture(self.prepared.network)
        if _num_norms(self.network) < _num_norms(reference):
            fold_batch_norms(reference)
        return reference


def _num_norms(network: nn.Module) -> int:
    return sum(stores_statistics(module) for module in network.modules())


@dataclass(frozen=True)
class Pass:
    """An analytic pass. It has `before`, on the float network, or `after`, on the student. `needs` names
    passes that must come earlier, `excludes` passes that must not. `sees_images`: its `before` looks at the
    images to fit on. `takes`: what the number behind its name is, of 0 <= number < 1, which `before` takes
    too; without it there is none."""

    summary: str
    before: Callable[..., Prepared] | None = None
    after: Callable[[Fitted], None] | None = None
    needs: tuple[str, ...] = ()
    excludes: tuple[str, ...] = ()
    sees_images: bool = False
    takes: str | None = None


def _fold(prepared: Prepared) -> Prepared:
    return replace(prepared, outputs={**prepared.outputs, **fold_batch_norms(prepared.network)})


def _relu6_to_relu(prepared: Prepared) -> Prepared:
    relu6_to_relu(prepared.network)
    return prepared


def _equalize(prepared: Prepared) -> Prepared:
    if not pairs_of(prepared.network):
        raise MismatchError("no two layers of this network can be equalized", "", "leave out pass equalize")
    return replace(prepared, outputs=equalize(prepared.network, dict(prepared.outputs)))


def _absorb_bias(prepared: Prepared) -> Prepared:
    if not prepared.outputs:
        raise MismatchError("pass absorb-bias on a network without batch norm", "statistics of activations")
    return replace(prepared, outputs=absorb_bias(prepared.network, dict(prepared.outputs)))


def _smooth(prepared: Prepared) -> Prepared:
    outputs = smooth(prepared.network, dict(prepared.outputs), prepared.norm_batches)
    if outputs is None:
        raise MismatchError("no channels of this network can be smoothed", "", "leave out pass smooth")
    return replace(prepared, outputs=outputs)


def _prune(prepared: Prepared, sparsity: float, together: bool = False) -> Prepared:
    masks = prune(prepared.network, sparsity, together)
    if not masks:
        raise MismatchError("this network has no layer to prune", "one between the first and the last")
    return replace(prepared, masks=masks)


def _correct_bias(fitted: Fitted) -> None:
    correct_bias(fitted.network, fitted.reference(), fitted.norm_batches)


def _correct_bias_analytic(fitted: Fitted) -> None:
    folded, outputs = capture(fitted.prepared.network), dict(fitted.prepared.outputs)
    outputs.update(fold_batch_norms(folded))
    inputs = expected_inputs(folded, outputs)
    if not inputs:
        raise MismatchError("no layer of this network follows a batch norm", "", "use pass correct-bias")
    correct_bias_analytically(fitted.network, fitted.reference(), inputs)


def _adapt_bn(fitted: Fitted) -> None:
    if not adapt_batch_norms(fitted.network, fitted.reference(), fitted.norm_batches):
        raise MismatchError("this student has no batch norm to adapt", "", "leave out pass adapt-bn")


PASSES: dict[str, Pass] = {
    "fold": Pass("batch norm into the layers before it", before=_fold),
    "relu6-to-relu": Pass("ReLU6 loses its cap, as DFQ has it before equalize", before=_relu6_to_relu),
    "equalize": Pass("cross-layer equalization (DFQ)", before=_equalize, needs=("fold",)),
    "absorb-bias": Pass("high biases into the next layer (DFQ)", before=_absorb_bias, needs=("fold",)),
    "smooth": Pass(
        "ranges of activations into weights (SmoothQuant)", before=_smooth, needs=("fold",), sees_images=True
    ),
    "prune": Pass(
        "the smallest weights of each layer become zero: prune=0.5", before=_prune, takes="share of weights"
    ),
    "prune-global": Pass(
        "the same in the order of all layers together",
        before=partial(_prune, together=True),
        takes="share of weights",
        excludes=("prune",),
    ),
    "correct-bias": Pass("means of layers' outputs as in float, on the images (DFQ)", after=_correct_bias),
    "correct-bias-analytic": Pass("the same from batch norm alone (DFQ)", after=_correct_bias_analytic),
    "adapt-bn": Pass(
        "BN statistics through the shift of quantization (ABN)", after=_adapt_bn, excludes=("fold",)
    ),
}


def split_pass(text: str) -> tuple[str, tuple[float, ...]]:
    """`prune=0.5` -> ("prune", (0.5,)), `fold` -> ("fold", ()).

    Raises:
        UnknownNameError: no such pass.
        OptionError: a number missing or not wanted, or not of 0 <= number < 1.
    """
    name, equals, value = text.partition("=")
    if name not in PASSES:
        raise UnknownNameError("pass", name, PASSES, "zsq list passes")
    takes = PASSES[name].takes
    if takes is None:
        if equals:
            raise OptionError(f"pass {text}", name, "it takes no number")
        return name, ()
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not 0 <= number < 1:
        raise OptionError(f"pass {text}", f"a {takes} from 0 to less than 1, as in {name}=0.5")
    return name, (number,)


def check_passes(passes: Sequence[str]) -> None:
    """Check that passes, as `split_pass` takes them, exist and can follow each other.

    Raises:
        OptionError: as `split_pass`; one named twice, or an order that cannot be.
    """
    names = [split_pass(text)[0] for text in passes]
    for index, name in enumerate(names):
        earlier = names[:index]
        if name in earlier:
            raise OptionError(f"pass {name} is named twice", "once")
        for needed in PASSES[name].needs:
            if needed not in earlier:
                raise OptionError(f"pass {name} without pass {needed} before it", f"{needed},{name}")
        for excluded in PASSES[name].excludes:
            if excluded in earlier:
                raise OptionError(f"pass {name} after pass {excluded}", "one of the two")
        late = [one for one in earlier if PASSES[one].after is not None]
        if PASSES[name].before is not None and late:
            found = f"pass {name}, on the float network, after pass {late[0]}, on the student"
            raise OptionError(found, "passes on the float network first")


def sees_images(passes: Sequence[str]) -> bool:
    """Whether what comes before a fit depends on the images to fit on."""
    return any(PASSES[split_pass(text)[0]].sees_images for text in passes)


def prepare(
    passes: Sequence[str],
    network: nn.Module,
    example: Tensor | None = None,
    norm_batches: Sequence[Tensor] = (),
) -> Prepared:
    """A captured copy of a float network with the passes that come before a fit.

    Args:
        example: as `zsq.graph.capture` takes it.
        norm_batches: the images to fit on, where a pass `sees_images`.

    Raises:
        UntraceableError: as `zsq.graph.capture`. MismatchError: a pass that finds nothing to do.
    """
    prepared = Prepared(capture(network, example), {}, norm_batches)
    for name, numbers in map(split_pass, passes):
        before = PASSES[name].before
        prepared = prepared if before is None else before(prepared, *numbers)
    prepared.network.requires_grad_(False)
    return prepared


def finish(passes: Sequence[str], fitted: Fitted) -> None:
    """The passes that come after a fit, on the fitted network, in place.

    Raises:
        MismatchError: a pass that finds nothing to do.
    """
    for text in passes:
        after = PASSES[split_pass(text)[0]].after
        if after is not None:
            after(fitted)
    fitted.network.eval().requires_grad_(False)
