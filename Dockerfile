# lcia: assistant, server, worker and gateway.
#
#   docker build -t lcia .                                                          for a CPU
#   docker build -t lcia --build-arg TORCH_INDEX=https://pypi.org/simple .   for NVIDIA GPUs
#   docker run --rm -v "$PWD:/data" lcia lcia learn assistant tickets.csv --name tickets --model smollm2-135m
FROM python:3.12-slim
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV LCIA_CACHE=/data/.cache/lcia HF_HOME=/data/.cache/huggingface PYTHONUNBUFFERED=1
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
# torch alone first: it is large, and changes less often than lcia.
RUN pip install --no-cache-dir --index-url "${TORCH_INDEX}" -c constraints.txt torch
COPY src src
RUN pip install --no-cache-dir -c constraints.txt ".[data,skills,live,postgres]" \
    && useradd --uid 1000 lcia && mkdir /data && chown lcia /data
USER 1000
WORKDIR /data
CMD ["lcia", "--help"]
