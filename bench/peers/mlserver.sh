#!/bin/sh
# Start MLServer from the virtual environment VENV: mlserver.sh VENV FOLDER HTTP_PORT GRPC_PORT METRICS_PORT
set -e
venv=$(cd "$1" && pwd)
cd "$2"
export MLSERVER_HOST=127.0.0.1 MLSERVER_HTTP_PORT="$3" MLSERVER_GRPC_PORT="$4" MLSERVER_METRICS_PORT="$5"
# One process, which is what one core has room for, and no line for each request.
export MLSERVER_PARALLEL_WORKERS=0 MLSERVER_DEBUG=false
exec "$venv/bin/mlserver" start .
