#!/bin/sh
# Fuzzing the pure C core. Run from anywhere.
#
#   build.sh run [TARGET [SECONDS]]   build with libFuzzer (clang), ASan and UBSan; run one target or all, 60 s each.
#                                     New inputs and crashes go to build/fuzz/; seeds are in tests/fuzz/corpus/TARGET.
#   build.sh replay DIRECTORY         build each target with ASan, UBSan and a main of its own into DIRECTORY, for the test suite.
#   build.sh targets                  list the targets
#
# CC chooses the compiler of `replay` (default: clang, else gcc).
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
cd "$root"
targets="encap_frame decap_train table round_trip"
flags="-std=c11 -D_GNU_SOURCE -O1 -g -fno-omit-frame-pointer -fno-sanitize-recover=all -Wall -Wextra -Wshadow -Wconversion -Werror -Icsrc -Icsrc/fuzz"
pure=$(ls csrc/*.c | grep -v '^csrc/worker')

build_replay() {
    out=$1
    compiler=${CC:-$(command -v clang || echo gcc)}
    mkdir -p "$out"
    for source in $pure csrc/fuzz/replay.c; do
        # shellcheck disable=SC2086
        "$compiler" $flags -fsanitize=address,undefined -c "$source" -o "$out/$(basename "$source" .c).o" &
    done
    wait
    for target in $targets; do
        # shellcheck disable=SC2086
        "$compiler" $flags -fsanitize=address,undefined "csrc/fuzz/$target.c" "$out"/*.o -o "$out/$target" &
    done
    wait
    for target in $targets; do
        [ -x "$out/$target" ] || { echo "build.sh: $target could not be built" >&2; exit 1; }
    done
}

run_target() {
    target=$1
    mkdir -p "build/fuzz/corpus/$target"
    # shellcheck disable=SC2086
    clang $flags -fsanitize=fuzzer,address,undefined "csrc/fuzz/$target.c" $pure -o "build/fuzz/$target"
    echo "fuzz: $target for $2 s" >&2
    "build/fuzz/$target" -max_total_time="$2" -max_len=70000 -print_final_stats=1 -artifact_prefix="build/fuzz/$target-" \
        "build/fuzz/corpus/$target" "tests/fuzz/corpus/$target"
}

case ${1:-} in
replay)
    build_replay "${2:?DIRECTORY is missing}"
    ;;
run)
    command -v clang >/dev/null || { echo "build.sh: libFuzzer needs clang (apt-get install clang libclang-rt-14-dev)" >&2; exit 1; }
    for target in ${2:-$targets}; do
        [ -f "csrc/fuzz/$target.c" ] || { echo "build.sh: no target $target; there are: $targets" >&2; exit 2; }
        run_target "$target" "${3:-60}"
    done
    ;;
targets)
    echo "$targets"
    ;;
*)
    sed -n '2,10s/^# \{0,1\}//p' "$0" >&2
    exit 2
    ;;
esac
