"""Qimera's generator (Choi, Hong, Park, Kim, Lee; NeurIPS 2021)."""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from zsq.contract import Facts
from zsq.core.imagespec import ImageSpec
from zsq.engine.amortise import AmortisedMethod, AmortisedOptions
from zsq.engine.conditional import ConditionalNetwork, SuperposedNetwork, classifier_rows
from zsq.engine.latent import allocated


class QimeraOptions(AmortisedOptions):
    """The public scripts' constants for CIFAR-10, and above 64 px for ResNet-18 on ImageNet.

    Others of the scripts: slots 10 for CIFAR-100 (50 at 5 bits); ResNet-50 superposed 0.7, slots 500;
    MobileNetV2 slots 100. `embeddings="random"` starts from Gaussians instead of the classifier's weights.
    """

    superposed: float = Field(0.4, ge=0, le=1)
    slots: int = Field(2, ge=1)
    embeddings: Literal["classifier", "random"] = "classifier"
    freeze_embeddings: bool = False

    @classmethod
    def published(cls, spec: ImageSpec) -> dict[str, Any]:
        """The ResNet-18 script's constants for large images."""
        large = super().published(spec)
        return large | {"slots": 500} if large else large


class Qimera(AmortisedMethod):
    """GDFQ's generator on superposed class embeddings, for images between classes with soft targets."""

    name = "qimera"
    options_class = QimeraOptions
    facts = Facts(
        paper="Choi et al., Qimera, NeurIPS 2021",
        summary="a conditional generator on superposed class embeddings: images near class boundaries",
        needs_labels=True,
        needs_batch_norm=True,
        trains_network=True,
        deviations=(
            "images are made after training; the paper's student sees the images of every training step",
            "in the finished set each image is superposed or not by its own draw; in training each batch is",
            "embedding plus noise is normalised over its length; the code does so in plain batches alone",
            "the disentangling mapping is on, and conditional BN weights add to 1; in the code neither holds",
            "no student takes part in training (in the paper it has no influence on the generator)",
        ),
    )

    def build(self, num_classes: int) -> ConditionalNetwork:
        """Embeddings like the classifier's rows; class-conditional BN at large sizes."""
        o = self.options
        spec, start = self.teacher.spec, None
        if o.embeddings == "classifier":
            start = classifier_rows(self.teacher, num_classes, self.name)
        network = allocated(
            lambda: SuperposedNetwork(
                spec, num_classes, o.latent, o.bn_epsilon, o.conditional_bn, start, o.slots, o.superposed
            ),
            self.runtime.device,
        )
        network.embedding_KE.requires_grad_(not o.freeze_embeddings)
        return network

    def sample(self, count: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """A batch of single classes and one of superposed ones, as in training; each image by its own coin
        from one of them, so that a small set has its share of both."""
        network = self.network
        assert isinstance(network, SuperposedNetwork)
        device = self.runtime.device
        drawn = [network.draw_slots(count, slots, rng) for slots in (1, self.options.slots)]
        single, mixed = ([part.to(device) for part in inputs] for inputs in drawn)
        coins = (torch.rand(count, generator=rng) < self.options.superposed).to(device)
        both = network(*mixed), network(*single)
        images = torch.where(coins.view(-1, *[1] * (both[0].dim() - 1)), *both)
        return images, torch.where(coins[:, None], mixed[0], single[0])
