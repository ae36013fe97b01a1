#!/bin/bash
# Train on a TPU slice: the same command on every host, which JAX detects.
#
#     NAME=my-slice ZONE=us-central2-b RUN=/mnt/runs/a docs/launch/tpu.sh --core rglru --features 2048
#
# The project, with its environment, lies in ~/jaxseq on every host; RUN is on a file system that all hosts share.
set -euo pipefail

: "${NAME:?the name of the TPU slice}" "${ZONE:?its zone}" "${RUN:?the run folder, shared by all hosts}"
MESH=${MESH:-data=-1}

gcloud compute tpus tpu-vm ssh "$NAME" --zone "$ZONE" --worker=all --command \
  "cd ~/jaxseq && .venv/bin/python experiments/language_model.py --run '$RUN' --mesh '$MESH' $*"
