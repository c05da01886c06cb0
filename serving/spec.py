"""Describes a served model: its tensors, its batching, and the thresholds that a new version must meet to be published.

A spec is the single source of config.pbtxt, the training Job and the SDK's tensor table.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

Dtype = Literal["FP32", "INT32", "UINT8"]
ANY = -1
"""A dimension whose size each request chooses."""


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """One input or output. `shape` omits the batch dimension; `ANY` marks a variable one.

    `members` names the elements of a vector, if they have names; a request may omit an `optional` tensor.
    """

    name: str
    dtype: Dtype
    shape: tuple[int, ...]
    members: tuple[str, ...] = ()
    optional: bool = False

    def __post_init__(self) -> None:
        _require(_is_name(self.name), f"tensor name {self.name!r}: lower-case letters, digits and _")
        _require(bool(self.shape), f"tensor {self.name}: shape is empty")
        _require(all(d == ANY or d > 0 for d in self.shape), f"tensor {self.name}: shape {self.shape}")
        vector = self.shape in ((ANY,), (len(self.members),))
        _require(not self.members or vector, f"tensor {self.name}: {len(self.members)} members of shape {self.shape}")
        plain = all(re.fullmatch(r"[a-z0-9-]+", name) for name in self.members)
        _require(plain, f"tensor {self.name}: members {self.members}: lower-case letters, digits and -")

    def feeds(self, other: Tensor) -> bool:
        """Whether the value of this tensor can be used as `other`: the same type and rank, and compatible sizes."""
        if self.dtype != other.dtype or len(self.shape) != len(other.shape):
            return False
        return all(ANY in pair or pair[0] == pair[1] for pair in zip(self.shape, other.shape, strict=True))


@dataclass(frozen=True, kw_only=True)
class Batching:
    """Triton's dynamic batcher for one model. Times are microseconds, as in config.pbtxt.

    A request that finds queue_size requests waiting is rejected at once, one that has waited for queue_timeout_us is
    rejected then. How a model does with this at twice its capacity is in tests/load/evidence/<model>-overload.md.
    """

    max_batch: int
    preferred: tuple[int, ...] = ()
    queue_delay_us: int = 0
    queue_size: int = 64
    queue_timeout_us: int = 2_000_000

    def __post_init__(self) -> None:
        _require(self.max_batch > 0, f"max_batch {self.max_batch}: must be 1 or more")
        _require(
            all(0 < p <= self.max_batch for p in self.preferred),
            f"preferred batches {self.preferred}: must lie within 1 to max_batch {self.max_batch}",
        )
        _require(self.queue_delay_us >= 0, f"queue_delay_us {self.queue_delay_us}: must not be negative")
        _require(self.queue_size > 0, f"queue_size {self.queue_size}: must be 1 or more")
        _require(self.queue_timeout_us > 0, f"queue_timeout_us {self.queue_timeout_us}: must be 1 or more")


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """A bound that a candidate's metric must meet, and how far it may fall behind the live version's."""

    metric: str
    at_least: float | None = None
    at_most: float | None = None
    may_worsen_by: float = 0.0

    def __post_init__(self) -> None:
        one_bound = (self.at_least is None) != (self.at_most is None)
        _require(one_bound, f"threshold {self.metric}: give at_least or at_most, not both")
        _require(self.may_worsen_by >= 0, f"threshold {self.metric}: may_worsen_by must not be negative")

    def refusal(self, value: float, live: float | None) -> str | None:
        """The reason to reject `value`, given the live version's, or None if it passes."""
        if self.at_least is not None:
            if not value >= self.at_least:
                return f"{self.metric} {value:.4g} is below {self.at_least:.4g}"
            fell = live is not None and value < live - self.may_worsen_by
        else:
            assert self.at_most is not None
            if not value <= self.at_most:
                return f"{self.metric} {value:.4g} is above {self.at_most:.4g}"
            fell = live is not None and value > live + self.may_worsen_by
        if fell:
            return f"{self.metric} {value:.4g} is worse than the live {live:.4g} by more than {self.may_worsen_by:.4g}"
        return None


@dataclass(frozen=True, kw_only=True)
class Graph:
    """The inputs and outputs of model.onnx itself, where a backend of ours adds to what the graph does."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """One served model, from its tensors to the thresholds for publication.

    `batching` is None for a model that takes one request at a time, in tensors without a batch dimension. A `decoupled`
    model answers each request with a stream; at most `streams` run at once, and one more is rejected. `max_pixels`
    limits pictures of variable size, 0 means no limit. `threads` is the number of intra-op threads of each of
    `instances`. `golden_atol` is the largest difference allowed between an answer and the golden batch, in the output's
    own unit, and `gpu_atol` the largest on a GPU, in half precision or TF32; 0 means the same as on a CPU. On a CPU a
    `quantized` model's convolutions run in 8-bit integers: its golden batch includes their rounding, and beside that
    the float answers, which `gpu_atol` is for. A version that misses a threshold is not published; one that misses an
    aim says so in its card.
    """

    name: str
    summary: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    batching: Batching | None
    backend: str = "onnxruntime"
    graph: Graph | None = None
    decoupled: bool = False
    streams: int = 2
    max_pixels: int = 0
    instances: int = 1
    threads: int = 2
    golden_atol: float = 1.0
    gpu_atol: float = 0.0
    quantized: bool = False
    labels: tuple[str, ...] = ()
    thresholds: tuple[Threshold, ...] = ()
    aims: tuple[Threshold, ...] = ()

    def __post_init__(self) -> None:
        _check_signature(self.name, self.inputs, self.outputs)
        widths = [t.shape for t in self.outputs] if self.labels else []
        named = f"{self.name}: {len(self.labels)} labels for outputs of {widths}"
        _require(all(width == (len(self.labels),) for width in widths), named)
        _require(not (self.decoupled and self.batching), f"{self.name}: a stream of answers can't be batched")
        _require(self.max_pixels >= 0, f"{self.name}: max_pixels {self.max_pixels}: must not be negative")
        _require(self.streams > 0, f"{self.name}: streams {self.streams}: must be 1 or more")
        _require(self.instances > 0 and self.threads > 0, f"{self.name}: instances and threads must be 1 or more")

    def with_members(self, members: Mapping[str, Sequence[str]]) -> ModelSpec:
        """The same model with other names for the elements of these inputs: a version may have styles of its own."""
        renamed = (replace(t, members=tuple(members.get(t.name, t.members))) for t in self.inputs)
        return replace(self, inputs=tuple(renamed))

    @property
    def core(self) -> Graph:
        """The inputs and outputs of model.onnx."""
        return self.graph or Graph(inputs=self.inputs, outputs=self.outputs)

    @property
    def max_batch(self) -> int:
        """As Triton defines it: 0 means single requests, whose tensors have no batch dimension."""
        return self.batching.max_batch if self.batching else 0


@dataclass(frozen=True, kw_only=True)
class Step:
    """One model of an ensemble. `inputs` and `outputs` map its tensors' names to those in the ensemble."""

    model: ModelSpec
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]

    def __post_init__(self) -> None:
        name, needed = self.model.name, {t.name for t in self.model.inputs if not t.optional}
        _require(self.model.batching is not None, f"{name}: takes no batches, so it can't be a step")
        _check_names(name, "inputs", set(self.inputs), self.model.inputs)
        _check_names(name, "outputs", set(self.outputs), self.model.outputs)
        _require(needed <= set(self.inputs), f"{name}: a step must give it {', '.join(sorted(needed))}")

    @property
    def consumed(self) -> list[tuple[str, Tensor]]:
        """The tensors it consumes, each with its name in the ensemble."""
        return [(self.inputs[t.name], t) for t in self.model.inputs if t.name in self.inputs]

    @property
    def produced(self) -> list[tuple[str, Tensor]]:
        """The tensors it produces, each with its name in the ensemble."""
        return [(self.outputs[t.name], t) for t in self.model.outputs if t.name in self.outputs]


@dataclass(frozen=True, kw_only=True)
class Ensemble:
    """Models that process a request one after the other, inside the server.

    It has no weights, no versions and no batcher of its own: each step runs the newest version of its model, batched as
    that model is. Its inputs have fixed sizes, as it has no max_pixels to limit variable ones.
    """

    name: str
    summary: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    steps: tuple[Step, ...]

    def __post_init__(self) -> None:
        _check_signature(self.name, self.inputs, self.outputs)
        _require(bool(self.steps), f"{self.name}: needs a step")
        free = [t.name for t in self.inputs if ANY in t.shape]
        _require(not free, f"{self.name}: inputs of free size: {', '.join(free)}")
        known, used = {t.name: t for t in self.inputs}, {t.name for t in self.outputs}
        for step in self.steps:
            for name, tensor in step.consumed:
                self._check_fit(known, name, tensor, f"the {tensor.name} of {step.model.name}")
                used.add(name)
            for name, tensor in step.produced:
                _require(name not in known, f"{self.name}: {name} is given twice")
                known[name] = tensor
        for tensor in self.outputs:
            self._check_fit(known, tensor.name, tensor, "an output")
        unused = sorted(set(known) - used)
        _require(not unused, f"{self.name}: nothing takes {', '.join(unused)}")

    def _check_fit(self, known: Mapping[str, Tensor], name: str, wanted: Tensor, what: str) -> None:
        _require(name in known, f"{self.name}: no input or step before gives {name}, {what}")
        had, needs = (f"{t.dtype} {t.shape}" for t in (known[name], wanted))
        _require(known[name].feeds(wanted), f"{self.name}: {name} is {had} and, as {what}, must be {needs}")

    @property
    def max_batch(self) -> int:
        """The smallest of its steps': Triton 2.51 does not load an ensemble that allows more."""
        return min(step.model.max_batch for step in self.steps)


Served = ModelSpec | Ensemble


def _check_signature(name: str, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...]) -> None:
    _require(_is_name(name), f"model name {name!r}: lower-case letters, digits and _")
    _require(bool(inputs) and bool(outputs), f"{name}: needs an input and an output")
    names = [t.name for t in (*inputs, *outputs)]
    _require(len(set(names)) == len(names), f"{name}: tensor names repeat: {names}")


def _check_names(model: str, kind: str, names: set[str], tensors: tuple[Tensor, ...]) -> None:
    strange = sorted(names - {t.name for t in tensors})
    _require(not strange, f"{model}: has no {', '.join(strange)} among its {kind}")


def _is_name(text: str) -> bool:
    return re.fullmatch(r"[a-z][a-z0-9_]*", text) is not None


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)
