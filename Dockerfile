# Segue's images: `docker build --target cpu -t segue:0.1.0-cpu .` and `--target gpu -t segue:0.1.0-gpu`.
# NOT BUILT so far. It is linted, and tests hold it to what the chart relies on.
# Everything of Python comes from requirements/*.lock. Where pip's own sources have no CPU build of torch:
# --build-arg TORCH_INDEX=URL. To pin the base by digest: --build-arg PYTHON_IMAGE=python@sha256:...
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS base
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1
ENV VIRTUAL_ENV=/opt/segue PATH=/opt/segue/bin:$PATH

# The wheel, its core compiled. Build tools come in the locked versions as well.
FROM base AS wheel
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY requirements/cpu.lock requirements/dev.lock requirements/
COPY pyproject.toml hatch_build.py README.md LICENSE ./
COPY scripts scripts
COPY orchestrator orchestrator
COPY workers workers
RUN cat requirements/cpu.lock requirements/dev.lock > /constraints.txt \
    && PIP_CONSTRAINT=/constraints.txt SEGUE_COMPILE=1 pip wheel --no-deps --wheel-dir /wheels .

FROM base AS cpu-packages
ARG TORCH_INDEX=
COPY requirements/cpu.lock /locks/
RUN python -m venv /opt/segue \
    && grep '^torch==' /locks/cpu.lock > /locks/torch.lock \
    && pip install --no-deps ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} --requirement /locks/torch.lock \
    && pip install --no-deps --requirement /locks/cpu.lock
COPY --from=wheel /wheels /wheels
RUN pip install --no-deps /wheels/*.whl

FROM base AS gpu-packages
COPY requirements/gpu.lock /locks/
RUN python -m venv /opt/segue && pip install --no-deps --requirement /locks/gpu.lock
COPY --from=wheel /wheels /wheels
RUN pip install --no-deps /wheels/*.whl

# What both run on: KubeRay starts its containers with bash, and its own probes ask by wget.
FROM base AS runtime
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libgomp1 libnuma1 libibverbs1 procps wget \
    && rm -rf /var/lib/apt/lists/*
RUN groupadd --gid 1000 segue && useradd --uid 1000 --gid 1000 --create-home --home-dir /home/segue segue \
    && install --directory --owner=1000 --group=1000 /cache
ENV HOME=/home/segue SEGUE_CACHE=/cache/segue HF_HOME=/cache/huggingface RAY_USAGE_STATS_ENABLED=0
WORKDIR /home/segue
CMD ["segue", "--help"]

FROM runtime AS cpu
COPY --from=cpu-packages /opt/segue /opt/segue
USER 1000:1000

FROM runtime AS gpu
# Triton compiles kernels where they run.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=gpu-packages /opt/segue /opt/segue
USER 1000:1000
