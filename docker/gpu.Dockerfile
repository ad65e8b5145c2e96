# poan's runtime on a host with an NVIDIA GPU and the NVIDIA container toolkit.
#
#   docker build -f docker/gpu.Dockerfile -t poan-gpu .
#   docker run --rm --gpus all -v "$PWD:/data" poan-gpu poan-run t2_x2 scan.nii.gz
#
# EXTRAS fits the driver: R580 or later takes cu13, R525 to R575 cu12 (docs/gpu.md).
FROM python:3.11-slim
ARG EXTRAS=gpu,tensorrt-rtx-cu13
# the driver itself comes from the host; without "compute" there is no CUDA in the container
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
# kernels that are compiled on the first start outlive the container in this volume
ENV XDG_CACHE_HOME=/cache
COPY . /opt/poan
RUN pip install --no-cache-dir "/opt/poan[${EXTRAS}]"
RUN useradd --uid 10001 --no-create-home poan && mkdir -m 1777 /cache
VOLUME /cache
USER 10001
WORKDIR /data
# the models that are inside, each found by its hash
HEALTHCHECK --interval=5m --timeout=30s CMD ["poan-run", "--list"]
CMD ["poan-run", "--help"]
