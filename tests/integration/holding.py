"""Models that keep a request until the test lets go of it, however slow a busy machine is meanwhile."""

from __future__ import annotations

import re
import urllib.request
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import np_to_triton_dtype
from waiting import until

from serving.embedded import Embedded
from serving.spec import Batching, ModelSpec

PATIENCE_S = 60.0
HELD_US = 600_000_000
URGENT, USUAL = 1, 2


def held(spec: ModelSpec) -> ModelSpec:
    """The model with one place in its queue, where a request waits for others that would fill its batch."""
    most = spec.max_batch
    batching = Batching(
        max_batch=most, preferred=(most - 1, most), queue_delay_us=HELD_US, queue_size=1, queue_timeout_us=2 * HELD_US
    )
    return replace(spec, batching=batching, instances=1)


def with_urgent(repository: Path, spec: ModelSpec) -> Path:
    """Gives urgent requests to the model a place of their own, for `let_go`; returns the repository."""
    path = repository / spec.name / "config.pbtxt"
    levels = f"priority_levels: {USUAL} default_priority_level: {USUAL}"
    text, found = re.subn(r"^dynamic_batching \{", rf"\g<0> {levels}", path.read_text(), flags=re.MULTILINE)
    assert found == 1
    path.write_text(text)
    return repository


def let_go(server: Embedded, spec: ModelSpec, like: np.ndarray[Any, Any]) -> None:
    """The request that waits is answered, if there is one: an urgent one of members `like` its own fills its batch."""
    (given,) = spec.inputs
    members = np.repeat(like, spec.max_batch - 1, axis=0)
    tensor = triton.InferInput(given.name, members.shape, np_to_triton_dtype(members.dtype))
    tensor.set_data_from_numpy(members)
    with triton.InferenceServerClient(server.grpc) as client:
        client.infer(spec.name, [tensor], priority=URGENT, client_timeout=PATIENCE_S)


def wait_for_queue(server: Embedded, spec: ModelSpec) -> None:
    """Returns when one request waits in the model's queue, of whichever version."""
    until(
        lambda: _queue_length(server, spec.name) == 1,
        lambda: f"{_queue_length(server, spec.name)} wait for {spec.name}, and never 1",
    )


def _queue_length(server: Embedded, model: str) -> int:
    with urllib.request.urlopen(f"http://{server.metrics}/metrics") as answer:
        text = answer.read().decode()
    counted = re.findall(rf'^nv_inference_pending_request_count{{model="{model}",.*}} (\d+)', text, re.MULTILINE)
    return sum(map(int, counted))
