"""Packs a model of the repository as a TorchServe archive: a .mar is a zip with a manifest.

torch-model-archiver would write it, too, but deletes /tmp/MODEL in the process.
"""

from __future__ import annotations

import json
import math
import zipfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from google.protobuf import json_format
from tritonclient.grpc import model_config_pb2 as pb

from serving import repository
from serving.repository import MODEL

SERVING = Path(__file__).parents[1]
BESIDE = ("torchserve/handler.py", "torchserve/triton_python_backend_utils.py")
"""Files at the top of an archive, which comes first on a worker's sys.path."""
IMPORTED = ("__init__.py", "backends/onnxruntime/model.py", "torchserve/__init__.py", "torchserve/tensors.py")
"""Files under serving/ in an archive, imported by the same names as here."""
SETTINGS = "model-config.yaml"
LEAST_DELAY_MS = 1
"""0 would count as unset, and the first request of a batch would then wait 100 ms for others."""
RESPONSE_TIMEOUT_S = 120
ARCHIVER_VERSION = "0.12.0"


def unfit(config: pb.ModelConfig) -> str:
    """Why the handler can't serve a model; empty if it can."""
    if config.ensemble_scheduling.step:
        return "an ensemble of others"
    if config.model_transaction_policy.decoupled:
        return "answers with a stream"
    if not config.max_batch_size:
        return "takes no batches"
    return ""


def write(models: Path, model: str, folder: Path) -> None:
    """Writes MODEL.mar to `folder`, with the newest version in the model repository `models`."""
    config, version = repository.config(models, model), repository.newest(models, model)
    described = {"modelName": model, "modelVersion": str(version), "handler": "handler.py", "configFile": SETTINGS}
    made = datetime.now(UTC).isoformat(timespec="seconds")
    manifest = {"createdOn": made, "runtime": "python", "model": described, "archiverVersion": ARCHIVER_VERSION}
    with zipfile.ZipFile(folder / f"{model}.mar", "w") as archive:
        archive.write(models / model / str(version) / MODEL, MODEL)
        for path in BESIDE:
            archive.write(SERVING / path, Path(path).name)
        for path in IMPORTED:
            archive.write(SERVING / path, f"serving/{path}")
        archive.writestr(SETTINGS, json.dumps(settings(config)))  # JSON is YAML
        archive.writestr("MAR-INF/MANIFEST.json", json.dumps(manifest))


def settings(config: pb.ModelConfig) -> dict[str, Any]:
    """TorchServe's settings, taken from Triton's configuration, and the whole configuration for the handler.

    Workers, threads and delay are the same as Triton's. Measured in turn on two busy cores, the CPU time of the whole
    server per request, in milliseconds, with 2 workers of 1 thread, 1 of 2, and 2 of 2, was: style at 8 callers 133,
    150 and 151; wgan at 8 callers 9.7, 9.2 and 9.5, the classifier at 32 callers 1.7, 1.7 and 1.6, which differ less
    than repeated rounds do. Other garbage collectors, fewer Netty threads and direct buffers matter as little. A delay
    of 3 ms saves nothing, and with 5 ms a single caller waits twice as long as with 1.
    """
    batching = config.dynamic_batching
    return {
        "minWorkers": workers(config),
        "maxWorkers": workers(config),
        "batchSize": config.max_batch_size,
        "maxBatchDelay": max(LEAST_DELAY_MS, math.ceil(batching.max_queue_delay_microseconds / 1000)),
        "responseTimeout": RESPONSE_TIMEOUT_S,
        "jobQueueSize": batching.default_queue_policy.max_queue_size,
        "triton": json_format.MessageToDict(config, preserving_proto_field_name=True),
    }


def workers(config: pb.ModelConfig) -> int:
    return sum(group.count for group in config.instance_group)
