/*
 * checksum_x86.h: the vector implementations of the ones' complement sum, for checksum.c alone.
 *
 * A vector of 64-bit lanes takes the lower and the upper 32 bits of each lane apart and adds them up; lanes cannot overflow
 * before 2^32 additions. Each function is compiled for its instruction set by attribute, so the file needs no -m flags.
 */
#ifndef FLANPY_CHECKSUM_X86_H
#define FLANPY_CHECKSUM_X86_H

#include <immintrin.h>

#include "wire.h"

#define FP_AVX2 __attribute__((target("avx2")))
#define FP_AVX512 __attribute__((target("avx512f,avx512bw")))

/* `to` NULL sums only; constant at each call, so the compiler drops the stores. */
static inline __attribute__((always_inline)) FP_AVX2 uint64_t fp_sum_avx2(uint8_t *to, const uint8_t *from, size_t bytes,
                                                                          uint64_t sum, const bool copy)
{
    const __m256i mask = _mm256_set1_epi64x(0xffffffff);
    __m256i low[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
    __m256i high[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
    while (bytes >= 64) {
        for (int i = 0; i < 2; i++) {
            __m256i words = _mm256_loadu_si256((const __m256i_u *)(const void *)(from + 32 * i));
            if (copy)
                _mm256_storeu_si256((__m256i_u *)(void *)(to + 32 * i), words);
            low[i] = _mm256_add_epi64(low[i], _mm256_and_si256(words, mask));
            high[i] = _mm256_add_epi64(high[i], _mm256_srli_epi64(words, 32));
        }
        from += 64;
        bytes -= 64;
        if (copy)
            to += 64;
    }
    __m256i all = _mm256_add_epi64(_mm256_add_epi64(low[0], low[1]), _mm256_add_epi64(high[0], high[1]));
    __m128i half = _mm_add_epi64(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1));
    uint64_t vector = (uint64_t)_mm_extract_epi64(half, 0) + (uint64_t)_mm_extract_epi64(half, 1);
    sum = fp_sum_add(sum, vector);
    return fp_sum_words(to, from, bytes, sum, copy);
}

/* As above, 64 bytes a vector; the rest, of any length, goes through one masked load. */
static inline __attribute__((always_inline)) FP_AVX512 uint64_t fp_sum_avx512(uint8_t *to, const uint8_t *from, size_t bytes,
                                                                              uint64_t sum, const bool copy)
{
    const __m512i mask = _mm512_set1_epi64(0xffffffff);
    __m512i low[2] = {_mm512_setzero_si512(), _mm512_setzero_si512()};
    __m512i high[2] = {_mm512_setzero_si512(), _mm512_setzero_si512()};
    while (bytes >= 128) {
        for (int i = 0; i < 2; i++) {
            __m512i words = _mm512_loadu_si512(from + 64 * i);
            if (copy)
                _mm512_storeu_si512(to + 64 * i, words);
            low[i] = _mm512_add_epi64(low[i], _mm512_and_si512(words, mask));
            high[i] = _mm512_add_epi64(high[i], _mm512_srli_epi64(words, 32));
        }
        from += 128;
        bytes -= 128;
        if (copy)
            to += 128;
    }
    /* At most two more steps: 0..127 bytes are left. A masked-out byte is neither read nor written. */
    while (bytes > 0) {
        size_t step = bytes < 64 ? bytes : 64;
        __mmask64 lanes = ~0ull >> (64 - step);
        __m512i words = _mm512_maskz_loadu_epi8(lanes, from);
        if (copy) {
            _mm512_mask_storeu_epi8(to, lanes, words);
            to += step;
        }
        low[0] = _mm512_add_epi64(low[0], _mm512_and_si512(words, mask));
        high[0] = _mm512_add_epi64(high[0], _mm512_srli_epi64(words, 32));
        from += step;
        bytes -= step;
    }
    __m512i all = _mm512_add_epi64(_mm512_add_epi64(low[0], low[1]), _mm512_add_epi64(high[0], high[1]));
    return fp_sum_add(sum, (uint64_t)_mm512_reduce_add_epi64(all));
}

#endif
