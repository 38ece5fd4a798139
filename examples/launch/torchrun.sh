#!/usr/bin/env bash
# Learn a stream on every GPU of this machine, or with PROCESSES processes.
#
#     PROCESSES=4 examples/launch/torchrun.sh stream.yaml
set -euo pipefail

torchrun --standalone --nproc_per_node "${PROCESSES:-gpu}" -m lcia run "${1:-stream.yaml}"
