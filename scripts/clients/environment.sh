# Environments of their own for clients, below target/clients. Sourced by the scripts beside it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
clients=$PWD/target/clients
export PYTHONPATH=$PWD/scripts/clients PYTHONDONTWRITEBYTECODE=1

# python_client NAME REQUIREMENT...: sets `python`, of an environment with these packages.
python_client() {
    local folder=$clients/$1 wanted="${*:2}"
    python=$folder/bin/python
    if [ "$(cat "$folder/wanted" 2>/dev/null)" != "$wanted" ]; then
        rm -rf "$folder"
        python3 -m venv "$folder"
        "$python" -m pip install --quiet --disable-pip-version-check "${@:2}"
        printf '%s' "$wanted" > "$folder/wanted"
    fi
}

# node_client NAME REQUIREMENT...: sets `node_folder`, whose node_modules has these packages.
node_client() {
    node_folder=$clients/$1
    local wanted="${*:2}"
    command -v npm > /dev/null || { echo "npm is missing (Debian: apt install npm)" >&2; exit 1; }
    if [ "$(cat "$node_folder/wanted" 2>/dev/null)" != "$wanted" ]; then
        rm -rf "$node_folder"
        mkdir -p "$node_folder"
        npm install --prefix "$node_folder" --no-audit --no-fund --silent "${@:2}"
        printf '%s' "$wanted" > "$node_folder/wanted"
    fi
    export NODE_FOLDER=$node_folder
}
