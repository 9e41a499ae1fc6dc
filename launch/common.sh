# shellcheck shell=bash
# What the launchers share. Every command goes through `run`, which with --dry-run prints it, quoted so that it can be pasted.

set -euo pipefail
DRY_RUN=${DRY_RUN:-}
if [ "${1:-}" = "--dry-run" ]; then
    DRY_RUN=1
    shift
fi

run() {
    if [ -n "$DRY_RUN" ]; then
        printf '%q ' "$@" | sed 's/ $//'
        printf '\n'
    else
        "$@"
    fi
}

# The first of several names that is neither set nor has a default ends the script.
need() {
    local setting
    for setting in "$@"; do
        if [ -z "${!setting:-}" ]; then
            echo "error: set $setting, as the comment on top of $0 says" >&2
            exit 2
        fi
    done
}

# The words of a command as one line for another shell.
line() {
    printf '%q ' "$@" | sed 's/ $//'
}
