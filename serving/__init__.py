import os

# ONNX Runtime's own builds tell Microsoft what they run, and leave an identifier in the home directory, unless this is
# set before its first import (its Privacy.md), which pyproject.toml has sorted after this package's. Whoever wants that
# has it set otherwise; servers inherit it.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
