"""Speed of synthesis against a plain loop, model-compression-toolkit and the bare convolutions.

`python benchmarks/throughput.py run [--mct PYTHON]` measures; PYTHON is that of an environment with
benchmarks/consumers/mct.txt installed. Each contender is a process of its own; they take turns, round by
round, and a rate is the median over the rounds. A finished network is kept in
benchmarks/results/throughput.json, or throughput-avx2.json with AVX2 alone; `python benchmarks/show.py
throughput` prints the tables and draws docs/throughput.svg.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
import torchvision
import typer
from common import Results, run_again
from torch import Tensor, nn

# AVX2 alone also where a better processor is told so: ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2
KIND = "throughput-avx2" if torch.backends.cpu.get_cpu_capability() == "AVX2" else "throughput"

# name -> batch, pixels, images and passes of the job whose whole time is stated
NETWORKS = {
    "resnet20": (128, 32, 1024, 500),
    "resnet18": (16, 224, 256, 250),
    "mobilenet_v2": (16, 224, 256, 250),
}
CONTENDERS = ("zsq", "zsq-eager-fp32", "textbook", "convolutions", "mct")
BN_WEIGHT, TV_WEIGHT, RATE, JITTER = 10.0, 2.5e-5, 0.1, 2

app = typer.Typer(add_completion=False)


def network_of(name: str) -> nn.Module:
    """The architecture with random weights; speed does not depend on them."""
    torch.manual_seed(0)
    if name == "resnet20":
        from zsq.teacher.cifar_resnet import CifarResNet

        return CifarResNet(20).eval()
    return torchvision.models.get_model(name, weights=None).eval()


Steps = Callable[[int], Any]


def zsq_steps(name: str, compile: bool, batch: int | None = None) -> Steps:
    """DeepInversion as `zsq generate --method deepinversion` runs a long job; or uncompiled in float32. Runs
    where zsq chooses to."""
    from zsq.contract import Silent, Teacher
    from zsq.core.imagespec import ImageSpec
    from zsq.core.runtime import Runtime
    from zsq.engine.invert import Stage
    from zsq.generators import create
    from zsq.generators.deepinversion import DeepInversion

    usual, size, _, _ = NETWORKS[name]
    batch = batch or usual
    spec = ImageSpec(size=(size, size), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    network = network_of(name)
    teacher = Teacher(name, network, spec, 10 if name == "resnet20" else 1000, "0" * 64)
    runtime = Runtime.resolve(total_gflops=1e9) if compile else Runtime.resolve()
    teacher = teacher.to(runtime.device)
    options = {
        "bn_weight": BN_WEIGHT, "tv_weight": TV_WEIGHT, "jitter": JITTER, "learning_rate": RATE,
        "low_resolution_iterations": 0, "l2_weight": 0.0, "flip": False, "cosine": False,
    }  # fmt: skip
    with runtime.in_force():
        method = create("deepinversion", teacher, options, runtime=runtime)
        assert isinstance(method, DeepInversion)
        inversion = method.inversion(batch)
    targets = F.one_hot(torch.arange(batch) % 10, teacher.num_outputs or 10).float()

    def steps(count: int) -> str:
        inversion.stages = [Stage(count, inversion.stages[0].views)]
        with runtime.in_force():
            inversion.run(torch.Generator().manual_seed(0), targets, Silent())
        return runtime.precision

    return steps


def textbook_steps(name: str, batch: int | None = None, device: str = "cpu") -> Steps:
    """What a paper's script does: hooks on the BN layers, autograd through everything, Adam on the pixels."""
    usual, size, _, _ = NETWORKS[name]
    batch = batch or usual
    network = network_of(name).to(device)
    inputs: list[tuple[Any, Tensor]] = []
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_hook(lambda layer, args, _: inputs.append((layer, args[0])))
    images = torch.randn(batch, 3, size, size, device=device, requires_grad=True)
    optimizer = torch.optim.Adam([images], lr=RATE)
    labels = torch.arange(batch, device=device) % 10

    def steps(count: int) -> None:
        for _ in range(count):
            optimizer.zero_grad()
            inputs.clear()
            shift = torch.randint(-JITTER, JITTER + 1, (2,)).tolist()
            viewed = torch.roll(images, shift, (2, 3))
            loss = F.cross_entropy(network(viewed), labels)
            for layer, x in inputs:
                loss = loss + BN_WEIGHT * torch.norm(x.mean((0, 2, 3)) - layer.running_mean)
                loss = loss + BN_WEIGHT * torch.norm(x.var((0, 2, 3), unbiased=False) - layer.running_var)
            loss = loss + TV_WEIGHT * (
                torch.norm(viewed[:, :, :, 1:] - viewed[:, :, :, :-1])
                + torch.norm(viewed[:, :, 1:] - viewed[:, :, :-1])
                + torch.norm(viewed[:, :, 1:, 1:] - viewed[:, :, :-1, :-1])
                + torch.norm(viewed[:, :, 1:, :-1] - viewed[:, :, :-1, 1:])
            )
            loss.backward()
            optimizer.step()

    return steps


def convolution_steps(name: str, batch: int | None = None, device: str = "cpu") -> Steps:
    """All convolutions of the network, forward and for the input's gradient, in zsq's precision: what a step
    costs without anything around them. On CUDA they are one graph."""
    from zsq.core.runtime import Runtime

    usual, size, _, _ = NETWORKS[name]
    batch = batch or usual
    precision = Runtime.resolve(total_gflops=1e9).precision
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    network = network_of(name)
    calls: list[tuple[Any, torch.Size]] = []
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda layer, args, _: calls.append((layer, args[0].shape)))
    with torch.no_grad():
        network(torch.zeros(batch, 3, size, size))
    layers = []
    for layer, shape in calls:
        last = torch.channels_last
        x = torch.randn(shape, dtype=dtype).to(device).contiguous(memory_format=last)
        weight = layer.weight.detach().to(device, dtype).contiguous(memory_format=last)
        rest = (layer.stride, layer.padding, layer.dilation)
        layers.append((x, weight, rest, layer.groups))

    def all_layers() -> None:
        for x, weight, rest, groups in layers:
            y = F.conv2d(x, weight, None, *rest, groups)
            torch.ops.aten.convolution_backward(
                y, x, weight, None, *rest, False, [0, 0], groups, [True, False, False]
            )

    step = all_layers if device == "cpu" else graphed(all_layers)

    def steps(count: int) -> str:
        for _ in range(count):
            step()
        return precision

    return steps


def graphed(work: Callable[[], None]) -> Callable[[], None]:
    """The work as one CUDA graph."""
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3):
            work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay


def mct_steps(name: str) -> Steps:
    """model-compression-toolkit's data generation with its own defaults."""
    import model_compression_toolkit as mct

    batch, size, _, _ = NETWORKS[name]
    network = network_of(name)
    generation = mct.data_generation

    def steps(count: int) -> None:
        generation.pytorch_data_generation_experimental(
            model=network,
            n_images=batch,
            output_image_size=size,
            data_generation_config=generation.get_pytorch_data_generation_config(
                n_iter=count, data_gen_batch_size=batch
            ),
        )

    return steps


MAKERS: dict[str, Callable[[str], Steps]] = {
    "zsq": lambda name: zsq_steps(name, compile=True),
    "zsq-eager-fp32": lambda name: zsq_steps(name, compile=False),
    "textbook": textbook_steps,
    "convolutions": convolution_steps,
    "mct": mct_steps,
}


@app.command(hidden=True)
def worker(contender: str, network: str, threads: int) -> None:
    """Answer each number of steps on stdin with the seconds they took, after one warming up."""
    torch.set_num_threads(threads)
    answers = sys.stdout
    sys.stdout = sys.stderr
    start = time.perf_counter()
    steps = MAKERS[contender](network)
    steps(2)
    first = time.perf_counter() - start
    steps(2)
    print(json.dumps({"first": first}), file=answers, flush=True)
    for line in sys.stdin:
        start = time.perf_counter()
        said = steps(int(line))
        print(
            json.dumps({"seconds": time.perf_counter() - start, "precision": said}), file=answers, flush=True
        )


class Worker:
    """One contender in a process of its own."""

    def __init__(self, python: str, contender: str, network: str, threads: int, cache: str) -> None:
        """Start it and wait until it is warm; `first` is the time of its first steps, compiling included."""
        environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": cache, "OMP_NUM_THREADS": str(threads)}
        command = [python, __file__, "worker", contender, network, str(threads)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            env=environment,
        )  # fmt: skip
        self.first = self._answer()["first"]

    def seconds_per_step(self, steps: int) -> tuple[float, str | None]:
        """Seconds of one step: `steps` + 1 of them less a single one, without what surrounds them."""
        one, _ = self._timed(1)
        many, precision = self._timed(steps + 1)
        return (many - one) / steps, precision

    def _timed(self, steps: int) -> tuple[float, str | None]:
        assert self.process.stdin is not None
        print(steps, file=self.process.stdin, flush=True)
        answer = self._answer()
        return answer["seconds"], answer["precision"]

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"contender died: {' '.join(map(str, self.process.args))}")  # type: ignore[arg-type]
        return json.loads(line)

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()


def measured(network: str, mct: str | None, rounds: int, steps: int, threads: int) -> dict[str, Any]:
    """All contenders on one network, taking turns."""
    batch, _, _, _ = NETWORKS[network]
    names = [name for name in CONTENDERS if name != "mct" or mct is not None]
    with tempfile.TemporaryDirectory() as cache:
        workers = {
            name: Worker(mct if name == "mct" and mct else sys.executable, name, network, threads, cache)
            for name in names
        }
        warm = Worker(sys.executable, "zsq", network, threads, cache)
        warm.close()
        seconds: dict[str, list[float]] = {name: [] for name in names}
        precision = None
        for number in range(rounds):
            for name in names:
                spent, said = workers[name].seconds_per_step(steps)
                seconds[name].append(spent)
                precision = said if name == "zsq" else precision
                typer.echo(f"{network} round {number + 1} {name}: {batch / spent:.1f} image-iterations/s")
        for each in workers.values():
            each.close()
    row: dict[str, Any] = {"network": network, "batch": batch, "precision": precision}
    row["cold_start_seconds"], row["warm_start_seconds"] = workers["zsq"].first, warm.first
    row["rates"] = {name: [batch / s for s in spent] for name, spent in seconds.items()}
    return row


@app.command()
def run(
    mct: Annotated[str | None, typer.Option(help="Python with model-compression-toolkit.")] = None,
    rounds: Annotated[int, typer.Option(help="Rounds, at least 3.", min=1)] = 3,
    steps: Annotated[int, typer.Option(help="Steps per round.", min=1)] = 30,
    threads: Annotated[int, typer.Option(help="Threads of every contender.", min=1)] = 2,
    only: Annotated[list[str] | None, typer.Option(help="Networks to measure again.")] = None,
) -> None:
    """Measure and keep the results, network by network."""
    options = f"--rounds {rounds} --steps {steps} --threads {threads}"
    results = Results(KIND, f"python benchmarks/throughput.py run {options}")
    for network in only or NETWORKS:
        row = measured(network, mct, rounds, steps, threads)
        results.write(threads=threads, rows=results.read().get("rows", {}) | {network: row})


@app.command()
def student(
    weights: Annotated[Path, typer.Option(help="Weights of cifar10:resnet20.")],
    threads: Annotated[int, typer.Option(help="Threads.", min=1)] = 2,
    steps: Annotated[int, typer.Option(help="Steps of 128 images.", min=1)] = 160,
) -> None:
    """Time `lsq-kd` at W4A4 in fresh processes: uncompiled float32, compiled from a cold and a warm cache."""
    results, seconds = Results(KIND), {}
    with tempfile.TemporaryDirectory() as cache:
        environment = {"TORCHINDUCTOR_CACHE_DIR": cache, "OMP_NUM_THREADS": str(threads)}
        for name in ("uncompiled", "compiled, cold cache", "compiled, warm cache"):
            again = (__file__, "fit", str(weights), name, str(threads), str(steps))
            seconds[name] = run_again(*again, environment=environment)["seconds"]
            typer.echo(f"lsq-kd, {steps} steps of 128, {name}: {seconds[name]:.1f} s")
    results.write(**{"lsq-kd seconds": {"steps": steps, "threads": threads, **seconds}})


@app.command(hidden=True)
def fit(weights: Path, name: str, threads: int, steps: int) -> None:
    """One fit on random images, which take the same time; its seconds on stdout."""
    from zsq.core.runtime import Runtime
    from zsq.students import create
    from zsq.teacher import load_teacher
    from zsq.widths import Bits

    teacher = load_teacher("cifar10:resnet20", weights)
    runtime = Runtime(threads=threads)
    if name != "uncompiled":
        runtime = Runtime.resolve(total_gflops=1e9, threads=threads)
    pixels = torch.randint(256, (256, *teacher.spec.shape), dtype=torch.uint8)
    recipe = create("lsq-kd", teacher.spec, {"iterations": steps}, runtime)
    with runtime.in_force():
        start = time.perf_counter()
        recipe.fit(teacher, pixels, Bits(4, 4))
    print(json.dumps({"seconds": time.perf_counter() - start}))


if __name__ == "__main__":
    app()
