# docker build -t dfastllm .                                             CPU only
# docker build -t dfastllm:cuda --build-arg FEATURES=cuda,autotune .     NVIDIA GPUs
FROM rust:1.95-bookworm AS build
ARG FEATURES=""
WORKDIR /src
COPY .cargo .cargo
COPY third_party third_party
COPY Cargo.toml Cargo.lock ./
COPY backends backends
COPY models models
COPY engine engine
COPY server server
COPY tests tests
COPY examples examples
RUN cargo build --release --locked --features "${FEATURES}"

FROM debian:12-slim AS run
ARG FEATURES=""
# With CUDA, kernels are compiled at run time: NVRTC and headers come as pip wheels of the version
# that the oldest supported driver loads; the driver itself comes from the container runtime.
RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates curl \
    && case "${FEATURES}" in *cuda*) apt-get install -y --no-install-recommends python3-pip \
        && pip install --break-system-packages --no-cache-dir --target /opt/nvidia \
            "nvidia-cuda-nvrtc==13.0.*" "nvidia-cuda-runtime==13.0.*" "nvidia-cuda-crt==13.0.*" \
            "nvidia-cuda-cccl==13.0.*" \
        && apt-get purge -y --auto-remove python3-pip ;; esac \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 dfastllm
ENV CUDA_PATH=/opt/nvidia/nvidia/cu13 \
    LD_LIBRARY_PATH=/opt/nvidia/nvidia/cu13/lib \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    DFASTLLM_HOST=0.0.0.0
COPY --from=build /src/target/release/dfastllm /usr/local/bin/dfastllm
COPY LICENSE NOTICE /usr/share/doc/dfastllm/
USER dfastllm
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=1s --start-period=600s \
    CMD curl --fail --silent "http://127.0.0.1:${DFASTLLM_PORT:-8000}/health" \
        || curl --fail --silent --insecure "https://127.0.0.1:${DFASTLLM_PORT:-8000}/health" || exit 1
ENTRYPOINT ["dfastllm"]
CMD ["serve"]
