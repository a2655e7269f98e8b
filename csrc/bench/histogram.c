/*
 * histogram.c: counts of nanosecond values in log-linear buckets, and the clock of the benchmarks.
 *
 * Values below 64 have a bucket each; from there every power of two is cut into 32 equal steps.
 */
#include "bench.h"

#include <time.h>

#define LINEAR 64u
#define STEP_BITS 5u

static uint32_t bucket_of(uint64_t ns) {
    if (ns < LINEAR)
        return (uint32_t)ns;
    uint32_t top = 63u - (uint32_t)__builtin_clzll(ns);
    uint32_t step = (uint32_t)(ns >> (top - STEP_BITS)) & ((1u << STEP_BITS) - 1u);
    uint32_t bucket = LINEAR + ((top - 6u) << STEP_BITS) + step;
    return bucket < FB_BUCKETS ? bucket : FB_BUCKETS - 1u;
}

uint64_t fb_histogram_floor(uint32_t bucket) {
    if (bucket < LINEAR)
        return bucket;
    uint32_t top = 6u + ((bucket - LINEAR) >> STEP_BITS);
    uint64_t step = (bucket - LINEAR) & ((1u << STEP_BITS) - 1u);
    return (1ull << top) + (step << (top - STEP_BITS));
}

void fb_histogram_add(struct fb_histogram *histogram, uint64_t ns) {
    if (histogram->count == 0 || ns < histogram->min_ns)
        histogram->min_ns = ns;
    if (ns > histogram->max_ns)
        histogram->max_ns = ns;
    histogram->count++;
    histogram->sum_ns += ns;
    histogram->buckets[bucket_of(ns)]++;
}

uint64_t fb_histogram_quantile(const struct fb_histogram *histogram, uint32_t ten_thousandths) {
    uint64_t wanted = histogram->count * ten_thousandths / 10000u;
    uint64_t seen = 0;
    for (uint32_t bucket = 0; bucket < FB_BUCKETS; bucket++) {
        seen += histogram->buckets[bucket];
        if (seen > wanted)
            return fb_histogram_floor(bucket);
    }
    return histogram->max_ns;
}

uint64_t fb_now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (uint64_t)now.tv_sec * 1000000000ull + (uint64_t)now.tv_nsec;
}
