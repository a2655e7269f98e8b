/*
 * core.c: how long the pure functions of the C core take, by timing loops in C.
 *
 * A batch is prepared untimed (the functions change their input), then timed as a whole by the CPU's time stamp
 * counter (elsewhere by CLOCK_MONOTONIC); the median of all batches counts, so that an interrupted one does no harm. A batch is what a worker
 * does between two sends: 64 single packets or one superpacket, to one peer, or (`alone`) one packet, 64 of which are timed together. Each batch
 * takes another peer at random, so a large table is met cold. Resetting the core between batches is part of the time.
 *
 * Packets, arena and counters are the same memory whatever the number of routes, and peers are computed: the table alone differs.
 */
#include "core_stage.h"

#include <errno.h>
#include <stdlib.h>
#include <time.h>

#define SEGMENTS 46u        /* a full TCP superpacket at MTU 1472 */
#define SLOT_BYTES 2048u    /* of a single packet */
#define NAIVE_LOOKUPS 64u   /* a list of 65,536 takes its time */

static uint64_t clock_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000ull + (uint64_t)now.tv_nsec;
}

/* Cycles of the time stamp counter, which ticks evenly whatever the core's clock does; 0 where there is none. */
static uint64_t ticks(void)
{
#if defined(__x86_64__)
    return __builtin_ia32_rdtsc();
#else
    return 0;
#endif
}

#define SAMPLES_MAX 4096u

/* Times of batches, all of the same size, in ticks (nanoseconds where there are none). */
struct timer {
    uint64_t started;
    uint64_t samples[SAMPLES_MAX];
    uint64_t batches; /* from SAMPLES_MAX on, the oldest are overwritten */
    uint64_t packets; /* of one batch */
    uint64_t bytes;
};

static uint64_t stamp(void)
{
    const uint64_t now = ticks();
    return now != 0 ? now : clock_ns();
}

static void begin(struct timer *timer)
{
    timer->started = stamp();
}

static void end(struct timer *timer, uint64_t packets, uint64_t bytes)
{
    timer->samples[timer->batches++ % SAMPLES_MAX] = stamp() - timer->started;
    timer->packets = packets;
    timer->bytes = bytes;
}

static int compare(const void *left, const void *right)
{
    const uint64_t a = *(const uint64_t *)left, b = *(const uint64_t *)right;
    return (a > b) - (a < b);
}

/* The median batch stands for all: one that was interrupted must not count. */
static void conclude(struct timer *timer, double ns_a_stamp, struct fb_core_time *out)
{
    const size_t count = timer->batches < SAMPLES_MAX ? (size_t)timer->batches : SAMPLES_MAX;
    if (count == 0)
        return;
    qsort(timer->samples, count, sizeof *timer->samples, compare);
    const uint64_t median = timer->samples[count / 2];
    out->batches = timer->batches;
    out->packets = timer->packets;
    out->bytes = timer->bytes;
    out->ns = (double)median * ns_a_stamp;
    out->ticks = ticks() != 0 ? median : 0;
}

/* Keeps the compiler from leaving out what nobody reads. */
static void used(uint64_t value)
{
    __asm__ volatile("" : : "r"(value) : "memory");
}

static int time_lookup(struct fb_stage *stage, const struct fb_core *what, struct timer *timer)
{
    const uint32_t lookups = what->naive ? NAIVE_LOOKUPS : FB_DESTINATIONS;
    uint32_t hop;
    const uint32_t same = fb_stage_peer(stage, &hop);
    for (uint32_t i = 0; i < lookups; i++)
        stage->destinations[i] = what->repeated ? same : fb_stage_peer(stage, &hop);
    uint64_t found = 0;
    begin(timer);
    if (what->naive)
        for (uint32_t i = 0; i < lookups; i++)
            found += fb_naive_lookup(&stage->list, stage->destinations[i]);
    else
        for (uint32_t i = 0; i < lookups; i++)
            found += fp_table_lookup4(stage->table, stage->destinations[i]);
    used(found);
    end(timer, lookups, (uint64_t)lookups * what->packet_bytes);
    return 0;
}

/* Checksum, or copy and checksum, of FB_BATCH packets. */
static int time_sum(struct fb_stage *stage, const struct fb_core *what, struct timer *timer)
{
    const size_t bytes = what->packet_bytes;
    const bool copy = what->operation == FB_COPY_SUM;
    uint64_t sum = 0;
    begin(timer);
    for (uint32_t i = 0; i < FB_BATCH; i++) {
        const uint8_t *from = stage->work + (size_t)i * SLOT_BYTES;
        uint8_t *to = stage->out + (size_t)i * SLOT_BYTES;
        if (what->naive)
            sum += copy ? fb_naive_copy_sum(to, from, bytes) : fb_naive_sum(from, bytes);
        else
            sum += fp_fold(copy ? fp_copy_sum(to, from, bytes, 0) : fp_sum(from, bytes, 0));
    }
    used(sum);
    end(timer, FB_BATCH, FB_BATCH * bytes);
    return 0;
}

static void copy_pattern(const struct fb_stage *stage, uint8_t *to, uint32_t copies, size_t slot_bytes)
{
    for (uint32_t i = 0; i < copies; i++)
        memcpy(to + (size_t)i * slot_bytes, stage->pattern, stage->pattern_bytes);
}

/* One turn of a worker: frames to one peer, and the sends that they make. How many frames were taken. */
static uint32_t encap_turn(struct fb_stage *stage, bool naive, uint8_t *first, uint32_t frames)
{
    const struct fp_send *sends;
    uint32_t taken = 0;
    for (uint32_t i = 0; i < frames; i++) {
        uint8_t *frame = first + (size_t)i * SLOT_BYTES;
        if (naive)
            taken += fb_naive_encap(&stage->list, frame, stage->pattern_bytes, stage->out) != 0;
        else
            taken += fp_encap_frame(stage->encap, &stage->context, frame, stage->pattern_bytes) == FP_ENCAPSULATED;
    }
    if (!naive) {
        used(fp_encap_sends(stage->encap, &sends));
        fp_encap_reset(stage->encap);
    }
    return taken;
}

/* FB_BATCH single packets, or one superpacket, from the TUN device into runs. -EIO when the core refuses one. */
static int time_encap(struct fb_stage *stage, const struct fb_core *what, struct timer *timer)
{
    const bool super = what->operation == FB_SEGMENT;
    const uint32_t turns = what->alone ? FB_BATCH : 1, frames = super || what->alone ? 1 : FB_BATCH;
    uint32_t hop, taken = 0;
    for (uint32_t turn = 0; turn < turns; turn++) {
        const uint32_t peer = fb_stage_peer(stage, &hop);
        if (super)
            fb_stage_tcp_frame(stage, peer, what->packet_bytes, SEGMENTS);
        else
            fb_stage_udp_frame(stage, peer, what->packet_bytes);
        copy_pattern(stage, stage->work + (size_t)turn * SLOT_BYTES, frames, SLOT_BYTES);
    }
    begin(timer);
    for (uint32_t turn = 0; turn < turns; turn++)
        taken += encap_turn(stage, what->naive, stage->work + (size_t)turn * SLOT_BYTES, frames);
    const uint32_t packets = super ? SEGMENTS : turns * frames;
    end(timer, packets, (uint64_t)packets * what->packet_bytes);
    return taken == turns * frames ? 0 : -EIO;
}

static uint32_t naive_decap(struct fb_stage *stage, const struct fb_core *what, const struct fp_address *sender, uint8_t *train, size_t bytes)
{
    uint32_t taken = 0;
    if (what->operation == FB_COALESCE)
        return fb_naive_merge(&stage->list, sender, train, bytes, what->packet_bytes, stage->out) ? SEGMENTS : 0;
    for (size_t at = 0, to = 0; at < bytes; at += what->packet_bytes, to += SLOT_BYTES)
        taken += fb_naive_decap(&stage->list, sender, train + at, what->packet_bytes, stage->out + to) != 0;
    return taken;
}

/* One turn of a worker: a train of one peer, and the writes that it makes. How many packets there are in them. */
static uint32_t core_decap(struct fb_stage *stage, const struct fb_core *what, const struct fp_address *sender, uint8_t *train, size_t bytes)
{
    const struct fp_write *writes;
    uint32_t taken = 0;
    if (fp_decap_train(stage->decap, &stage->context, sender, 0, train, bytes, what->packet_bytes) != bytes)
        return 0;
    size_t count = fp_decap_writes(stage->decap, &writes);
    for (size_t i = 0; i < count; i++)
        taken += writes[i].packets;
    fp_decap_reset(stage->decap);
    return taken;
}

/* A train of FB_BATCH UDP packets that go on as they are, or FB_BATCH trains of one, or one of a TCP superpacket's segments to be merged. */
static int time_decap(struct fb_stage *stage, const struct fb_core *what, struct timer *timer)
{
    const bool merge = what->operation == FB_COALESCE;
    const uint32_t turns = what->alone ? FB_BATCH : 1, packets = merge ? SEGMENTS : what->alone ? 1 : FB_BATCH;
    const size_t bytes = (size_t)packets * what->packet_bytes;
    struct fp_address senders[FB_BATCH];
    uint32_t hop, taken = 0;
    for (uint32_t turn = 0; turn < turns; turn++) {
        const uint32_t peer = fb_stage_peer(stage, &hop);
        senders[turn] = fb_stage_address(hop); /* as the socket tells it, not as the table has it */
        if (merge)
            fb_stage_tcp_train(stage, peer, what->packet_bytes, SEGMENTS);
        else
            fb_stage_udp_packet(stage, peer, what->packet_bytes);
        copy_pattern(stage, stage->work + turn * bytes, merge ? 1 : packets, what->packet_bytes);
    }
    begin(timer);
    for (uint32_t turn = 0; turn < turns; turn++) {
        uint8_t *train = stage->work + turn * bytes;
        taken += what->naive ? naive_decap(stage, what, &senders[turn], train, bytes) : core_decap(stage, what, &senders[turn], train, bytes);
    }
    end(timer, turns * packets, turns * bytes);
    return taken == turns * packets ? 0 : -EIO;
}

static int time_batch(struct fb_stage *stage, const struct fb_core *what, struct timer *timer)
{
    switch (what->operation) {
    case FB_LOOKUP:
        return time_lookup(stage, what, timer);
    case FB_SUM:
    case FB_COPY_SUM:
        return time_sum(stage, what, timer);
    case FB_SEGMENT:
    case FB_ENCAP:
        return time_encap(stage, what, timer);
    case FB_COALESCE:
    case FB_DECAP:
        return time_decap(stage, what, timer);
    default:
        return -EINVAL;
    }
}

static int repeat(struct fb_stage *stage, const struct fb_core *what, struct timer *timer)
{
    int error = 0;
    for (uint32_t i = 0; error == 0 && i < 3; i++) /* caches, branch predictors, page faults */
        error = time_batch(stage, what, timer);
    timer->batches = 0;
    const uint64_t begin_ns = clock_ns();
    while (error == 0 && (timer->batches == 0 || clock_ns() - begin_ns < what->duration_ns))
        error = time_batch(stage, what, timer);
    return error;
}

int fb_core_run(const struct fb_core *what, struct fb_core_time *out)
{
    memset(out, 0, sizeof *out);
    struct fb_stage *stage = calloc(1, sizeof *stage);
    struct timer *timer = calloc(1, sizeof *timer);
    int error = stage == NULL || timer == NULL ? -ENOMEM : fb_stage_prepare(stage, what);
    if (error == 0) {
        const uint64_t first_ns = clock_ns(), first = stamp();
        error = repeat(stage, what, timer);
        conclude(timer, (double)(clock_ns() - first_ns) / (double)(stamp() - first), out);
    }
    if (stage != NULL)
        fb_stage_release(stage);
    free(stage);
    free(timer);
    return error;
}

const char *fb_core_cpu(void)
{
    return fp_cpu();
}
