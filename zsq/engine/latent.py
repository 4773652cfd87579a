"""Generator networks, whose weights are drawn from a given stream and which keep nothing from batch to batch;
and the latent parameterisation: images from latent vectors through a network that is optimised with them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zsq.core.imagespec import ImageSpec
from zsq.engine.parameterise import ParameterGroup, Parameterisation
from zsq.engine.schedules import MakeSchedule, Schedule

Module = TypeVar("Module", bound=nn.Module)

SLOPE = 0.2  # of the leaky ReLUs, in all published generators


class BatchNorm(nn.Module):
    """Normalisation by the batch's own statistics, always; scale and shift per channel, or per class too."""

    def __init__(
        self, channels: int, epsilon: float = 1e-5, *, affine: bool = True, num_classes: int | None = None
    ) -> None:
        """`num_classes`: one scale and shift for each class (conditional BN); None: one for all."""
        super().__init__()
        self.epsilon = epsilon
        self.conditional = num_classes is not None
        rows = num_classes or 1
        self.weight_KC = nn.Parameter(torch.ones(rows, channels)) if affine else None
        self.bias_KC = nn.Parameter(torch.zeros(rows, channels)) if affine else None

    def forward(self, x: Tensor, weights_NK: Tensor | None = None) -> Tensor:
        """x normalised; `weights_NK` mix the classes' scales and shifts, rows summing to 1."""
        if not self.conditional or self.weight_KC is None or self.bias_KC is None:
            weight = self.weight_KC[0] if self.weight_KC is not None else None
            bias = self.bias_KC[0] if self.bias_KC is not None else None
            return self._normalised(x, weight, bias)
        assert weights_NK is not None
        scale_NC, shift_NC = weights_NK @ self.weight_KC, weights_NK @ self.bias_KC
        return self._normalised(x, None, None) * scale_NC[..., None, None] + shift_NC[..., None, None]

    def _normalised(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        # Not F.batch_norm, which refuses a single value per channel: one tiny image.
        cudnn = torch.backends.cudnn.enabled
        return torch.batch_norm(x, weight, bias, None, None, True, 0.0, self.epsilon, cudnn)


class _TransposedKernel(torch.autograd.Function):
    """Kernels (C', C, 3, 3) -> the sums (C, C', 4, 4) that a transposed convolution takes.

    Small images spend more time here than in the convolution, and most of it in the zeros that a gradient
    through slices makes. Here there are none.
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> Tensor:
        padded = F.pad(weight.transpose(0, 1).flip(2, 3), (1, 1, 1, 1))
        rows = padded[..., :-1, :] + padded[..., 1:, :]
        return rows[..., :-1] + rows[..., 1:]

    @staticmethod
    def backward(ctx: Any, of_kernel: Tensor) -> Tensor:
        columns = of_kernel[..., :-1] + of_kernel[..., 1:]
        rows = columns[..., :-1, :] + columns[..., 1:, :]
        return rows.flip(2, 3).transpose(0, 1)


class UpsampledConvolution(nn.Conv2d):
    """Nearest-neighbour enlargement by 2, then a 3x3 convolution, as one transposed convolution.

    Neighbours that are copies of one pixel share a product: 4 of 9 multiplications stay.
    """

    def __init__(self, channels_in: int, channels: int) -> None:
        """A 3x3 convolution with bias."""
        super().__init__(channels_in, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, channels, 2H, 2W)."""
        kernel = _TransposedKernel.apply(self.weight)
        return F.conv_transpose2d(x, kernel, self.bias, stride=2, padding=1)


class Seed(nn.Module):
    """Latent vectors -> maps at a quarter of the image's height and width, rounded up; for signals of height
    1."""

    def __init__(self, latent: int, channels: int, spec: ImageSpec) -> None:
        """`latent`: length of the vectors; `channels`: of the maps."""
        super().__init__()
        self.shape = (channels, *(-(-side // 4) for side in spec.plane))
        self.linear = nn.Linear(latent, self.shape[0] * self.shape[1] * self.shape[2])

    def forward(self, latent_ND: Tensor) -> Tensor:
        """(N, latent) -> (N, channels, h, w)."""
        return self.linear(latent_ND).unflatten(1, self.shape).contiguous(memory_format=torch.channels_last)


class Image(nn.Module):
    """Maps -> images: cut to the size asked for, tanh, and mean 0, variance 1 over the batch. A signal is
    the first row."""

    def __init__(self, spec: ImageSpec) -> None:
        """`spec`: of the images."""
        super().__init__()
        self.size, self.sides = spec.plane, spec.size
        self.norm = BatchNorm(spec.channels, affine=False)

    def forward(self, maps_NCHW: Tensor) -> Tensor:
        """(N, C, at least H, at least W) -> (N, C, H, W), or (N, C, L), in standard space."""
        images = self.norm(maps_NCHW[..., : self.size[0], : self.size[1]].tanh())
        return images if len(self.sides) == 2 else images[:, :, 0]


class LatentNetwork(nn.Sequential):
    """Genie's generator: 2.2 M parameters at 32 px, 103 M at 224 px, nearly all in the first layer."""

    def __init__(self, spec: ImageSpec, latent: int) -> None:
        """Latent vectors of length `latent` -> images of `spec`."""
        super().__init__(
            Seed(latent, 128, spec),
            BatchNorm(128),
            UpsampledConvolution(128, 64),
            BatchNorm(64),
            nn.LeakyReLU(SLOPE),
            UpsampledConvolution(64, spec.channels),
            Image(spec),
        )


def allocated(build: Callable[[], Module], device: str) -> Module:
    """`build()` on `device`, without the weights that torch would draw from its global random state: they are
    undefined until `initialise` draws them."""
    with torch.device("meta"):
        network = build()
    return network.to_empty(device=device)


@torch.no_grad()
def initialise(network: nn.Module, generator: torch.Generator) -> None:
    """Fresh weights in place: the distributions of torch's own layers, drawn on the CPU from `generator`."""
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            bound = module.weight[0].numel() ** -0.5
            for parameter in module.parameters(recurse=False):
                parameter.copy_(torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator))
        elif isinstance(module, nn.Embedding):
            module.weight.copy_(torch.randn(module.weight.shape, generator=generator))
        elif isinstance(module, BatchNorm) and module.weight_KC is not None and module.bias_KC is not None:
            module.weight_KC.fill_(1.0)
            module.bias_KC.zero_()


class LatentGenerator(Parameterisation):
    """A latent vector per image and a network fresh for each batch, optimised together (Genie).

    Jeon, Lee and Kim, Genie: Show Me the Data for Quantization, CVPR 2023.
    """

    def __init__(
        self,
        spec: ImageSpec,
        batch: int,
        device: str,
        latent: int,
        rate: float,
        network_rate: float,
        schedule: MakeSchedule = Schedule,
        network_schedule: MakeSchedule = Schedule,
    ) -> None:
        """`rate` and `schedule` for the vectors, of length `latent`; `network_...` for the network."""
        super().__init__()
        self.latent_ND = nn.Parameter(torch.empty(batch, latent, device=device))
        self.network = allocated(lambda: LatentNetwork(spec, latent), device)
        betas = (0.9, 0.999)
        self._groups = (
            ParameterGroup([self.latent_ND], rate, betas, schedule),
            ParameterGroup(list(self.network.parameters()), network_rate, betas, network_schedule),
        )

    def forward(self) -> Tensor:
        """The network's images."""
        return self.network(self.latent_ND)

    @torch.no_grad()
    def reset(self, generator: torch.Generator) -> None:
        """Draw latent vectors from N(0, 1) and a fresh network."""
        self.latent_ND.copy_(torch.randn(self.latent_ND.shape, generator=generator))
        initialise(self.network, generator)

    def groups(self) -> Sequence[ParameterGroup]:
        """Two: the latent vectors and the network."""
        return self._groups
