#!/usr/bin/env bash
# Trains a draft for Qwen2.5-VL-32B-Instruct on one GPU of more than 96 GB: one A100 is too small. Change the variables here, or set them from outside:
# ALGORITHM=medusa configs/run/qwen2_5_vl_32b.sh
TARGET=qwen2_5_vl_32b
ALGORITHM=${ALGORITHM:-eagle3}
NUM_GPUS=${NUM_GPUS:-1}                    # processes, one GPU each
TP_SIZE=${TP_SIZE:-1}                      # GPUs that share a copy of the target
BATCH_SIZE=${BATCH_SIZE:-1}                # packed rows in a forward
GLOBAL_BATCH=${GLOBAL_BATCH:-16}           # packed rows in an optimizer step, over all GPUs
declare -A GPU_GB=([eagle3]=96 [medusa]=144) # memory that a GPU must have
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
