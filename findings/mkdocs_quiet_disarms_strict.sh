#!/usr/bin/env bash
# MkDocs 1.6.1: `mkdocs build --strict --quiet` passes a page whose link leads nowhere, with exit code 0, where
# `mkdocs build --strict` ends with 1. --quiet lifts the level of the logger itself, and --strict counts what the
# logger emits: as a check, such as of a pipeline that wants few lines, the two together check nothing.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet mkdocs==1.6.1
cd "$folder"
mkdir docs
echo 'site_name: Two pages' > mkdocs.yml
echo '[The other](other.md)' > docs/index.md
code() {
    local found=0
    "$folder/venv/bin/mkdocs" build "$@" >"$folder/log" 2>&1 || found=$?
    echo "$found"
}
strict=$(code --strict)
grep "link 'other.md'" log
both=$(code --strict --quiet)
echo "--strict ends with $strict, --strict --quiet with $both"
if grep -q "link 'other.md'" log || [[ $strict != 1 || $both != 0 ]]; then
    echo 'behaviour changed' >&2
    exit 1
fi
