#!/usr/bin/env bash
# The same by accelerate's launcher, which reads the number of processes from accelerate.yaml.
#
#     examples/launch/accelerate.sh stream.yaml
set -euo pipefail

here="$(dirname "$0")"
accelerate launch --config_file "$here/accelerate.yaml" -m lcia run "${1:-stream.yaml}"
