# NBP in a container, for CPU and for CUDA; the commands of the README run inside.
#   docker build -t nbp .                                                          CPU
#   docker build -t nbp --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu128 .   CUDA; run with --gpus all
#                                                        --ipc=host --ulimit memlock=-1 (loaders and NCCL share memory)
#   docker run --rm -it -v "$PWD/data:/nbp/data" -v "$PWD/runs:/nbp/runs" -v "$PWD/ckpt:/nbp/ckpt" nbp
#   docker run --rm nbp python -m nbp.generate --help
#   docker run --rm -it --network host nbp python -m nbp.demo      the page is served to the machine itself only
FROM python:3.11-slim-bookworm

ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1

# g++ compiles the step of sampling when nbp is installed, and DeepSpeed's parts on first use.
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ git ninja-build \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /nbp
# torch alone and first: a layer that changes of the code leave as it is.
RUN python -m pip install --index-url "$TORCH_INDEX" "torch>=2.6,<2.14" \
    && python -m pip install "numpy>=1.26,<2.5"
COPY . .
# The scripts take this environment and find it installed.
ENV VIRTUAL_ENV=/usr/local
RUN bash -ec 'source scripts/environment.sh'

CMD ["bash"]
