#!/usr/bin/env bash
# Builds images with podman or docker: deploy/images/build.sh [IMAGE …]
#
# IMAGE is training-cpu, serving-cpu, clients-cpu (these three if none is named), training-gpu or serving-gpu. Tags are
# atelier-training:VERSION-cpu and so on, with the version in pyproject.toml.
#
#   ENGINE             podman or docker; if not set, whichever is installed
#   IMAGE_BUILD_FLAGS  more flags for `ENGINE build`
#   PIP_INDEX_URL PIP_EXTRA_INDEX_URL PIP_FIND_LINKS PIP_CERT TORCH_INDEX   if set, are passed on to pip
set -euo pipefail
cd "$(dirname "$0")/../.."

engine=${ENGINE:-$(command -v podman || command -v docker || true)}
if [[ -z $engine ]]; then
    echo "images: found neither podman nor docker; install one, or name an engine with ENGINE=" >&2
    exit 2
fi

version=$(sed -n 's/^version = "\(.*\)"$/\1/p' pyproject.toml)
read -ra flags <<<"${IMAGE_BUILD_FLAGS:-}"
commit=$(git describe --always --exclude='*' --abbrev=40 --dirty 2>/dev/null || echo unknown)
flags+=(--build-arg "COMMIT=$commit")
for name in PIP_INDEX_URL PIP_EXTRA_INDEX_URL PIP_FIND_LINKS PIP_CERT TORCH_INDEX; do
    if [[ -v $name ]]; then flags+=(--build-arg "$name=${!name}"); fi
done

if [[ $# -eq 0 ]]; then set -- training-cpu serving-cpu clients-cpu; fi
for image; do
    target=${image%-*} accelerator=${image##*-}
    file=deploy/images/$accelerator.Dockerfile
    if ! grep -qsE " AS $target\$" "$file"; then
        echo "images: no $image; there are training-cpu, serving-cpu, clients-cpu, training-gpu, serving-gpu" >&2
        exit 2
    fi
    tag=atelier-$target:$version-$accelerator
    "$engine" build "${flags[@]}" --file "$file" --target "$target" --tag "$tag" .
    bytes=$("$engine" image inspect --format '{{.Size}}' "$tag")
    echo "images: $tag, $((bytes / 1000000)) MB"
done
