"""Class-conditional generator networks: what a batch's random inputs are, and the images they become."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zsq.contract import Teacher
from zsq.core.errors import MismatchError
from zsq.core.imagespec import ImageSpec
from zsq.engine.executed import last_layer
from zsq.engine.latent import SLOPE, BatchNorm, Image, Seed, UpsampledConvolution, initialise


class ConditionalNetwork(nn.Module):
    """A generator network with its own way to draw a batch's random inputs.

    The convolutional part is that of GDFQ (Xu et al., ECCV 2020): 1.05 M parameters at 32 px, 41.4 M at 224.
    """

    def __init__(self, spec: ImageSpec, num_classes: int, latent: int, epsilon: float, conditional: bool):
        """`epsilon`: of the second and third BN; `conditional`: all three scale and shift by class."""
        super().__init__()
        classes = num_classes if conditional else None
        self.num_classes = num_classes
        self.seed = Seed(latent, 128, spec)
        self.norm0 = BatchNorm(128, num_classes=classes)
        self.conv1 = UpsampledConvolution(128, 128)
        self.norm1 = BatchNorm(128, epsilon, num_classes=classes)
        self.conv2 = UpsampledConvolution(128, 64)
        self.norm2 = BatchNorm(64, epsilon, num_classes=classes)
        self.conv3 = nn.Conv2d(64, spec.channels, 3, padding=1)
        self.image = Image(spec)

    def reset(self, generator: torch.Generator) -> None:
        """Fresh weights, in place."""
        initialise(self, generator)

    @abstractmethod
    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Random inputs of `count` images, on the CPU; the first are the class probabilities (count, K)."""

    @abstractmethod
    def latent(self, targets_NK: Tensor, *inputs: Tensor) -> Tensor:
        """Drawn inputs -> latent vectors (N, latent)."""

    def forward(self, targets_NK: Tensor, *inputs: Tensor) -> Tensor:
        """Drawn inputs -> images (N, C, H, W) in standard space, normalised over the batch."""
        x = self.norm0(self.seed(self.latent(targets_NK, *inputs)), targets_NK)
        x = F.leaky_relu(self.norm1(self.conv1(x), targets_NK), SLOPE)
        x = F.leaky_relu(self.norm2(self.conv2(x), targets_NK), SLOPE)
        return self.image(self.conv3(x))


class NoiseNetwork(ConditionalNetwork):
    """GDFQ: one class per image and Gaussian noise; without conditional BN, noise times a class embedding."""

    def __init__(self, spec: ImageSpec, num_classes: int, latent: int, epsilon: float, conditional: bool):
        """`latent`: length of the noise vectors."""
        super().__init__(spec, num_classes, latent, epsilon, conditional)
        self.length = latent
        self.embedding = None if conditional else nn.Embedding(num_classes, latent)

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Classes uniform, as (count, K) one-hot rows; noise (count, latent) from N(0, 1)."""
        classes = torch.randint(self.num_classes, (count,), generator=generator)
        noise = torch.randn(count, self.length, generator=generator)
        return F.one_hot(classes, self.num_classes).float(), noise

    def latent(self, targets_NK: Tensor, *inputs: Tensor) -> Tensor:
        """Noise times the class embedding, or noise alone."""
        (noise_ND,) = inputs
        return noise_ND if self.embedding is None else targets_NK @ self.embedding.weight * noise_ND


class SuperposedNetwork(ConditionalNetwork):
    """Qimera: class embeddings with noise, superposed, through a disentangling linear mapping.

    Choi, Hong, Park, Kim and Lee, Qimera: Data-free Quantization with Synthetic Boundary Supporting Samples,
    NeurIPS 2021.
    """

    def __init__(
        self,
        spec: ImageSpec,
        num_classes: int,
        latent: int,
        epsilon: float,
        conditional: bool,
        start_KE: Tensor | None,
        slots: int,
        probability: float,
    ) -> None:
        """`start_KE`: where the class embeddings start, None: at Gaussians; `slots` classes are superposed
        with `probability`."""
        super().__init__(spec, num_classes, latent, epsilon, conditional)
        self.length = latent if start_KE is None else start_KE.shape[1]
        self.start_KE = start_KE
        self.embedding_KE = nn.Parameter(torch.empty(num_classes, self.length))
        self.mapping = nn.Linear(self.length, latent)
        self.slots, self.probability = slots, probability

    @torch.no_grad()
    def reset(self, generator: torch.Generator) -> None:
        """Fresh weights, in place; the class embeddings where they start."""
        super().reset(generator)
        start_KE = self.start_KE
        if start_KE is None:
            start_KE = torch.randn(self.embedding_KE.shape, generator=generator)
        self.embedding_KE.copy_(start_KE)

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """One coin for the batch: superposed, or one class per image."""
        superposed = bool(torch.rand((), generator=generator) < self.probability)
        return self.draw_slots(count, self.slots if superposed else 1, generator)

    def draw_slots(self, count: int, slots: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """(count, K) probabilities; classes (count, slots), drawn with replacement, so that one may come
        twice; their weights, a softmax of Gaussians; noise (count, slots, E)."""
        classes_NS = torch.randint(self.num_classes, (count, slots), generator=generator)
        weights_NS = torch.randn(count, slots, generator=generator).softmax(1)
        noise_NSE = torch.randn(count, slots, self.length, generator=generator)
        targets_NK = torch.zeros(count, self.num_classes).scatter_add(1, classes_NS, weights_NS)
        return targets_NK, classes_NS, weights_NS, noise_NSE

    def latent(self, targets_NK: Tensor, *inputs: Tensor) -> Tensor:
        """sum_s w_s M(norm(E[y_s] + z_s)); M is affine and the weights sum to 1, so that it can come last."""
        classes_NS, weights_NS, noise_NSE = inputs
        single_NSE = F.layer_norm(self.embedding_KE[classes_NS] + noise_NSE, noise_NSE.shape[2:])
        return self.mapping((weights_NS[..., None] * single_NSE).sum(1))


@torch.no_grad()
def classifier_rows(teacher: Teacher, num_classes: int, owner: str) -> Tensor:
    """Weights (K, E) of the teacher's last linear layer, or last convolution, with one output a class.

    Raises:
        MismatchError: the network has none.
    """
    layer = last_layer(teacher.network, teacher.spec, num_classes)
    weight: Any = teacher.network.get_submodule(layer).weight
    if len(weight) != num_classes:
        raise MismatchError(
            f"teacher '{teacher.name}' has no linear layer with one row of weights per class",
            f"one, from which {owner} takes its class embeddings",
            "pass --set embeddings=random",
        )
    return weight.detach().flatten(1).float()
