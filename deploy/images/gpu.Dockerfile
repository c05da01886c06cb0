# The GPU images, for Linux x86_64: training on the official PyTorch image, serving on the official Triton image. Build them
# from the repository's root: deploy/images/build.sh training-gpu serving-gpu
#
# The mirrors of cpu.Dockerfile work here, too. For GPUs of the Blackwell generation, which CUDA 12.6 does not know:
# --build-arg PYTORCH=docker.io/pytorch/pytorch:2.13.0-cuda13.0-cudnn9-runtime (asks for a driver of 580 or newer).

ARG PYTORCH=docker.io/pytorch/pytorch:2.13.0-cuda12.6-cudnn9-runtime@sha256:6acf597eeb8e376a96580dde4952f37cc017fef732bb40bfc73f28f25e3f64b4
ARG TRITON=nvcr.io/nvidia/tritonserver:26.06-py3

# For --export onnx,tensorrt: the TensorRT of the Triton image that serves, which has CUDA 13. On the PyTorch image for CUDA
# 13 above, for Triton 26.07: TENSORRT=tensorrt-cu13==11.1.0.106
ARG TENSORRT=

FROM ${PYTORCH} AS packages
ARG TENSORRT
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_FIND_LINKS
ARG PIP_CERT
WORKDIR /build
COPY pyproject.toml deploy/constraints.txt ./
ENV PIP_CONSTRAINT=/build/constraints.txt
# The environment sees the image's torch, which satisfies pyproject.toml's pin, and holds the rest. It is made without
# pip, whose ensurepip the image may lack; the image's own pip fills it.
RUN touch README.md \
    && python3 -m venv --system-site-packages --without-pip /opt/venv \
    && python3 -m pip --python /opt/venv/bin/python install --no-cache-dir --no-compile '.[training]' \
        ${TENSORRT:+"$TENSORRT"}

FROM ${PYTORCH} AS training
COPY --from=packages /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 HOME=/tmp
WORKDIR /app
COPY --chown=1000:1000 serving serving
# The gate's Triton embeds Python. Should the base lack its shared library, that is told here, not to a Job that has trained.
RUN python -c 'from serving import wheel; wheel.find()'
COPY --chown=1000:1000 training training
ARG COMMIT=unknown
ENV ATELIER_COMMIT=$COMMIT
USER 1000
ENTRYPOINT ["python", "-m", "training.run"]

# --- Triton: TensorRT and trtexec are the image's own; from PyPI comes TensorRT's API for Python, in the same version
FROM ${TRITON} AS triton-packages
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_FIND_LINKS
ARG PIP_CERT
WORKDIR /build
COPY pyproject.toml deploy/constraints.txt ./
ENV PIP_CONSTRAINT=/build/constraints.txt
RUN touch README.md \
    && python3 -m venv --without-pip /opt/venv \
    && python3 -m pip --python /opt/venv/bin/python install --no-cache-dir --no-compile \
        '.[gpu]' "tensorrt-cu13-bindings==${TRT_VERSION%%+*}.*"

FROM ${TRITON} AS serving
COPY --from=triton-packages /opt/venv /opt/venv
# Triton's Python backend takes the packages of the first python3 on the PATH.
ENV PATH=/opt/venv/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 HOME=/tmp
WORKDIR /app
COPY --chown=1000:1000 serving serving
COPY --chown=1000:1000 serving/backends/painter /opt/tritonserver/backends/painter
USER 1000
EXPOSE 8000 8001 8002
CMD ["tritonserver", "--model-repository=/app/serving/model_repository", "--disable-auto-complete-config", "--strict-readiness=false"]
