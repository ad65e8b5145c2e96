# poan's runtime on a host without a GPU, as a BIDS-App; the shipped models are inside.
#
#   docker build -f docker/cpu.Dockerfile -t poan .
#   docker run --rm --network none -u "$(id -u)" -v "$PWD/raw:/raw:ro" -v "$PWD/out:/out" poan /raw /out participant
#   docker run --rm --network none -u "$(id -u)" -v "$PWD:/data" --entrypoint poan-run poan t2_x2 scan.nii.gz
FROM python:3.11-slim AS build
COPY . /src
RUN python -m venv /opt/poan && /opt/poan/bin/pip install --no-cache-dir "/src[cpu,openvino]"

FROM python:3.11-slim
COPY --from=build /opt/poan /opt/poan
ENV PATH=/opt/poan/bin:$PATH XDG_CACHE_HOME=/cache
RUN useradd --uid 10001 --no-create-home poan && mkdir -m 1777 /cache
USER 10001
WORKDIR /data
# the models that are inside, each found by its hash
HEALTHCHECK --interval=5m --timeout=30s CMD ["poan-run", "--list"]
ENTRYPOINT ["poan-bids"]
CMD ["--help"]
