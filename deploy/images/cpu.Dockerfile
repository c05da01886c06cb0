# The CPU images, for Linux x86_64: training, serving (the embedded Triton) and clients. Build them from the repository's
# root with `make images`, or one alone: podman build -f deploy/images/cpu.Dockerfile --target serving -t atelier-serving .
#
# Behind a mirror: --build-arg PIP_INDEX_URL=… and the similar ones below, which pip reads from its environment.

ARG DEBIAN=docker.io/library/debian:bookworm-slim
FROM ${DEBIAN} AS python
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt /var/log/apt /var/log/dpkg.log
ENV PATH=/opt/venv/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
# Every image runs with a read-only root filesystem: what programs write unasked goes to /tmp.
ENV HOME=/tmp
RUN useradd --uid 1000 --home-dir /tmp --no-create-home --shell /usr/sbin/nologin atelier
WORKDIR /app

# --- packages: whatever a running image does not need stays in these stages
FROM python AS builder
RUN apt-get update && apt-get install --yes --no-install-recommends python3-venv
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_FIND_LINKS
ARG PIP_CERT
# Kept for the stages below; pip treats an empty value as unset.
ENV PIP_INDEX_URL=$PIP_INDEX_URL PIP_EXTRA_INDEX_URL=$PIP_EXTRA_INDEX_URL PIP_FIND_LINKS=$PIP_FIND_LINKS PIP_CERT=$PIP_CERT
RUN python3 -m venv /opt/venv
COPY pyproject.toml deploy/constraints.txt ./
ENV PIP_CONSTRAINT=/app/constraints.txt
# pyproject.toml names a readme; with an empty one, changes to the real one don't invalidate these layers.
RUN touch README.md

FROM builder AS serving-packages
RUN pip install --no-cache-dir --no-compile '.[serving]' && pip uninstall --yes pip

FROM builder AS training-packages
# On PyPI, torch for Linux is the CUDA build. A "+cpu" version counts as newer than the same version without it.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN pip install --no-cache-dir --no-compile ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} '.[training]' \
    && pip uninstall --yes pip \
    # Compiled tests and headers: 195 MB that `import torch` never opens, unlike torch_shm_manager.
    && cd /opt/venv/lib/python3.11/site-packages/torch && rm -rf test include \
    && find bin -type f ! -name torch_shm_manager -delete

FROM builder AS clients-packages
COPY clients clients
RUN pip install --no-cache-dir --no-compile ./clients && pip uninstall --yes pip

# --- images
# The model processes of the wheel's tritonserver embed Python (libpython3.11). Corpora may be fetched over https.
FROM python AS triton
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates libpython3.11 \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt /var/log/apt /var/log/dpkg.log
USER 1000

FROM triton AS serving
COPY --from=serving-packages /opt/venv /opt/venv
COPY --chown=1000:1000 serving serving
EXPOSE 8000 8001 8002
ENTRYPOINT ["python", "-m", "serving.embedded", "--host", "0.0.0.0"]

FROM triton AS training
COPY --from=training-packages /opt/venv /opt/venv
COPY --chown=1000:1000 serving serving
COPY --chown=1000:1000 training training
# Goes into the card of every model trained here.
ARG COMMIT=unknown
ENV ATELIER_COMMIT=$COMMIT
ENTRYPOINT ["python", "-m", "training.run"]

FROM python AS clients
USER 1000
COPY --from=clients-packages /opt/venv /opt/venv
COPY --chown=1000:1000 clients/*.py clients/
