# The GPU images, for Linux x86_64: training on the official PyTorch image, serving on the official Triton image. Build them
# from the repository's root: deploy/images/build.sh training-gpu serving-gpu
#
# The mirrors of cpu.Dockerfile work here, too. For GPUs of the Blackwell generation, which CUDA 12.6 does not know:
# --build-arg PYTORCH=docker.io/pytorch/pytorch:2.13.0-cuda13.0-cudnn9-runtime (asks for a driver of 580 or newer).

ARG PYTORCH=docker.io/pytorch/pytorch:2.13.0-cuda12.6-cudnn9-runtime@sha256:6acf597eeb8e376a96580dde4952f37cc017fef732bb40bfc73f28f25e3f64b4
ARG TRITON=nvcr.io/nvidia/tritonserver:26.06-py3

FROM ${PYTORCH} AS packages
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_FIND_LINKS
ARG PIP_CERT
WORKDIR /build
COPY pyproject.toml .
# The environment sees the image's torch, which satisfies pyproject.toml's pin, and holds the rest. It is made without
# pip, whose ensurepip the image may lack; the image's own pip fills it.
RUN touch README.md \
    && python3 -m venv --system-site-packages --without-pip /opt/venv \
    && python3 -m pip --python /opt/venv/bin/python install --no-cache-dir --no-compile '.[training]'

FROM ${PYTORCH} AS training
COPY --from=packages /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 HOME=/tmp
WORKDIR /app
COPY serving serving
COPY training training
ARG COMMIT=unknown
ENV ATELIER_COMMIT=$COMMIT
USER 1000
ENTRYPOINT ["python", "-m", "training.run"]

FROM ${TRITON} AS serving
ENV HOME=/tmp
COPY serving/model_repository /models
USER 1000
EXPOSE 8000 8001 8002
CMD ["tritonserver", "--model-repository=/models", "--disable-auto-complete-config", "--strict-readiness=true"]
