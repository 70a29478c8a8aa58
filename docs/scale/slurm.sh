#!/bin/bash
#SBATCH --job-name=fulltune
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=12:00:00
#SBATCH --signal=USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append

# One task for each GPU. Five minutes before the time is up Slurm sends SIGUSR1 to every task: fulltune saves and ends
# with exit code 75, which asks to be started again.
set -u
recipe="${1:?usage: sbatch slurm.sh RECIPE}"

srun --kill-on-bad-exit=1 fulltune train "$recipe"
code=$?
if [ "$code" -eq 75 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
