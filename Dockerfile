# The images of the Helm chart: `make images` builds both, `make push REGISTRY=...` publishes them.
#
#   agent   the agent, etcdctl-like commands, and what the chart's Jobs run
#   engine  the same, with the reference engine and SGLang's router
#
# BASE is any image with python3 3.11 or newer and its venv module; the final stages have the same base as the build, so that
# what was installed there fits. pip.conf, ca.crt and wheels, where the build context has them, stay in the build stages.
# The package itself is the last layer, of a megabyte: a change of it neither installs nor pushes the rest again.
ARG BASE=python:3.11.13-slim-bookworm

FROM ${BASE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_CONFIG_FILE=/src/pip.conf PATH=/opt/etcd-pd/bin:$PATH
RUN python3 -m venv /opt/etcd-pd
WORKDIR /src
COPY constraints.txt pip.conf* ca.crt* *.whl ./

FROM build AS package
COPY pyproject.toml README.md LICENSE ./
COPY etcd_pd etcd_pd
RUN pip install --quiet --no-deps --prefix=/package .

# An empty package with the real one's dependencies, and nothing else of pyproject.toml: these change seldom.
FROM build AS metadata
COPY pyproject.toml ./
RUN sed -i '/^\[tool\./,$d; /^dev = \[/,/^]/d; s/^version = .*/version = "0"/' pyproject.toml

FROM build AS dependencies
COPY --from=metadata /src/pyproject.toml ./
RUN mkdir etcd_pd && touch etcd_pd/__init__.py README.md LICENSE

FROM dependencies AS agent-dependencies
RUN pip install --quiet --constraint constraints.txt '.[agent,cluster]' && pip uninstall --quiet --yes etcd-pd pip setuptools

FROM dependencies AS engine-dependencies
# what torch brings for building extensions and for testing itself, a fifth of a gigabyte, goes
RUN pip install --quiet --constraint constraints.txt '.[engine,router,tracing]' && pip uninstall --quiet --yes etcd-pd pip \
  && cd /opt/etcd-pd/lib/python3*/site-packages/torch \
  && rm -rf include test && find bin -type f ! -name torch_shm_manager -delete

# What is in an image, as CycloneDX: /opt/etcd-pd/share/sbom.cdx.json
FROM build AS sbom
RUN python3 -m venv /sbom && /sbom/bin/pip install --quiet --constraint constraints.txt cyclonedx-bom

FROM ${BASE} AS agent-sbom
COPY --from=sbom /sbom /sbom
COPY --from=agent-dependencies /opt/etcd-pd /opt/etcd-pd
RUN /sbom/bin/cyclonedx-py environment --output-reproducible --output-file /sbom.cdx.json /opt/etcd-pd/bin/python3

FROM ${BASE} AS engine-sbom
COPY --from=sbom /sbom /sbom
COPY --from=engine-dependencies /opt/etcd-pd /opt/etcd-pd
RUN /sbom/bin/cyclonedx-py environment --output-reproducible --output-file /sbom.cdx.json /opt/etcd-pd/bin/python3

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
COPY --from=agent-dependencies /opt/etcd-pd /opt/etcd-pd
COPY --from=agent-sbom /sbom.cdx.json /opt/etcd-pd/share/
COPY --from=package /package /opt/etcd-pd

FROM runtime AS engine
COPY --from=engine-dependencies /opt/etcd-pd /opt/etcd-pd
COPY --from=engine-sbom /sbom.cdx.json /opt/etcd-pd/share/
COPY --from=package /package /opt/etcd-pd
