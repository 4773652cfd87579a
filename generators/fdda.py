"""FDDA, Fine-grained Data Distribution Alignment (Zhong, Lin, Chen, Li, Shen, Chao, Wu, Ji; ECCV 2022)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from zsq.contract import Facts
from zsq.core.errors import MismatchError
from zsq.core.imagespec import ImageSpec
from zsq.core.options import Options
from zsq.engine.amortise import AmortisedMethod, AmortisedOptions, FreshInputs
from zsq.engine.classes import first_deep_layer, layer_widths
from zsq.engine.conditional import NoiseNetwork
from zsq.engine.executed import images_at_once
from zsq.engine.invert import Inversion, Stage
from zsq.engine.memories import FreshNoise, ImageCentres, centre_alignment, on_images
from zsq.engine.objectives import Term, bn_alignment, cross_entropy
from zsq.engine.statistics import Alignment, TappedTeacher
from zsq.engine.targets import class_count

NOISE = (0.5, 1.0)  # standard deviations of the noise on a centre's mean and variance
CHUNK = 64  # given images through the teacher at once, at most


class FDDAOptions(AmortisedOptions):
    """Constants of the public ImageNet code; CIFAR is not evaluated there: its batch is GDFQ's.

    Half of a training batch are random classes, half are of one class. The public description has
    `centred_weight` 0.05.
    """

    iterations: int = Field(70_000, ge=1)
    bn_weight: float = Field(0.2, ge=0)
    distorted_weight: float = Field(0.9, ge=0)
    centred_weight: float = Field(0.01, ge=0)

    @classmethod
    def published(cls, spec: ImageSpec) -> dict[str, Any]:
        """The ImageNet script's constants for large images: 16 and 16."""
        large = super().published(spec)
        return large | {"training_batch": 32} if large else large


def mixed_half(count: int) -> slice:
    """A batch's images of random classes; a single image is of both kinds."""
    return slice(0, max(1, count - count // 2))


def single_half(count: int) -> slice:
    """A batch's images of one class."""
    return slice(min(count - count // 2, count - 1), count)


class HalfNetwork(NoiseNetwork):
    """GDFQ's network, of some classes, with one class for half of each training batch."""

    classes: Tensor

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """As GDFQ's, the second half all of one random class."""
        targets_NK, noise_ND = self.draw_mixed(count, generator)
        rows = single_half(count)
        targets_NK[rows] = targets_NK[rows][:1].clone()
        return targets_NK, noise_ND

    def draw_mixed(self, count: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """As GDFQ's, of `classes` alone."""
        drawn = self.classes[torch.randint(len(self.classes), (count,), generator=generator)]
        noise_ND = torch.randn(count, self.length, generator=generator)
        return F.one_hot(drawn, self.num_classes).float(), noise_ND


class FDDA(AmortisedMethod):
    """GDFQ's generator with deep statistics of each class aligned to those of one given image, and to
    distorted copies of them."""

    name = "fdda"
    options_class: ClassVar[type[Options]] = FDDAOptions
    network_class: ClassVar[type[NoiseNetwork]] = HalfNetwork
    facts = Facts(
        paper="Zhong et al., Fine-grained Data Distribution Alignment (FDDA), ECCV 2022",
        summary="a conditional generator; deep statistics of a class near those of one given image of it",
        needs_labels=True,
        needs_batch_norm=True,
        needs_real=True,
        trains_network=True,
        data_read="1 image per class",
        deviations=(
            "with a zsq shard folder as --real the centres come from synthetic images: nothing real is read",
            "images are made after training; the paper's student sees the images of every training step",
            "no student takes part in training (in the paper it has no influence on the generator)",
            "both halves of a batch go through generator and teacher together",
            "classes without an image that the teacher classifies as labelled are left out from the start",
        ),
    )

    def read(self, pixels_NCHW: Tensor, labels_N: Tensor) -> None:
        """Centres from the first image of each class that the teacher classifies as labelled, or as it
        classifies them where none has a label."""
        standard = self.teacher.spec.pixels_to_standard(pixels_NCHW)
        at_once = images_at_once(self.teacher.network, self.teacher.spec, CHUNK)
        with torch.no_grad():
            chunks = [self.teacher.logits(chunk.to(self.runtime.device)) for chunk in standard.split(at_once)]
        found_N = torch.cat(chunks).argmax(1).cpu()
        labels_N = found_N if (labels_N < 0).all() else labels_N
        right = ((labels_N == found_N).nonzero()[:, 0]).tolist()
        first = {int(labels_N[index]): index for index in reversed(right)}
        if not first:
            raise MismatchError(
                f"none of the {len(labels_N)} images of --real is classified as labelled",
                "labelled images of the teacher's classes",
            )
        network = self.network
        assert isinstance(network, HalfNetwork)
        network.classes = torch.tensor(sorted(first))
        self.centres = self._centres(standard[[first[k] for k in sorted(first)]], network.classes)

    @torch.no_grad()
    def _centres(self, standard: Tensor, classes: Tensor) -> ImageCentres:
        device = self.runtime.device
        tapped = TappedTeacher(self.teacher, self.name)
        widths = layer_widths(tapped)
        deep = first_deep_layer(len(widths))
        num_classes = class_count(self.teacher, self.name)
        means, variances = ([torch.zeros(num_classes, c, device=device) for c in widths[deep:]] for _ in "mv")
        at_once = images_at_once(tapped.network, self.teacher.spec, CHUNK)
        for chunk, rows in zip(standard.split(at_once), classes.to(device).split(at_once), strict=True):
            for layer, sums in enumerate(tapped(chunk.to(device))[1][deep:]):
                gap_NC = sums.s1_NC / sums.num_positions
                var_NC = (sums.s2_NC / sums.num_positions - gap_NC.square()).clamp_min(0)
                means[layer][rows] = sums.mean_C + sums.over_calls(gap_NC)
                variances[layer][rows] = sums.over_calls(var_NC)
        return ImageCentres(deep, means, variances)

    def training(self, inputs: FreshInputs) -> Inversion:
        """CE on all images, BN statistics of the mixed ones, class statistics of those of one class."""
        o = self.options
        noise = FreshNoise(1, [mean.shape[1] for mean in self.centres.mean_KC], self.runtime.device)
        bn = bn_alignment(Alignment("batch", moment="var", over_layers="mean"))
        terms = [
            Term("ce", o.ce_weight, cross_entropy),
            Term("bn", o.bn_weight, on_images(bn, mixed_half)),
            Term(
                "distorted",
                o.distorted_weight,
                on_images(centre_alignment(self.centres, noise, NOISE), single_half),
            ),
            Term("centred", o.centred_weight, on_images(centre_alignment(self.centres), single_half)),
        ]
        tapped = TappedTeacher(self.teacher, self.name)
        return Inversion(tapped, inputs, terms, [Stage(o.iterations)], self.runtime, memories=(noise,))

    def sample(self, count: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """One batch of random classes."""
        network = self.network
        assert isinstance(network, HalfNetwork)
        targets_NK, noise_ND = (part.to(self.runtime.device) for part in network.draw_mixed(count, rng))
        return network(targets_NK, noise_ND), targets_NK
