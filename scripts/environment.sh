# Sourced by the other scripts: makes `.venv` in the checkout what requirements.lock and pyproject.toml ask for.
#
# Needs Python 3.11 or newer with venv, and nothing else. Does nothing, and says nothing, where nothing has changed.
# Every package is pinned by its hash. To make the lock again after a change of pyproject.toml, run the command that
# stands at its top.

set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$root/.venv
stamp=$venv/.made-from

# The first interpreter that ebsfuzz runs on. 3.11 to 3.13 come first, because atheris exists for them only.
find_python() {
    local name
    for name in python3 python3.13 python3.12 python3.11; do
        if "$name" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
            command -v "$name"
            return
        fi
    done
    if python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        command -v python3
        return
    fi
    echo "ebsfuzz: needs Python 3.11 or newer as python3; found $(python3 --version 2>&1 || true)" >&2
    return 2
}

# What the environment was made from: both files, and the place, because a virtual environment cannot be moved.
made_from() {
    echo "$root"
    cat "$root/requirements.lock" "$root/pyproject.toml"
}

is_up_to_date() {
    [[ -x $venv/bin/ebsfuzz && -f $stamp ]] && made_from | cmp -s - "$stamp"
}

make_environment() {
    local python log=$venv/setup.log
    python=$(find_python) || exit 2
    echo "ebsfuzz: setting up .venv with $("$python" --version) (once; a minute or two)" >&2
    if ! [[ -f $stamp && $(head -n 1 "$stamp") == "$root" ]] || ! "$venv/bin/python" -c '' 2>/dev/null; then
        if ! "$python" -m venv --clear "$venv" >&2; then
            echo "ebsfuzz: $python cannot make a virtual environment; is its venv module installed (python3-venv)?" >&2
            exit 3
        fi
    fi
    rm -f "$stamp" # an interrupted set-up starts again
    if ! {
        "$venv/bin/python" -m pip install --disable-pip-version-check --require-hashes -r "$root/requirements.lock" &&
            "$venv/bin/python" -m pip install --disable-pip-version-check --no-deps --no-build-isolation --editable "$root"
    } >"$log" 2>&1; then
        tail -n 20 "$log" >&2
        echo "ebsfuzz: setting up .venv failed; the whole log is in $log" >&2
        exit 3
    fi
    made_from >"$stamp"
}

if ! is_up_to_date; then
    # One set-up at a time: several scripts may start at once in a new checkout.
    exec 9<"$root/pyproject.toml" # any file will do to hold the lock
    if command -v flock >/dev/null; then flock 9; fi
    is_up_to_date || make_environment
    exec 9<&-
fi
