# Sourced by the other scripts. Uses the active environment, or makes .venv; installs again only after a change.
if [ -z "${VIRTUAL_ENV:-}" ] && [ "${CONDA_DEFAULT_ENV:-base}" = base ]; then
    [ -x .venv/bin/pip ] || python3 -m venv .venv
    source .venv/bin/activate
fi
stamp="$(python -c 'import sys; print(sys.prefix)')/.nbp-installed"
state="$PWD $(cat setup.py setup.sh nbp/generator/native/*.{h,cpp} | cksum)"
if [ "$(cat "$stamp" 2>/dev/null)" != "$state" ]; then
    sh setup.sh
    echo "$state" > "$stamp"
fi
# Threads that wait sleep: beside other work a spinning thread made two cores 5 to 18 times slower (docs/experiments.md).
export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-PASSIVE}"
