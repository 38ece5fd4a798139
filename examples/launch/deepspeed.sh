#!/usr/bin/env bash
# The same by DeepSpeed's launcher. Without --no_local_rank it adds an option that lcia does not have.
#
#     examples/launch/deepspeed.sh stream.yaml
set -euo pipefail

deepspeed --no_local_rank --num_gpus "${PROCESSES:-4}" --module lcia run "${1:-stream.yaml}"
