# Sourced: `launch NGPUS NNODES MODULE ...` turns the shell into `python -m MODULE ...` on NGPUS processes here and, with
# NNODES > 1, on the other nodes: set MASTER_ADDR to one of them on all (MASTER_PORT and RDZV_ID, which tells jobs on one
# port apart, if the defaults are taken). The original's tokenizers saw squashed frames: `official` in data configs' names.
official= t=${TOKENIZER:-.pt}; case "$t/ $(compgen -G "$t/*.pt")/" in *.pt/* | ShuhuaiRen/*) official=_official ;; esac
launch() {
    local endpoint rendezvous=(--standalone)
    [[ "$1 $2" =~ ^[1-9][0-9]*\ [1-9][0-9]*$ ]] || { echo "usage: $0 NGPUS NNODES ..., got $1 and $2" >&2; exit 2; }
    if [ "$2" -gt 1 ]; then
        endpoint="${MASTER_ADDR:?with NNODES > 1, set it to the name of one of the nodes}:${MASTER_PORT:-29500}"
        rendezvous=(--nnodes="$2" --rdzv-backend=c10d --rdzv-id="${RDZV_ID:-nbp}" --rdzv-endpoint="$endpoint")
    fi
    export PET_SIGNALS_TO_HANDLE=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1     # are handed on to the workers, which then
    export TORCH_ELASTIC_SHUTDOWN_TIMEOUT="${SHUTDOWN_TIMEOUT:-120}"       # have two minutes to write a checkpoint
    exec python -m torch.distributed.run --nproc-per-node="$1" "${rendezvous[@]}" -m "${@:3}"   # a shell dies of signals
}
