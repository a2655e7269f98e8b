/*
 * checksum.c: ones' complement sums (RFC 1071), portable and by wide vectors, plain and fused with a copy.
 *
 * The sum is taken over words in the machine's own byte order: ones' complement addition commutes with a byte swap, so
 * folding and storing without a swap gives the right bytes (RFC 1071, 2(B)). The accumulator is 64 bits wide with an
 * end-around carry. Pure: the CPU is asked through the compiler's own feature words at each call, which costs one load.
 */
#include "checksum.h"

#include "wire.h"

FP_INLINE uint64_t fp_sum_add(uint64_t sum, uint64_t value)
{
    sum += value;
    return sum + (sum < value);
}

/* The last 0..31 bytes: words of 8, then what is left of one. */
FP_INLINE uint64_t fp_sum_words(uint8_t *to, const uint8_t *from, size_t bytes, uint64_t sum, const bool copy)
{
    for (; bytes >= 8; bytes -= 8, from += 8) {
        uint64_t word = fp_load64(from);
        if (copy) {
            memcpy(to, &word, 8);
            to += 8;
        }
        sum = fp_sum_add(sum, word);
    }
    if (bytes > 0) {
        /* At most 7 bytes: never past the end, and the missing ones count as zero. */
        uint8_t last[8] = {0};
        for (size_t i = 0; i < bytes; i++) {
            last[i] = from[i];
            if (copy)
                to[i] = from[i];
        }
        sum = fp_sum_add(sum, fp_load64(last));
    }
    return sum;
}

/* Two 64-bit lanes; compilers make of it what every machine of a kind has (SSE2, NEON), or plain words. */
typedef uint64_t fp_lanes __attribute__((vector_size(16)));

/* Each lane takes 32-bit halves and cannot overflow before 2^32 additions. */
FP_INLINE uint64_t fp_sum_scalar(uint8_t *to, const uint8_t *from, size_t bytes, uint64_t sum, const bool copy)
{
    fp_lanes low[2] = {{0, 0}, {0, 0}};
    fp_lanes high[2] = {{0, 0}, {0, 0}};
    for (; bytes >= 32; bytes -= 32, from += 32) {
        fp_lanes words[2];
        memcpy(words, from, sizeof words);
        if (copy) {
            memcpy(to, words, sizeof words);
            to += 32;
        }
        for (int i = 0; i < 2; i++) {
            low[i] += words[i] & 0xffffffff;
            high[i] += words[i] >> 32;
        }
    }
    fp_lanes all = (low[0] + low[1]) + (high[0] + high[1]);
    return fp_sum_words(to, from, bytes, fp_sum_add(fp_sum_add(sum, all[0]), all[1]), copy);
}

#if defined(__x86_64__)
#include "checksum_x86.h"

static FP_AVX2 uint64_t sum_avx2(const uint8_t *from, size_t bytes, uint64_t sum)
{
    return fp_sum_avx2(NULL, from, bytes, sum, false);
}

static FP_AVX2 uint64_t copy_sum_avx2(uint8_t *to, const uint8_t *from, size_t bytes, uint64_t sum)
{
    return fp_sum_avx2(to, from, bytes, sum, true);
}

static FP_AVX512 uint64_t sum_avx512(const uint8_t *from, size_t bytes, uint64_t sum)
{
    return fp_sum_avx512(NULL, from, bytes, sum, false);
}

static FP_AVX512 uint64_t copy_sum_avx512(uint8_t *to, const uint8_t *from, size_t bytes, uint64_t sum)
{
    return fp_sum_avx512(to, from, bytes, sum, true);
}

bool fp_cpu_has(enum fp_cpu_kind kind)
{
    switch (kind) {
    case FP_CPU_SCALAR:
        return true;
    case FP_CPU_AVX2:
        return __builtin_cpu_supports("avx2");
    case FP_CPU_AVX512:
        return __builtin_cpu_supports("avx512bw");
    default:
        return false;
    }
}
#else
bool fp_cpu_has(enum fp_cpu_kind kind)
{
    return kind == FP_CPU_SCALAR;
}
#endif

const char *fp_cpu_name(enum fp_cpu_kind kind)
{
    switch (kind) {
    case FP_CPU_SCALAR:
        return "scalar";
    case FP_CPU_AVX2:
        return "avx2";
    case FP_CPU_AVX512:
        return "avx512";
    default:
        return NULL;
    }
}

enum fp_cpu_kind fp_cpu_best(void)
{
    if (fp_cpu_has(FP_CPU_AVX512))
        return FP_CPU_AVX512;
    return fp_cpu_has(FP_CPU_AVX2) ? FP_CPU_AVX2 : FP_CPU_SCALAR;
}

const char *fp_cpu(void)
{
    return fp_cpu_name(fp_cpu_best());
}

uint64_t fp_sum_on(enum fp_cpu_kind kind, const void *data, size_t bytes, uint64_t sum)
{
#if defined(__x86_64__)
    if (kind == FP_CPU_AVX512)
        return sum_avx512(data, bytes, sum);
    if (kind == FP_CPU_AVX2)
        return sum_avx2(data, bytes, sum);
#endif
    (void)kind;
    return fp_sum_scalar(NULL, data, bytes, sum, false);
}

uint64_t fp_copy_sum_on(enum fp_cpu_kind kind, void *restrict to, const void *restrict from, size_t bytes, uint64_t sum)
{
#if defined(__x86_64__)
    if (kind == FP_CPU_AVX512)
        return copy_sum_avx512(to, from, bytes, sum);
    if (kind == FP_CPU_AVX2)
        return copy_sum_avx2(to, from, bytes, sum);
#endif
    (void)kind;
    return fp_sum_scalar(to, from, bytes, sum, true);
}

uint64_t fp_sum(const void *data, size_t bytes, uint64_t sum)
{
    return fp_sum_on(fp_cpu_best(), data, bytes, sum);
}

uint64_t fp_copy_sum(void *restrict to, const void *restrict from, size_t bytes, uint64_t sum)
{
    return fp_copy_sum_on(fp_cpu_best(), to, from, bytes, sum);
}

uint16_t fp_fold(uint64_t sum)
{
    return fp_folded(sum);
}
