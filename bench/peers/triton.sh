#!/bin/sh
# Start Triton from the virtual environment VENV: triton.sh VENV FOLDER HTTP_PORT GRPC_PORT METRICS_PORT
set -e
packages=$(echo "$1"/lib/python3.*/site-packages)
root=$packages/pytriton/tritonserver
version=${packages#*/lib/python}
chmod +x "$root/bin/tritonserver"
stub=$root/backends/python/triton_python_backend_stub
[ -x "$stub" ] || install -m 755 "$root/python_backend_stubs/${version%%/*}/triton_python_backend_stub" "$stub"
export LD_LIBRARY_PATH="$packages/nvidia_pytriton.libs" BACKEND_PACKAGES="$packages"
exec "$root/bin/tritonserver" --model-repository="$2" --backend-directory="$root/backends" \
    --http-address 127.0.0.1 --http-port "$3" --grpc-address 127.0.0.1 --grpc-port "$4" \
    --metrics-address 127.0.0.1 --metrics-port "$5" --disable-auto-complete-config
