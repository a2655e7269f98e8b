/*
 * checksum.h: what the rest of the core needs of the Internet checksum besides flanpy.h, and the implementations one by
 * one, so that tests and benchmarks reach each of them on the machine at hand.
 */
#ifndef FLANPY_CHECKSUM_H
#define FLANPY_CHECKSUM_H

#include "flanpy.h"

enum fp_cpu_kind { FP_CPU_SCALAR, FP_CPU_AVX2, FP_CPU_AVX512, FP_CPU_KINDS };

/* Name of an implementation, and whether this CPU (and this build) has it. */
const char *fp_cpu_name(enum fp_cpu_kind kind);
bool fp_cpu_has(enum fp_cpu_kind kind);
enum fp_cpu_kind fp_cpu_best(void);

/* As fp_sum and fp_copy_sum, by one implementation; only where fp_cpu_has says so. */
uint64_t fp_sum_on(enum fp_cpu_kind kind, const void *data, size_t bytes, uint64_t sum);
uint64_t fp_copy_sum_on(enum fp_cpu_kind kind, void *restrict to, const void *restrict from, size_t bytes, uint64_t sum);

#endif
