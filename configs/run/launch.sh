# Starts a run: sourced by the scripts beside it, which set the variables. Arguments are overrides of the config.
# DRY_RUN=1 checks the config and starts nothing.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

fail() {
    echo "error: $1" >&2
    exit 2
}

config=configs/${TARGET}_${ALGORITHM}.toml
[[ -f $config ]] || fail "ALGORITHM=$ALGORITHM: there is no $config"
((NUM_GPUS % TP_SIZE == 0)) || fail "NUM_GPUS=$NUM_GPUS is no multiple of TP_SIZE=$TP_SIZE"
rows=$((BATCH_SIZE * NUM_GPUS / TP_SIZE))
((GLOBAL_BATCH % rows == 0)) ||
    fail "GLOBAL_BATCH=$GLOBAL_BATCH is no multiple of the $rows rows that NUM_GPUS=$NUM_GPUS read in a forward"
overrides=(engine.device=cuda "train.batch_size=$BATCH_SIZE" "train.accumulation=$((GLOBAL_BATCH / rows))" "$@")

if [[ -n ${DRY_RUN:-} ]]; then
    exec specdec config check "$config" "${overrides[@]}"
fi

((NUM_GPUS == 1)) || fail "NUM_GPUS=$NUM_GPUS: this version trains in one process on one GPU; set it to 1"
mib=$(nvidia-smi --id=0 --query-gpu=memory.total --format=csv,noheader,nounits) || fail "nvidia-smi finds no GPU"
has=$((mib * 1048576 / 1000000000))
needs=${GPU_GB[$ALGORITHM]}
((has >= needs)) ||
    fail "$config takes about $needs GB on one GPU, which has $has; this version cannot spread it over several"

# Without a checkpoint, --resume begins at the beginning.
exec specdec train "$config" "${overrides[@]}" --resume
