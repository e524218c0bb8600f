# Sourced by the other scripts. Uses the active environment, or makes .venv; installs again only after a change.
if [ -z "${VIRTUAL_ENV:-}" ] && [ "${CONDA_DEFAULT_ENV:-base}" = base ]; then
    [ -x .venv/bin/pip ] || python3 -m venv .venv
    source .venv/bin/activate
fi
stamp="$(python -c 'import sys; print(sys.prefix)')/.nbp-installed"
state="$PWD $(cat setup.py setup.sh | cksum)"
if [ "$(cat "$stamp" 2>/dev/null)" != "$state" ]; then
    sh setup.sh
    echo "$state" > "$stamp"
fi
