"""GDFQ's generator (Xu, Li, Zhuang, Liu, Cao, Liang, Tan; ECCV 2020)."""

from __future__ import annotations

from zsq.contract import Facts
from zsq.engine.amortise import AmortisedMethod, AmortisedOptions


class GDFQOptions(AmortisedOptions):
    """The public scripts' constants; `bn_epsilon` is what their second and third BN have, where a momentum
    of 0.8 seems to be meant: 1e-5 undoes it."""


class GDFQ(AmortisedMethod):
    """A conditional generator trained on class targets and the BN statistics of each batch."""

    name = "gdfq"
    options_class = GDFQOptions
    facts = Facts(
        paper="Xu et al., Generative Low-bitwidth Data Free Quantization (GDFQ), ECCV 2020",
        summary="a conditional generator trained on class targets and batch BN statistics",
        needs_labels=True,
        needs_batch_norm=True,
        trains_network=True,
        deviations=(
            "images are made after training; the paper's student sees the images of every training step",
            "no student takes part in training (in the paper it has no influence on the generator)",
        ),
    )
