#!/bin/bash
# Train on several nodes of 8 GPUs under SLURM: one process a GPU, which JAX detects.
#
#     sbatch docs/launch/slurm.sh                                  # from the root of the project
#     RUN=runs/b MESH=data=-1,fsdp=8 sbatch docs/launch/slurm.sh --core gru --features 1024
#
# SLURM sends SIGTERM 3 minutes before the time is up: the run saves a checkpoint and exits with code 75, and the job
# is put back into the queue. The same happens on preemption. Any other failure ends the job.
#SBATCH --job-name=jaxseq
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@180
#SBATCH --requeue
#SBATCH --open-mode=append
set -uo pipefail

RUN=${RUN:-runs/slurm}           # on a file system that all nodes share
MESH=${MESH:-data=-1}

srun --kill-on-bad-exit=1 .venv/bin/python experiments/language_model.py --run "$RUN" --mesh "$MESH" "$@"
code=$?
if [ "$code" -eq 75 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
