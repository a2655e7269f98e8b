/*
 * runs.h: packing packets into runs, each of which is one UDP_SEGMENT send. For encap.c; knows nothing of IP.
 *
 * A run holds packets for one hop with one outer TOS byte and one size; a shorter one may end it. Runs are sent in the order in
 * which they were opened, so a packet may join a run only if no earlier packet of its flow stands in a later one: `last`
 * remembers, per hash of the flow, the latest run that the flow is in (two flows with one hash only cost packing). A fragment has no
 * ports, so it may belong to any flow: it goes to the latest run and sets a floor for everybody.
 *
 *   arena  | run 0: 44 x 1472 ....... | run 1: 127 x 92 . | run 2 ...        from the front again after each reset: hot in cache
 */
#ifndef FLANPY_RUNS_H
#define FLANPY_RUNS_H

#include "segment.h"

enum {
    FP_RUNS_MAX = 2048,
    FP_FRAME_SEGMENTS_MAX = 2000, /* of one frame, so that any frame fits into empty runs even with one packet a run */
    FP_FLOW_HASHES = 256,
    FP_RUNS_SEARCHED = 32, /* how far back an open run is looked for */
    FP_ARENA_BYTES = 1 << 20,
};

struct fp_run_key {
    uint32_t hop;
    uint8_t tos;
};

struct fp_flow {
    uint8_t hash;
    bool fragment;
};

/* What a run needs besides its fp_send. */
struct fp_run {
    uint32_t packet_limit; /* packets that fit, by segments, bytes and arena */
    uint16_t floor;        /* the first packet may not move before this run */
    bool closed;
};

struct fp_runs {
    uint32_t max_segments;
    uint32_t count;
    uint32_t arena_used;
    uint32_t floor;  /* no packet may join an earlier run */
    bool finished;   /* handed out: takes nothing more until reset */
    uint16_t last[FP_FLOW_HASHES]; /* number of the flow's latest run, plus 1; 0: none */
    struct fp_run runs[FP_RUNS_MAX];
    struct fp_send sends[FP_RUNS_MAX];
    _Alignas(64) uint8_t arena[FP_ARENA_BYTES];
};

void fp_runs_init(struct fp_runs *runs, uint32_t max_segments);
void fp_runs_reset(struct fp_runs *runs);

/* Room for `packets` of this size and two of other sizes, wherever they go? */
bool fp_runs_have_room(const struct fp_runs *runs, uint32_t packets, uint32_t bytes);

/*
 * A run that takes packets of this size next: its number and how many of `packets` it takes (at least 1), where they go in `to`.
 * UINT32_MAX: no room. The caller writes the packets at `to`, and then says so by fp_runs_add.
 */
uint32_t fp_runs_place(struct fp_runs *runs, struct fp_run_key key, struct fp_flow flow, uint32_t bytes, uint32_t packets,
                       uint32_t *taken, uint8_t **to);

/* `packets` of `bytes` each now stand in this run. A size smaller than the run's closes it (packets is 1 then). */
void fp_runs_add(struct fp_runs *runs, uint32_t run, struct fp_flow flow, uint32_t bytes, uint32_t packets);

/* Join single short packets to earlier runs where order allows, close up, and count the sends. */
uint32_t fp_runs_finish(struct fp_runs *runs);

#endif
