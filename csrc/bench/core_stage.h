/*
 * core_stage.h: what the timing loops of core.c work on: a route table, packets that fit it, and the core's own memory.
 */
#ifndef FLANPY_BENCH_CORE_STAGE_H
#define FLANPY_BENCH_CORE_STAGE_H

#include "../wire.h"
#include "bench.h"
#include "naive.h"

#define FB_BATCH 64u             /* packets between two resets, as a worker has under load */
#define FB_SLOT_BYTES 69632u     /* the largest frame or train: 46 packets of 1460 bytes */
#define FB_DESTINATIONS 4096u

struct fb_stage {
    struct fp_route4 *routes; /* sorted; the last one is our own subnet */
    struct fp_route4 *shuffled;
    struct fp_hop *hops;
    size_t n_routes;
    size_t n_hops;
    struct fp_table *table;
    struct fb_naive_list list;
    struct fp_verdict_counters counters;
    struct fp_context context;
    struct fp_encap *encap;
    struct fp_decap *decap;
    uint32_t destinations[FB_DESTINATIONS];
    uint8_t *pattern; /* one frame or train as it arrives ... */
    uint8_t *work;    /* ... and the copies that a batch works on, FB_BATCH slots or one */
    uint8_t *out;
    size_t pattern_bytes;
    uint64_t random;
};

/* 0, -EINVAL or -ENOMEM; release in any case. */
int fb_stage_prepare(struct fb_stage *stage, const struct fb_core *what);
void fb_stage_release(struct fb_stage *stage);

uint64_t fb_random(struct fb_stage *stage);
/* A random peer: an address in its subnet. Its hop is written to *hop. Reads no memory that grows with the number of peers. */
uint32_t fb_stage_peer(struct fb_stage *stage, uint32_t *hop);
/* Where a peer's datagrams come from, without a look at its hop. */
struct fp_address fb_stage_address(uint32_t hop);

/* Patterns with addresses of `peer`, whole inner packets of `packet_bytes`; they set pattern_bytes. */
void fb_stage_udp_frame(struct fb_stage *stage, uint32_t peer, uint32_t packet_bytes);
void fb_stage_tcp_frame(struct fb_stage *stage, uint32_t peer, uint32_t packet_bytes, uint32_t segments);
void fb_stage_udp_packet(struct fb_stage *stage, uint32_t peer, uint32_t packet_bytes);
void fb_stage_tcp_train(struct fb_stage *stage, uint32_t peer, uint32_t packet_bytes, uint32_t segments);

#endif
