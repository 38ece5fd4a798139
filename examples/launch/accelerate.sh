#!/usr/bin/env bash
# The same by accelerate's launcher. Precision and sharding stand in the stream (dtype, training.fsdp):
# say them there only.
#
#     PROCESSES=4 examples/launch/accelerate.sh stream.yaml
set -euo pipefail

accelerate launch --multi_gpu --num_machines 1 --num_processes "${PROCESSES:-4}" \
    --mixed_precision no --dynamo_backend no -m lcia run "${1:-stream.yaml}"
