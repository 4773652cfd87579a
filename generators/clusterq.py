"""ClusterQ (Gao, Zhang, Hong, Zhang, Fan, Yan; arXiv 2205.00179): deep statistics cluster by class."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from zsq.contract import Facts
from zsq.core.imagespec import ImageSpec
from zsq.core.options import Options, follows_batch, scales_with_iterations
from zsq.engine.amortise import AmortisedMethod, AmortisedOptions, FreshInputs
from zsq.engine.classes import first_deep_layer, layer_widths
from zsq.engine.invert import Inversion, Stage
from zsq.engine.memories import ClassCentroids, FreshNoise, class_alignment
from zsq.engine.objectives import TeacherPass, Term
from zsq.engine.statistics import Alignment, TappedTeacher
from zsq.engine.targets import class_count
from zsq.engine.views import CropScale, random_crops

NOISE = (0.5, 1.0)  # standard deviations of the noise on a class's mean and std, as in paper and code


class ClusterQOptions(AmortisedOptions):
    """GDFQ's training with the paper's weights, and batch, latent length and crops of the public code.

    `over="sum"` adds up channels, layers and classes as the paper's formula is written. `centroids="code"`
    does what the public code does: all classes share the stored BN statistics as their centroid, compared
    with those of the whole batch, and the diversity term, whose gradient is zero there, is left out.
    """

    training_batch: int = follows_batch(512, ge=1)
    latent: int = Field(10, ge=1)
    cluster_weight: float = Field(0.9, ge=0)
    diversity_weight: float = Field(0.6, ge=0)
    rate: float = Field(0.2, gt=0, le=1)
    warmup: int = scales_with_iterations(2_000, ge=0)
    over: Literal["mean", "sum"] = "mean"
    centroids: Literal["classes", "code"] = "classes"
    crop_scale: CropScale = (0.8, 1.0)
    crop_probability: float = Field(0.5, ge=0, le=1)

    @classmethod
    def published(cls, spec: ImageSpec) -> dict[str, Any]:
        """The ImageNet scripts' constants for large images."""
        large = super().published(spec)
        return large | {"latent": 100, "warmup": 10_000} if large else large


class ClusterQ(AmortisedMethod):
    """GDFQ's generator with deep statistics of each class drawn to moving centroids, kept apart by noise."""

    name = "clusterq"
    options_class: ClassVar[type[Options]] = ClusterQOptions
    facts = Facts(
        paper="Gao et al., ClusterQ: Semantic Feature Distribution Alignment, arXiv 2205.00179",
        summary="a conditional generator; deep statistics of a class cluster around moving centroids",
        needs_labels=True,
        needs_batch_norm=True,
        trains_network=True,
        deviations=(
            "images are made after training; the paper's student sees the images of every training step",
            "no student takes part in training (in the paper it has no influence on the generator)",
            "cluster and diversity terms are means over channels, layers and classes, not sums (option over)",
            "a class's centroid starts at its first rightly classified images after warm-up, not in a round "
            "of its own",
            "crops keep the aspect ratio; those of signals are not mirrored",
        ),
    )

    def training(self, inputs: FreshInputs) -> Inversion:
        """GDFQ's terms, clusters and diversity; centroids and noise change between steps."""
        o, device = self.options, self.runtime.device
        tapped = TappedTeacher(self.teacher, self.name)
        stages = [Stage(o.iterations, random_crops(self.teacher.spec, o.crop_scale, o.crop_probability))]
        widths = layer_widths(tapped)
        deep = first_deep_layer(len(widths))
        if o.centroids == "code":
            over: Any = {"over_channels": o.over, "over_layers": o.over}
            shared = Alignment("batch", **over)

            def cluster(forward: TeacherPass) -> Any:
                return shared(forward.layers[deep:])

            terms = [*self.terms(), Term("cluster", o.cluster_weight, cluster)]
            return Inversion(tapped, inputs, terms, stages, self.runtime)
        num_classes = class_count(self.teacher, self.name)
        centroids = ClassCentroids(num_classes, widths[deep:], device, o.rate, o.warmup, deep)
        noise = FreshNoise(o.training_batch, widths[deep:], device)
        terms = [
            *self.terms(),
            Term("cluster", o.cluster_weight, class_alignment(centroids, o.over)),
            Term("diversity", o.diversity_weight, class_alignment(centroids, o.over, noise, NOISE)),
        ]
        return Inversion(tapped, inputs, terms, stages, self.runtime, memories=(centroids, noise))
