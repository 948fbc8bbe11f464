#!/bin/sh
# Start one role of a cluster, or run a command:
#   entrypoint.sh head | worker | mlflow | healthy | COMMAND [ARGS...]
set -eu

die() {
    echo "entrypoint: $1" >&2
    exit 2
}

need_token() {
    [ "${RAY_AUTH_MODE:-}" = token ] || die "RAY_AUTH_MODE is '${RAY_AUTH_MODE:-}'; clusters run with token"
    [ -n "${RAY_AUTH_TOKEN_PATH:-}" ] || die "RAY_AUTH_TOKEN_PATH is not set: mount the cluster's token as a secret"
    [ -s "$RAY_AUTH_TOKEN_PATH" ] || die "$RAY_AUTH_TOKEN_PATH is missing or empty"
}

# Variables named NAME_FILE become NAME with the file's content: secrets are mounted, not written into compose files.
from_file() {
    eval "file=\${$1_FILE:-}"
    if [ -n "$file" ]; then
        [ -r "$file" ] || die "$1_FILE names $file, which cannot be read"
        value=$(cat "$file")
        export "$1=$value"
    fi
}

for name in AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY MLFLOW_TRACKING_PASSWORD MLFLOW_FLASK_SERVER_SECRET_KEY \
    MLFLOW_AUTH_ADMIN_PASSWORD; do
    from_file "$name"
done

role=${1:-}
[ "$#" -gt 0 ] && shift

case "$role" in
head)
    need_token
    # The dashboard listens inside the container only where compose publishes it, on the host's loopback.
    echo head >/tmp/role
    exec ray start --head --block --disable-usage-stats --port 6379 --num-cpus "${HEAD_CPUS:-0}" \
        --dashboard-host "${DASHBOARD_HOST:-127.0.0.1}" --dashboard-port 8265 "$@"
    ;;
worker)
    need_token
    [ -n "${HEAD_ADDRESS:-}" ] || die "HEAD_ADDRESS is not set; give HOST:6379"
    echo worker >/tmp/role
    exec ray start --address "$HEAD_ADDRESS" --block --disable-usage-stats \
        ${WORKER_CPUS:+--num-cpus "$WORKER_CPUS"} "$@"
    ;;
mlflow)
    [ -n "${MLFLOW_AUTH_ADMIN_PASSWORD:-}" ] || die "MLFLOW_AUTH_ADMIN_PASSWORD(_FILE) is not set"
    [ -n "${MLFLOW_FLASK_SERVER_SECRET_KEY:-}" ] || die "MLFLOW_FLASK_SERVER_SECRET_KEY(_FILE) is not set"
    [ -n "${MLFLOW_SERVER_ALLOWED_HOSTS:-}" ] || die "MLFLOW_SERVER_ALLOWED_HOSTS is not set; give mlflow:5000"
    echo mlflow >/tmp/role
    exec mlflow server --app-name basic-auth --host 0.0.0.0 --port 5000 --workers 2 \
        --backend-store-uri "${BACKEND_STORE_URI:-sqlite:////data/mlflow.db}" \
        --artifacts-destination "${ARTIFACTS_URI:?give s3://BUCKET/mlflow}" "$@"
    ;;
healthy)
    case "$(cat /tmp/role 2>/dev/null || echo command)" in
    head) exec ray health-check --address 127.0.0.1:6379 ;;
    worker) exec ray health-check --address "$HEAD_ADDRESS" ;;
    mlflow) exec python -c "import urllib.request as u; u.urlopen('http://127.0.0.1:5000/health', timeout=5)" ;;
    *) exit 0 ;;
    esac
    ;;
"") die "give a role (head, worker, mlflow) or a command" ;;
*) exec "$role" "$@" ;;
esac
