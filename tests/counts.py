"""What Triton has counted. It counts a request when it lets go of it, which may be just after it has answered."""

from __future__ import annotations

from collections.abc import Callable

import tritonclient.grpc as triton
from waiting import until


def reached(count: Callable[[], int], least: int) -> int:
    """The count, once it is `least` or more; fails the test if it stays below."""
    until(lambda: count() >= least, lambda: f"{count()} counted, and never {least}", pause_s=0.01)
    return count()


def inferences(client: triton.InferenceServerClient, model: str) -> int:
    """Members of batches that a model has answered, whichever its version."""
    return sum(int(stats.inference_count) for stats in client.get_inference_statistics(model).model_stats)


def executions(client: triton.InferenceServerClient, model: str) -> int:
    """Batches that it has run for them."""
    return sum(int(stats.execution_count) for stats in client.get_inference_statistics(model).model_stats)
