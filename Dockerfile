# The images of the Helm chart: `make images` builds both, `make push REGISTRY=...` publishes them.
#
#   agent   the agent, etcdctl-like commands, and what the chart's Jobs run
#   engine  the same, with the reference engine and SGLang's router
#
# BASE is any image with python3 3.11 or newer and its venv module; the final stages have the same base as the build, so that
# what was installed there fits. pip.conf, ca.crt and wheels, where the build context has them, stay in the build stages.
ARG BASE=python:3.11.13-slim-bookworm

FROM ${BASE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_NO_COMPILE=1 PIP_CONFIG_FILE=/src/pip.conf PATH=/opt/etcd-pd/bin:$PATH
RUN python3 -m venv /opt/etcd-pd
WORKDIR /src
# Dependencies first: they change seldom, the package often.
COPY pyproject.toml constraints.txt README.md LICENSE pip.conf* ca.crt* *.whl ./
RUN mkdir etcd_pd && touch etcd_pd/__init__.py

FROM build AS build-agent
RUN pip install --quiet --constraint constraints.txt '.[agent,cluster]' && pip uninstall --quiet --yes etcd-pd
COPY etcd_pd etcd_pd
RUN pip install --quiet --no-deps . && pip uninstall --quiet --yes pip setuptools

FROM build AS build-engine
RUN pip install --quiet --constraint constraints.txt '.[engine,router]' && pip uninstall --quiet --yes etcd-pd
COPY etcd_pd etcd_pd
RUN pip install --quiet --no-deps . && pip uninstall --quiet --yes pip

FROM ${BASE} AS runtime
ARG VERSION=0.0.0
LABEL org.opencontainers.image.title="etcd-pd" \
  org.opencontainers.image.description="Leased, watched, fenced prefill-rank registry on etcd" \
  org.opencontainers.image.licenses="Apache-2.0" \
  org.opencontainers.image.version="${VERSION}"
ENV PATH=/opt/etcd-pd/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/tmp
WORKDIR /
USER 65532:65532
ENTRYPOINT ["etcd-pd"]

FROM runtime AS agent
COPY --from=build-agent /opt/etcd-pd /opt/etcd-pd

FROM runtime AS engine
COPY --from=build-engine /opt/etcd-pd /opt/etcd-pd
