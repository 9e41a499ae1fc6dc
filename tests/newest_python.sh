#!/usr/bin/env bash
# The tests on the newest Python of a Debian release, and on the newest of all dependencies, in a Debian of its own.
#
#   tests/newest_python.sh          the tiny quick start and `pytest --part`: some minutes, two of them to install
#   tests/newest_python.sh whole    the tiny quick start and the whole suite
#
# Root, debootstrap and the right to mount are needed. SUITE names another release. FOLDER keeps the Debian for the next time
# (2 GB); without it there is a temporary one. The mirror is apt's, the certificates and the index of packages are this machine's.
set -euo pipefail
cd "$(dirname "$0")/.."
suite=${SUITE:-trixie}
folder=${FOLDER:-}

fail() {
    echo "newest_python.sh: $*" >&2
    exit 1
}

case "${1:-}" in
    "") options="--part" ;;
    whole) options="" ;;
    *) fail "the only argument is 'whole'" ;;
esac

((EUID == 0)) || fail "needs root, to make a Debian and to chroot into it"
command -v debootstrap > /dev/null || fail "needs debootstrap: apt-get install debootstrap"
unshare --mount true 2> /dev/null || fail "needs the right to mount, which this container does not have"
mirror=$(apt-get indextargets --format '$(ORIGIN) $(REPO_URI)' 'Created-By: Packages' 2> /dev/null |
    awk '$1 == "Debian" && $2 !~ /security/ { print $2; exit }') || true
[[ $mirror ]] || fail "apt knows no mirror of Debian here: apt-get update, or another machine"
index=${PIP_INDEX_URL:-$(python3 -m pip config get global.index-url 2> /dev/null || true)}

if [[ -z $folder ]]; then
    folder=$(mktemp -d)
    trap 'rm -rf --one-file-system "$folder"' EXIT
fi
if [[ ! -x $folder/venv/bin/python ]]; then
    debootstrap --variant=minbase --include=python3,python3-venv,python3-dev,ca-certificates "$suite" "$folder" "$mirror" \
        > "$folder.log" 2>&1 || fail "debootstrap failed: $(tail -n 1 "$folder.log"); see $folder.log"
    rm -f "$folder.log"
fi
for file in /etc/resolv.conf /etc/hosts /etc/ssl/certs/ca-certificates.crt; do
    if [[ -f $file ]]; then
        cp --remove-destination --dereference "$file" "$folder$file"
    fi
done
rm -rf --one-file-system "$folder/src"
mkdir "$folder/src"
tar -c --exclude={.git,.venv,./runs,./build,'*.egg-info',__pycache__,'.*_cache'} . | tar -x --no-same-owner -C "$folder/src"

cat > "$folder/check" << 'END'
set -euo pipefail
cd /src
[[ -x /venv/bin/python ]] || python3 -m venv /venv
source /venv/bin/activate
pip install --quiet --upgrade '.[test]'
python -c 'import sys, jax, flax, numpy; print("Python", sys.version.split()[0], "JAX", jax.__version__,
           "Flax", flax.__version__, "NumPy", numpy.__version__)'
python -m diffusion_jax.main --config configs/digits.py:tiny --workdir /tmp/quick_start
python -m pytest "$@"
END
environment=(HOME=/root LANG=C.UTF-8 PATH=/usr/sbin:/usr/bin:/sbin:/bin PIP_CERT=/etc/ssl/certs/ca-certificates.crt)
for name in http_proxy https_proxy no_proxy HTTP_PROXY HTTPS_PROXY NO_PROXY; do
    [[ -z ${!name:-} ]] || environment+=("$name=${!name}")
done
[[ -z $index ]] || environment+=("PIP_INDEX_URL=$index")

# The mounts are seen in this namespace only and end with it, so that removing the folder can never reach through them.
unshare --mount bash -euo pipefail -c '
    folder=$1
    mount -t proc proc "$folder/proc"
    mount -t sysfs sysfs "$folder/sys"
    mount --rbind /dev "$folder/dev"
    rm -rf "$folder/tmp/quick_start"
    exec chroot "$folder" env -i "${@:2}"
' - "$folder" "${environment[@]}" bash /check $options < /dev/null
