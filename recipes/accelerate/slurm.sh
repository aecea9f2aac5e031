#!/bin/bash
# A run over several machines under SLURM, which goes on by itself when its time is up or a machine is taken away.
#   sbatch --nodes 4 --gpus-per-node 8 recipes/accelerate/slurm.sh FILE [key=value ...]
# FILE is a recipe on a disk that all machines see, as are its output and the package. BACKEND=fsdp2 by default.
#SBATCH --job-name=align
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=32
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
# ten minutes before the end, to this script alone: time to save and to ask for more
#SBATCH --signal=B:USR1@600

set -u
FOLDER=$(python -c 'from align.recipe import recipes_folder; print(recipes_folder() / "accelerate")') || exit 2
GPUS=${SLURM_GPUS_ON_NODE:-8}
export MAIN=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export PORT=$((20000 + SLURM_JOB_ID % 20000))
# torch's launcher gives the training processes 30 seconds unless it is told otherwise
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=500

# a job that was queued again goes on from its last complete checkpoint
[ "${SLURM_RESTART_COUNT:-0}" -gt 0 ] && set -- "$@" --resume

# SLURM_NODEID is this machine's number, and known only where srun has started the shell
srun --kill-on-bad-exit=1 bash -c '
    exec accelerate launch --config_file "$0" --num_machines "$SLURM_NNODES" --machine_rank "$SLURM_NODEID" \
        --num_processes "$1" --main_process_ip "$MAIN" --main_process_port "$PORT" -m align.train "${@:2}"
' "$FOLDER/${BACKEND:-fsdp2}.yaml" $((SLURM_NNODES * GPUS)) "$@" &
STEP=$!

again() {
    # every launcher hands SIGTERM to its training processes, which save and end
    kill -TERM "$STEP"
    wait "$STEP"
    scontrol requeue "$SLURM_JOB_ID"
    exit 0
}
trap again USR1 TERM

wait "$STEP"
