"""Convolutions that students train, in a process of its own: a kernel that corrupts memory ends it.

The faulty one is chosen on processors without AVX-512: ONEDNN_MAX_CPU_ISA asks for it elsewhere too.
"""

import os
import subprocess
import sys
import textwrap

import pytest
import torch
from tiny_students import fit
from torch import nn
from toys import make_teacher, structured_images

from zsq.graph.layers import TrainableConv2d

# Weight and image gradients of what students train, quantized or not, against float64: one pass of a
# faulty kernel is enough to end the process.
SWEEP = textwrap.dedent("""
    import torch
    from torch import nn
    from torch.nn import functional as F

    from zsq.graph import capture
    from zsq.quantizers.layers import quantizable

    torch.set_num_threads(1)


    class Each(nn.Module):
        def __init__(self, layers):
            super().__init__()
            self.layers = nn.ModuleList(layers)

        def forward(self, x):
            return [layer(x[:, : layer.in_channels]) for layer in self.layers]


    cases = [
        (kernel, stride, channels, groups)
        for kernel, stride in ((1, 1), (1, 2), (1, (1, 2)), (1, 3), (2, 2), (3, 2), (5, 3))
        for channels in (1, 3, 4, 8, 9, 16)
        for groups in {1, channels}
    ]
    layers = [nn.Conv2d(c, 2 * c, k, s, k // 2, groups=groups) for k, s, c, groups in cases]
    captured = capture(Each(layers), torch.zeros(2, 16, 8, 8))
    made = 0
    for index, (kernel, stride, channels, groups) in enumerate(cases):
        plain = captured.get_submodule(f"layers.{index}")
        for layer in (quantizable(plain), plain):
            for layout in (torch.channels_last, torch.contiguous_format):
                layer = layer.to(memory_format=layout)
                image = torch.randn(8, channels, 8, 8).contiguous(memory_format=layout)
                image.requires_grad_()
                output = layer(image)
                given = torch.randn_like(output)
                parameters = (image, layer.weight, layer.bias)
                found = torch.autograd.grad(output, parameters, given)
                exact = [p.detach().double().requires_grad_() for p in parameters]
                expected = F.conv2d(*exact, stride, kernel // 2, groups=groups)
                assert torch.allclose(output.double(), expected, atol=1e-4)
                wanted = torch.autograd.grad(expected, exact, given.double())
                for one, other in zip(found, wanted, strict=True):
                    assert torch.allclose(one.double(), other, rtol=1e-4, atol=1e-3)
                made += 1
    print(made, "survived")
""")


@pytest.mark.parametrize("instructions", ["AVX2", "DEFAULT"])
def test_gradients_of_every_convolution(instructions):
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": instructions, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", SWEEP], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"signal or exit code {done.returncode}: {done.stderr[-1000:]}"
    assert done.stdout.split() == ["308", "survived"]


@pytest.mark.parametrize("padding", [0, 1, "valid"])
@pytest.mark.parametrize("mode", ["zeros", "reflect"])
@pytest.mark.parametrize("stride", [2, (1, 3)])
def test_trained_it_computes_what_it_computes_otherwise(padding, mode, stride):
    conv = nn.Conv2d(4, 6, 1, stride, padding, padding_mode=mode).double()
    layer = TrainableConv2d(4, 6, 1, stride, padding, padding_mode=mode).double()
    layer.load_state_dict(conv.state_dict())
    x = torch.randn(2, 4, 7, 9, dtype=torch.float64)
    layer.requires_grad_()
    torch.testing.assert_close(layer(x), conv(x))


@pytest.mark.parametrize("name, bits", [("kd", "W32A32"), ("kd", "W4A4"), ("qdrop", "W4A4"), ("qfd", "W4A4")])
def test_no_student_trains_a_pointwise_kernel_with_a_stride(name, bits, monkeypatch):
    """Whatever the processor: every convolution that has a weight gradient is looked at."""

    def pointwise(channels, outputs):
        layers = [
            nn.Conv2d(channels, 4, 1, 2, bias=False),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Conv2d(4, 6, 1, 2),
        ]
        return nn.Sequential(*layers, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, outputs))

    seen = []

    class Watching(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            kwargs = kwargs or {}
            if function in (torch.conv2d, nn.functional.conv2d):
                values = dict(zip(("input", "weight", "bias", "stride"), args, strict=False)) | kwargs
                if values["weight"].requires_grad and torch.is_grad_enabled():
                    seen.append((values["weight"].shape[-1], values.get("stride", 1)))
            return function(*args, **kwargs)

    teacher = make_teacher(pointwise)
    pixels = teacher.spec.standard_to_pixels(structured_images((16, *teacher.spec.shape)))
    with Watching():
        fit(name, teacher, pixels, bits)
    assert seen and all(kernel > 1 or stride in (1, (1, 1)) for kernel, stride in seen)
