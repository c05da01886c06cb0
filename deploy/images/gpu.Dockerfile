# The GPU images, for Linux x86_64: training on the official PyTorch image, serving on the official Triton image. Build them
# from the repository's root: deploy/images/build.sh training-gpu serving-gpu
#
# The mirror settings of cpu.Dockerfile work here, too. For Blackwell GPUs, which CUDA 12.6 does not support:
# --build-arg PYTORCH=docker.io/pytorch/pytorch:2.13.0-cuda13.0-cudnn9-runtime (needs driver 580 or newer).

ARG PYTORCH=docker.io/pytorch/pytorch:2.13.0-cuda12.6-cudnn9-runtime@sha256:6acf597eeb8e376a96580dde4952f37cc017fef732bb40bfc73f28f25e3f64b4
ARG TRITON=nvcr.io/nvidia/tritonserver:26.06-py3

# For --export onnx,tensorrt: the same TensorRT as in the Triton image that serves, which has CUDA 13. With the PyTorch image
# for CUDA 13 above and Triton 26.07: TENSORRT=tensorrt-cu13==11.1.0.106
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
# The environment sees the image's torch, which satisfies pyproject.toml's pin, and holds the rest. It is created without
# pip, as the image may lack ensurepip; the image's own pip installs into it.
RUN touch README.md \
    && python3 -m venv --system-site-packages --without-pip /opt/venv \
    && python3 -m pip --python /opt/venv/bin/python install --no-cache-dir --no-compile '.[training]' \
        ${TENSORRT:+"$TENSORRT"}

FROM ${PYTORCH} AS training
COPY --from=packages /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 HOME=/tmp
WORKDIR /app
COPY --chown=1000:1000 serving serving
# The gate's Triton embeds Python. If the base lacks its shared library, the build fails here, not a Job after its training.
RUN python -c 'from serving import wheel; wheel.find()'
COPY --chown=1000:1000 training training
ARG COMMIT=unknown
ENV ATELIER_COMMIT=$COMMIT
USER 1000
ENTRYPOINT ["python", "-m", "training.run"]

# --- Triton: TensorRT and trtexec are the image's own; TensorRT's Python API comes from PyPI, in the same version
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
# Triton's Python backend uses the packages of the first python3 on the PATH.
ENV PATH=/opt/venv/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 HOME=/tmp
WORKDIR /app
COPY --chown=1000:1000 serving serving
COPY --chown=1000:1000 serving/backends/painter /opt/tritonserver/backends/painter
USER 1000
EXPOSE 8000 8001 8002
CMD ["tritonserver", "--model-repository=/app/serving/model_repository", "--disable-auto-complete-config", "--strict-readiness=false"]
