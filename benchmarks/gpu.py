"""Speed and parity of the detectors on a GPU through torch, in one script of at most seven minutes.

For each network, size and precision it measures the whole detector, from uint8 pixels on the device to labels and the
default score: run eagerly, with torch.compile, and each of both as one captured CUDA graph. The last form is also
measured with upload and download through page-locked memory. TF32 is off. In half precision the normalisations are
folded into the convolutions and the head stays in float32, as in the graphs of `anomseg convert`. The outputs of each
form are compared with those of the float32 graph on the processor.

It also measures the device's own ceilings (a large matrix product per precision, a large copy), the share of them that
each network reaches, and labels by argmax against a chain of comparisons.

The most important steps come first. A step is left out, and named under `left_out`, if the longest step of its kind so
far would not fit the rest of the budget. The result is written after every step. A step that fails is named under
`failed` and does not stop the others. The script downloads nothing and needs torch and what `anomseg export` needs;
where the package is not installed, run `PYTHONPATH=.. python3 gpu.py`.

`--device cpu` runs the same code without a GPU, for example with `--size 64x128 --runs 3`; what only a GPU has is
listed under `not_on_this_device`. Weights come from ANOMSEG_WEIGHTS. Networks without weights there get random ones;
their times are the same, but their parity says less.
"""

from __future__ import annotations

import argparse
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import gpu_graphs as graphs
import torch
from common import camera_frames, parse_size, write_result
from gpu_device import Call, Device, best_ms, measure_ceilings, open_device
from gpu_table import ratios, table, targets
from torch import Tensor
from torch._inductor import config as inductor_config

NETWORKS = ("erfnet", "enet", "bisenet_v1", "bisenet_v2", "mide_net")
STRIDE = 32
FRAMES, FRAME_STEP = 2, 4
SHARE_OF_REST = 1 / 40
"""Share of the remaining budget that the runs of one measurement may take."""
FIRST_SIZE = {"eager": {"fp32": 0, "fp16": 1, "bf16": 2}, "compile": {"fp16": 3, "fp32": 4, "bf16": 7}}
LATER_SIZES = {"eager": {"fp32": 5, "fp16": 5, "bf16": 5}, "compile": {"fp16": 6, "fp32": 8, "bf16": 9}}
"""Kind of step -> precision -> rank; lower ranks come first. Ratios are to eager float32, so that is measured first."""
ON_PROCESSOR = {"fp32": "fp16", "fp16": "fp32"}
"""Precisions whose ranks are exchanged on a processor, which computes float16 slowly."""
EXPECTED_S = {"ceilings": 5.0, "argmax": 15.0, "eager": 5.0, "compile": 40.0}
"""What a kind of step takes, until one has been seen."""
SHOWN_ERROR = 300


@dataclass(frozen=True)
class Step:
    """A part of the benchmark. size: height and width in pixels."""

    kind: str
    network: str = ""
    size: tuple[int, int] = (0, 0)
    precision: str = ""

    @property
    def size_text(self) -> str:
        return f"{self.size[0]}x{self.size[1]}"

    @property
    def title(self) -> str:
        """Name in the result."""
        parts = (self.network, self.size_text if self.size[0] else "", self.precision, self.kind)
        return " ".join(part for part in parts if part)


@dataclass
class Budget:
    """Time left, and the longest step of each kind."""

    seconds: float
    clock: Callable[[], float] = time.monotonic
    longest_s: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.started = self.clock()

    @property
    def left_s(self) -> float:
        return self.seconds - (self.clock() - self.started)

    def allows(self, kind: str) -> bool:
        """Return whether a step of a kind is likely to end in time."""
        return self.left_s > self.longest_s.get(kind, EXPECTED_S[kind])

    def spent(self, kind: str, seconds: float) -> None:
        """Take note of a step."""
        self.longest_s[kind] = max(seconds, self.longest_s.get(kind, 0.0))


def main(words: Sequence[str] | None = None) -> None:
    args = parse(words)
    benchmark = Benchmark(args, open_device(args.device))
    with torch.no_grad():
        path = benchmark.run()
    print(table(benchmark.result()))
    print(path)


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto", choices=["auto", "cuda", "cpu"], help="default: a GPU if there is")
    parser.add_argument("--networks", nargs="+", default=NETWORKS, choices=NETWORKS, help="default: all")
    parser.add_argument("--size", nargs="+", type=parse_size, default=[(512, 1024), (1024, 2048)], metavar="HxW")
    parser.add_argument("--precisions", nargs="+", default=list(graphs.PRECISIONS), choices=list(graphs.PRECISIONS))
    parser.add_argument("--kinds", nargs="+", default=list(EXPECTED_S), choices=list(EXPECTED_S), help="default: all")
    parser.add_argument("--runs", type=int, default=300, help="timed runs, fewer where time is short (default: 300)")
    parser.add_argument("--warm-up", type=int, default=50, help="runs before them (default: 50)")
    parser.add_argument("--seconds", type=float, default=420.0, help="budget (default: 420)")
    parser.add_argument("--compile-backend", default="inductor", help="backend of torch.compile (default: inductor)")
    parser.add_argument("--output", type=Path, help="result (default: benchmarks/results/gpu.json)")
    args = parser.parse_args(words)
    if any(not min(size) or size[0] % STRIDE or size[1] % STRIDE for size in args.size):
        parser.error(f"--size takes multiples of {STRIDE}")
    return args


def plan(args: argparse.Namespace, *, on_gpu: bool) -> list[Step]:
    """Return the steps, the most important ones first."""
    ranked = []
    for kind, size, network, precision in product(("eager", "compile"), args.size, args.networks, args.precisions):
        ranks = FIRST_SIZE if size == args.size[0] else LATER_SIZES
        like = precision if on_gpu or kind == "eager" else ON_PROCESSOR.get(precision, precision)
        ranked.append((ranks[kind][like], Step(kind, network, size, precision)))
    networks = [step for _, step in sorted(ranked, key=lambda entry: entry[0])]
    last_eager = sum(step.kind == "eager" and step.size == args.size[0] for step in networks)
    argmax = [Step("argmax", size=size) for size in args.size]
    steps = [Step("ceilings"), *networks[:last_eager], *argmax, *networks[last_eager:]]
    return [step for step in steps if step.kind in args.kinds]


class Benchmark:
    """Runs the steps and holds what they found."""

    def __init__(self, args: argparse.Namespace, device: Device, clock: Callable[[], float] = time.monotonic) -> None:
        self.args, self.device, self.budget = args, device, Budget(args.seconds, clock)
        self.rows: list[dict[str, Any]] = []
        self.ceilings: dict[str, Any] = {}
        self.argmax: dict[str, dict[str, Any]] = {}
        self.work: dict[str, dict[str, int]] = {}
        self.left_out: list[str] = []
        self.failed: list[dict[str, str]] = []
        self.origin = ""
        self._networks: dict[str, Any] = {}
        self._frames: dict[tuple[int, int], list[graphs.Frame]] = {}
        self._references: dict[tuple[str, tuple[int, int]], list[graphs.Outputs]] = {}

    def run(self) -> Path:
        """Run the steps that fit the budget; return the result's file, which is written after each step."""
        steps = {"ceilings": self._measure_ceilings, "argmax": self._measure_argmax}
        for step in plan(self.args, on_gpu=self.device.has_graphs):
            if not self.budget.allows(step.kind):
                self.left_out.append(step.title)
                continue
            print(f"{step.title} ({self.budget.left_s:.0f} s left)", flush=True)
            left_s = self.budget.left_s
            try:
                steps.get(step.kind, self._measure_network)(step)
            except Exception as error:
                traceback.print_exc()
                message = f"{type(error).__name__}: {error}"[:SHOWN_ERROR]
                self.failed.append({"step": step.title, "error": message})
            self.device.release()
            self.budget.spent(step.kind, left_s - self.budget.left_s)
            self.write()
        return self.write()

    def result(self) -> dict[str, Any]:
        """Return what was found so far."""
        on_gpu = self.device.has_graphs
        return {
            "device": self.device.description(),
            "torch": torch.__version__,
            "budget_s": self.args.seconds,
            "elapsed_s": round(self.args.seconds - self.budget.left_s, 1),
            "frames": self.origin,
            "ceilings": self.ceilings,
            "work": self.work,
            "runs": self.rows,
            "times_as_fast_as_eager_fp32": ratios(self.rows),
            "argmax": self.argmax,
            "targets": targets(self.rows, self.args.networks) if on_gpu else [],
            "not_on_this_device": [] if on_gpu else ["CUDA graphs", "device_ms", "peak_mib", "page-locked memory"],
            "left_out": self.left_out,
            "failed": self.failed,
        }

    def write(self) -> Path:
        """Write the result so far."""
        return write_result("gpu", self.result(), self.args.output)

    def _measure_ceilings(self, _: Step) -> None:
        types = {name: graphs.PRECISIONS[name] for name in self.args.precisions}
        self.ceilings = measure_ceilings(self.device, types, self._limit_s())

    def _measure_network(self, step: Step) -> None:
        """Measure a detector run eagerly or compiled, as a CUDA graph where there are any, and with copies."""
        network, weights = self._network(step.network)
        config = graphs.config_of(step.network, step.size)
        graph = graphs.TypedGraph(network, config, graphs.PRECISIONS[step.precision]).eval().to(self.device.torch_name)
        image = torch.tensor(self._frames_of(step.size)[0], device=self.device.torch_name)[None]
        function: Callable[[Tensor], tuple[Tensor, ...]] = graph
        facts: dict[str, Any] = {"weights": weights}
        self.device.reset_peak()
        if step.kind == "compile":
            # Exported first: torch.compile cannot trace the package's own classes.
            function, compiling = self._compiled(torch.export.export(graph, (image,)).module(), image)
            facts |= compiling
        form, call = step.kind, lambda: function(image)
        self._add_row(step, form, call, image, facts)
        if self.device.has_graphs:
            form = f"{form}+graph"
            self.device.reset_peak()
            call = self.device.capture(call)
            self._add_row(step, form, call, image, facts)
        copied, host_image = self._with_copies(call, image)
        self._add_row(step, form, copied, host_image, {**facts, "copies": True})

    def _compiled(self, function: Any, example: Tensor) -> tuple[Any, dict[str, Any]]:
        """Return a compiled function and facts. Weights become constants, or stay inputs where that fails."""
        backend = self.args.compile_backend
        for freezing in (True, False) if backend == "inductor" else (False,):
            torch.compiler.reset()  # it compiles one function only a few times
            compiled = torch.compile(function, backend=backend, dynamic=False, fullgraph=True)
            started = time.monotonic()
            try:
                with inductor_config.patch(freezing=freezing):
                    compiled(example)
            except Exception:
                if not freezing:
                    raise
                traceback.print_exc()
                continue
            self.device.synchronize()
            break
        return compiled, {"compile_s": time.monotonic() - started, "constant_weights": freezing}

    def _add_row(self, step: Step, form: str, call: Call, source: Tensor, facts: dict[str, Any]) -> None:
        """Measure a form of a step, and compare its outputs with those of the float32 graph.

        Args:
            step: the step.
            form: how the detector runs.
            call: one run.
            source: the tensor that it takes its frame from.
            facts: more for the row.
        """
        outputs = []
        for frame in self._frames_of(step.size):
            source.copy_(torch.from_numpy(frame)[None])
            computed = call()
            self.device.synchronize()
            outputs.append(graphs.to_numpy(computed))
        measured = self.device.measure(call, self.args.runs, self.args.warm_up, self._limit_s())
        row = {
            "network": step.network,
            "size": step.size_text,
            "precision": step.precision,
            "form": form,
            "copies": False,
            **facts,
            **measured,
            "peak_mib": self.device.peak_mib(),
            "share_of_ceiling": None,
            "parity": graphs.parity(self._reference(step), outputs),
        }
        if self.ceilings:
            work = self._work(step)
            row["share_of_ceiling"] = graphs.floor_ms(work, step.precision, self.ceilings) / best_ms(measured)
        self.rows.append(row)

    def _with_copies(self, call: Call, image: Tensor) -> tuple[Call, Tensor]:
        """Return the call between an upload of the frame and a download of the outputs, and the frame's host memory."""
        host_image = self.device.host_buffer(image)
        host_image.copy_(image)
        host_outputs = tuple(self.device.host_buffer(output) for output in call())

        def copied() -> tuple[Tensor, ...]:
            image.copy_(host_image, non_blocking=True)
            for target, source in zip(host_outputs, call(), strict=True):
                target.copy_(source, non_blocking=True)
            return host_outputs

        return copied, host_image

    def _measure_argmax(self, step: Step) -> None:
        """Time both forms of labels of float32 logits, after checking that they agree."""
        generator = torch.Generator().manual_seed(0)
        logits = torch.randn((1, graphs.NUM_CLASSES, *step.size), generator=generator).to(self.device.torch_name)
        forms = {"argmax": graphs.labels_by_argmax, "comparisons": graphs.labels_by_comparisons}
        expected = forms["argmax"](logits)[0]
        times = self.argmax.setdefault(step.size_text, {})
        for title, function in forms.items():
            for kind in ("eager", "compile"):
                run = function if kind == "eager" else self._compiled(function, logits)[0]
                for form, call in self._calls(kind, run, logits):
                    if not torch.equal(call()[0], expected):
                        raise ValueError(f"{title} {form} has other labels than argmax")
                    times[f"{title} {form}"] = self.device.measure(
                        call, self.args.runs, self.args.warm_up, self._limit_s()
                    )

    def _calls(self, kind: str, function: Any, example: Tensor) -> Iterator[tuple[str, Call]]:
        """Yield a function's call, and the call as a CUDA graph where there are any."""
        yield kind, lambda: function(example)
        if self.device.has_graphs:
            yield f"{kind}+graph", self.device.capture(lambda: function(example))

    def _limit_s(self) -> float:
        return max(0.0, self.budget.left_s * SHARE_OF_REST)

    def _network(self, name: str) -> Any:
        if name not in self._networks:
            self._networks[name] = graphs.load_network(name)
        return self._networks[name]

    def _frames_of(self, size: tuple[int, int]) -> list[graphs.Frame]:
        if size not in self._frames:
            frames, self.origin = camera_frames(FRAMES * FRAME_STEP, *size)
            self._frames[size] = frames[::FRAME_STEP]
        return self._frames[size]

    def _reference(self, step: Step) -> list[graphs.Outputs]:
        key = step.network, step.size
        if key not in self._references:
            config, frames = graphs.config_of(*key), self._frames_of(step.size)
            self._references[key] = graphs.reference_outputs(self._network(step.network)[0], config, frames)
        return self._references[key]

    def _work(self, step: Step) -> dict[str, int]:
        title = f"{step.network} {step.size_text}"
        if title not in self.work:
            self.work[title] = graphs.work_of(self._network(step.network)[0], step.size)
        return self.work[title]


if __name__ == "__main__":
    main()
