#!/usr/bin/env bash
# Makes .venv-triton: a real tritonserver 24.10 with its Python backend, and the packages that served models need.
# All from the package index, about 100 MB; done once. `.venv-triton/tritonserver` starts it.
set -euo pipefail
cd "$(dirname "$0")/../.."
env=.venv-triton
stamp=$env/.made
# Raise this when what is made here changes.
made="3 nvidia-pytriton 0.7.0"
[ -f $stamp ] && [ "$(cat $stamp)" = "$made" ] && exit 0
[ "$(uname -sm)" = "Linux x86_64" ] || { echo "no tritonserver for $(uname -sm)" >&2; exit 0; }
rm -rf $env
python3 -m venv $env
pip="$env/bin/pip -q --disable-pip-version-check"
# Stubs of the Python backend up to 24.10 need numpy < 2: with 2 they die on strings.
grep -v '^numpy==' constraints.txt > $env/constraints.txt
$pip install -c $env/constraints.txt 'numpy<2' onnxruntime tokenizers
$pip download --no-deps -d $env/wheel nvidia-pytriton==0.7.0
$env/bin/python -m zipfile -e $env/wheel/*.whl $env/unpacked
server=$env/server
mv $env/unpacked/pytriton/tritonserver $server
mv $env/unpacked/nvidia_pytriton.libs $server/libs
rm -rf $env/unpacked $env/wheel
minor=$($env/bin/python -c 'import sys; print("%d.%d" % sys.version_info[:2])')
stub=$server/backends/python/triton_python_backend_stub
cp "$server/python_backend_stubs/$minor/triton_python_backend_stub" $stub
rm -rf $server/python_backend_stubs
chmod +x $stub $server/bin/tritonserver
cat > $env/tritonserver <<'LAUNCH'
#!/usr/bin/env bash
# The stub takes its packages from the first Python on PATH, and its libpython from the base interpreter.
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
lib="$("$here/bin/python" -c 'import sysconfig; print(sysconfig.get_config_var("LIBDIR"))')"
export PATH="$here/bin:$PATH" LD_LIBRARY_PATH="$lib:$here/server/libs"
exec "$here/server/bin/tritonserver" --backend-directory="$here/server/backends" \
    --cache-directory="$here/server/caches" "$@"
LAUNCH
lib=$($env/bin/python -c 'import sysconfig; print(sysconfig.get_config_var("LIBDIR"))')
missing=$(LD_LIBRARY_PATH="$lib:$server/libs" ldd $stub $server/bin/tritonserver | grep 'not found' || true)
if [ -n "$missing" ]; then
    # Without the launcher the tests skip, and name this script.
    echo "tritonserver does not run here:" $missing >&2
    rm $env/tritonserver
else
    chmod +x $env/tritonserver
fi
echo "$made" > $stamp
