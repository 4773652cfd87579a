"""`binary` with balanced signs, gradients for enough weights, and features that follow the teacher's."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from zsq.contract import Facts, Fit
from zsq.core.layout import channels_last
from zsq.core.options import Options
from zsq.fitting.training import Course
from zsq.graph import capture
from zsq.placement.sites import Placement
from zsq.placement.subgraphs import with_values
from zsq.placement.units import partition
from zsq.quantizers.signs import BinaryWeight, Rule
from zsq.students.binary import Binary, BinaryOptions


class DIRNetOptions(BinaryOptions):
    """`retained`: the share of a weight's elements that keep a gradient however sharp the signs are.
    `representation_weight`: of the features' distances, summed over blocks; 0 leaves the term out."""

    rule: Rule = "balanced"
    retained: float = Field(0.1, ge=0, le=1)
    representation_weight: float = Field(1.0, ge=0)


class DIRNet(Binary):
    """Weights as `binary`, balanced; the loss adds the distance of each block's normalised output."""

    name = "dir-net"
    facts = Facts(
        paper="DIR-Net, Qin et al. 2022 (arXiv:2109.12338), and IR-Net (arXiv:1909.10788)",
        summary="binary with balanced weights, gradients for a fixed share of them, and distilled features",
        deviations=(
            "beyond IR-Net only the abstract was read: the form of the estimator, its share of 10 % "
            "(retained) and the distance of features with its weight are ours",
            "scales are learned, from the mean magnitude; rule=ir for powers of two",
            "features are those that leave each residual block, or layer outside of blocks",
            *Binary.facts.deviations[1:],
        ),
    )
    options_class: ClassVar[type[Options]] = DIRNetOptions
    options: DIRNetOptions
    step_work = 1.4

    def binary_weight(self, weight: Tensor) -> BinaryWeight:
        """See `Binary.binary_weight`."""
        return BinaryWeight(weight, self.options.rule, self.options.retained)

    def course(self, placement: Placement, fit: Fit) -> Course:
        """As `binary`; both networks also return what leaves each block."""
        course = super().course(placement, fit)
        teacher = fit.teacher
        norm = teacher.example()[:1].to(self.runtime.device)
        network = placement.network
        (output,) = (node for node in network.graph.nodes if node.op == "output")
        results = {node.name for node in output.all_input_nodes}
        units = partition(placement, "block", norm)
        names = [unit.output for unit in units if unit.by_image and unit.output not in results]
        target = channels_last(with_values(capture(teacher.network, teacher.example()), names))
        return replace(
            course,
            taught=with_values(network, names),
            target=target.to(self.runtime.device),
            target_structure=teacher.network,
        )

    def total_loss(self, student: Any, teacher: Any) -> Tensor:
        """That of the outputs, and the weighted distances of the features."""
        (outputs, features), (wanted, reference) = student, teacher
        loss = super().total_loss(outputs, wanted)
        for one, other in zip(features, reference, strict=True):
            loss = loss + self.options.representation_weight * feature_distance(one, other)
        return loss


def feature_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """|| F / |F| - T / |T| ||^2 of each image's features, all numbers of one image as one vector; mean."""
    difference = F.normalize(student.flatten(1)) - F.normalize(teacher.flatten(1))
    return difference.square().sum(dim=1).mean()
