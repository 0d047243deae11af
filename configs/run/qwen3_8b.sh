#!/usr/bin/env bash
# Trains a draft for Qwen3-8B on one A100 of 80 GB. Change the variables here, or set them from outside:
# ALGORITHM=medusa configs/run/qwen3_8b.sh
TARGET=qwen3_8b
ALGORITHM=${ALGORITHM:-eagle3}
NUM_GPUS=${NUM_GPUS:-1}                    # processes, one GPU each
TP_SIZE=${TP_SIZE:-1}                      # GPUs that share a copy of the target
BATCH_SIZE=${BATCH_SIZE:-1}                # packed rows in a forward
GLOBAL_BATCH=${GLOBAL_BATCH:-16}           # packed rows in an optimizer step, over all GPUs
declare -A GPU_GB=([eagle3]=40 [medusa]=80) # memory that a GPU must have
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
