"""DSG's generator network (Qin, Ding, Zhang, Wang, Liu, Lu; IEEE TPAMI 2023, arXiv 2109.00212)."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from zsq.contract import Facts, StepLog
from zsq.core.seeding import torch_generator
from zsq.engine.amortise import AmortisedMethod, AmortisedOptions, FreshInputs
from zsq.engine.invert import Inversion, Stage
from zsq.engine.objectives import Term, bn_alignment, cross_entropy, sample_correlation
from zsq.engine.slack import gaussian_eigenvalues, gaussian_layers, slacks
from zsq.engine.statistics import Alignment, TappedTeacher


class DSGGenerativeOptions(AmortisedOptions):
    """GDFQ's constants, which the public code keeps, with its weight of sample correlation inhibition and the
    paper's percentile."""

    epsilon: float = Field(0.9, ge=0, le=1)
    inhibition: float = Field(1e-4, ge=0)


class DSGGenerative(AmortisedMethod):
    """GDFQ's conditional generator with slack distribution alignment and sample correlation inhibition."""

    name = "dsg_generative"
    options_class = DSGGenerativeOptions
    facts = Facts(
        paper="Qin et al., Diverse Sample Generation (DSG), IEEE TPAMI 2023, arXiv 2109.00212",
        summary="GDFQ's generator with a slack around the batch's BN statistics and less correlated images",
        needs_labels=True,
        needs_batch_norm=True,
        trains_network=True,
        deviations=(
            "images are made after training; the paper's student sees the images of every training step",
            "no student takes part in training",
            "within the slack there is no loss, as in the paper of 2021; the public code pulls statistics "
            "onto its edge",
            "mean and std of the batch are aligned, with the slack of as many Gaussian images; what the "
            "paper aligns here is not known",
            "no layer is enhanced: a batch has no statistics of single images; the code enhances channels",
            "inhibition compares eigenvalues alone, with those of Gaussian images that are drawn once",
        ),
    )

    def prepare(self, seed: int, cache: Path, log: StepLog) -> None:
        """Train the network, or take it from `cache`."""
        self.seed = seed
        super().prepare(seed, cache, log)

    def training(self, inputs: FreshInputs) -> Inversion:
        """GDFQ's objective with the slack, and inhibition."""
        o, device, shape = self.options, self.runtime.device, self.teacher.spec.shape
        tapped = TappedTeacher(self.teacher, self.name)
        generator = torch_generator(self.seed, 0, "dsg slack")
        layers = gaussian_layers(tapped, o.training_batch, generator, device)
        mean_slack_L, spread_slack_L = slacks(layers, o.epsilon, "batch")
        alignment = Alignment(
            "batch",
            distance="slack",
            over_layers="mean",
            unbiased=True,
            mean_slack_L=mean_slack_L,
            spread_slack_L=spread_slack_L,
        )
        expected = gaussian_eigenvalues((o.training_batch, *shape), self.seed).to(device)
        inhibition = sample_correlation({o.training_batch: expected})
        terms = [
            Term("ce", o.ce_weight, cross_entropy),
            Term("bn", o.bn_weight, bn_alignment(alignment)),
            Term("inhibition", o.inhibition / len(tapped.names), inhibition),
        ]
        return Inversion(tapped, inputs, terms, [Stage(o.iterations)], self.runtime)
