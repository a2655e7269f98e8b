#!/bin/sh
# Fuzzing the pure C core. Run from anywhere.
#
#   build.sh run [TARGET [SECONDS]]   build with libFuzzer (clang), ASan and UBSan; run one target or all, 60 s each.
#                                     New inputs and crashes go to build/fuzz/; seeds are in tests/fuzz/corpus/TARGET.
#   build.sh count [N [TARGET]]       the same for N executions (default: 10 million) each, at the least priority, and write into
#                                     tests/fuzz/executions.txt how many each target has survived
#   build.sh keep [TARGET]            keep what has been found: the fewest inputs (of at most 600 bytes) that reach all that is reached now,
#                                     in tests/fuzz/found/TARGET.tar.gz, where the other commands and the test suite begin
#   build.sh replay DIRECTORY         build each target with ASan, UBSan and a main of its own into DIRECTORY, for the test suite.
#   build.sh targets                  list the targets
#
# CC chooses the compiler of `replay` (default: clang, else gcc).
set -eu
top=$(cd "$(dirname "$0")/../.." && pwd)
cd "$top"
targets="encap_frame decap_train table round_trip table_history protocol"
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

need_clang() {
    command -v clang >/dev/null || { echo "build.sh: libFuzzer needs clang (apt-get install clang libclang-rt-14-dev)" >&2; exit 1; }
    for target in $1; do
        [ -f "csrc/fuzz/$target.c" ] || { echo "build.sh: no target $target; there are: $targets" >&2; exit 2; }
    done
}

# build_target TARGET: tables get a root of 256 values; with its 65,536 it would be walked for most of the time (`replay` has them). Comparisons
# guide the fuzzer, but cost most of the time where many small tables are built.
build_target() {
    mkdir -p "build/fuzz/corpus/$1"
    [ ! -f "tests/fuzz/found/$1.tar.gz" ] || tar -xzf "tests/fuzz/found/$1.tar.gz" -C "build/fuzz/corpus/$1"
    case $1 in
    table) only=-DFP_TABLE_ROOT=256u ;;
    table_history) only="-DFP_TABLE_ROOT=256u -fno-sanitize-coverage=trace-cmp" ;;
    *) only= ;;
    esac
    # shellcheck disable=SC2086
    clang $flags -O2 $only -fsanitize=fuzzer,address,undefined "csrc/fuzz/$1.c" $pure -o "build/fuzz/$1"
}

# fuzz_target TARGET LIBFUZZER-OPTIONS...: a small quarantine saves the page faults that each input's memory would cost
fuzz_target() {
    target=$1
    shift
    ASAN_OPTIONS=quarantine_size_mb=8 "build/fuzz/$target" "$@" -print_final_stats=1 -artifact_prefix="build/fuzz/$target-" \
        "build/fuzz/corpus/$target" "tests/fuzz/corpus/$target"
}

keep_target() {
    build_target "$1"
    rm -rf build/fuzz/kept
    mkdir -p build/fuzz/kept tests/fuzz/found
    "build/fuzz/$1" -set_cover_merge=1 -max_len=600 build/fuzz/kept "build/fuzz/corpus/$1" "tests/fuzz/corpus/$1" 2>"build/fuzz/$1-keep.log" ||
        { tail -5 "build/fuzz/$1-keep.log" >&2; exit 1; }
    tar --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner --mode=644 -C build/fuzz/kept -c $(ls build/fuzz/kept) |
        gzip -9n >"tests/fuzz/found/$1.tar.gz"
    echo "fuzz: $1: $(ls build/fuzz/kept | wc -l) inputs kept" >&2
}

count_target() {
    build_target "$1"
    echo "fuzz: $1, $2 executions" >&2
    nice -n 19 "$0" fuzz "$1" -runs="$2" -max_len=4096 2>"build/fuzz/$1.log" || { tail -40 "build/fuzz/$1.log" >&2; exit 1; }
    done=$(sed -n 's/^stat::number_of_executed_units: //p' "build/fuzz/$1.log")
    counts=tests/fuzz/executions.txt
    { grep -v "^$1 " $counts 2>/dev/null || true; echo "$1 $done"; } | sort >"build/fuzz/counts"
    cp build/fuzz/counts $counts
}

case ${1:-} in
replay)
    build_replay "${2:?DIRECTORY is missing}"
    ;;
run)
    need_clang "${2:-$targets}"
    for target in ${2:-$targets}; do
        build_target "$target"
        echo "fuzz: $target for ${3:-60} s" >&2
        fuzz_target "$target" -max_total_time="${3:-60}" -max_len=70000
    done
    ;;
count)
    need_clang "${3:-$targets}"
    for target in ${3:-$targets}; do
        count_target "$target" "${2:-10000000}"
    done
    ;;
keep)
    need_clang "${2:-$targets}"
    for target in ${2:-$targets}; do
        keep_target "$target"
    done
    ;;
fuzz)
    shift
    fuzz_target "$@"
    ;;
targets)
    echo "$targets"
    ;;
*)
    sed -n '2,14s/^# \{0,1\}//p' "$0" >&2
    exit 2
    ;;
esac
