/*
 * runs.c: packing packets into runs. No packet is looked into; bytes, hop, TOS and flow come from the caller.
 */
#include "runs.h"

void fp_runs_init(struct fp_runs *runs, uint32_t max_segments)
{
    runs->max_segments = max_segments < 1 ? 1 : max_segments > FP_SEGMENTS_MAX ? FP_SEGMENTS_MAX : max_segments;
    fp_runs_reset(runs);
}

void fp_runs_reset(struct fp_runs *runs)
{
    runs->count = 0;
    runs->arena_used = 0;
    runs->floor = 0;
    runs->finished = false;
    memset(runs->last, 0, sizeof runs->last);
}

/* Packets of this size in one send: bounded by UDP_MAX_SEGMENTS and by the length of an IPv4 packet. */
static uint32_t packets_per_run(const struct fp_runs *runs, uint32_t bytes)
{
    uint32_t fit = FP_DATAGRAM_BYTES_MAX / bytes;
    if (fit == 0)
        fit = 1;
    return fit < runs->max_segments ? fit : runs->max_segments;
}

/* The slack keeps the cut's block writes out of the next run; whole cache lines keep runs off each other's lines. */
static uint32_t run_capacity(uint32_t packets, uint32_t bytes)
{
    return (packets * bytes + FP_CUT_SLACK_BYTES + 63) & ~63u;
}

bool fp_runs_have_room(const struct fp_runs *runs, uint32_t packets, uint32_t bytes)
{
    uint32_t per_run = packets_per_run(runs, bytes);
    uint32_t needed = (packets - 1) / per_run + 1;
    /* A run of another, smaller size may reserve more than one of this size, but never more than the largest send. */
    uint64_t arena = (uint64_t)needed * run_capacity(per_run, bytes) + 2ull * run_capacity(1, FP_DATAGRAM_BYTES_MAX);
    return !runs->finished && needed + 2 <= FP_RUNS_MAX - runs->count && arena <= FP_ARENA_BYTES - runs->arena_used;
}

static uint32_t flow_floor(const struct fp_runs *runs, struct fp_flow flow)
{
    uint32_t floor = runs->floor;
    if (flow.fragment)
        floor = runs->count > 0 ? runs->count - 1 : 0;
    uint32_t last = runs->last[flow.hash];
    return last > floor + 1 ? last - 1 : floor;
}

static bool is_open_for(const struct fp_runs *runs, uint32_t run, struct fp_run_key key)
{
    const struct fp_send *send = &runs->sends[run];
    return !runs->runs[run].closed && send->hop == key.hop && send->tos == key.tos;
}

/* The latest open run of exactly this size, else the flow's own latest run if this packet may end it. */
static uint32_t find_run(const struct fp_runs *runs, struct fp_run_key key, uint32_t bytes, uint32_t floor, struct fp_flow flow)
{
    /* Bounded, so that many runs do not make every packet of a mixed batch slow. */
    uint32_t first = runs->count > FP_RUNS_SEARCHED ? runs->count - FP_RUNS_SEARCHED : 0;
    if (first < floor)
        first = floor;
    for (uint32_t run = runs->count; run-- > first;) {
        if (runs->sends[run].segment_bytes == bytes && is_open_for(runs, run, key))
            return run;
    }
    uint32_t own = runs->last[flow.hash];
    if (own > 0 && own - 1 >= floor && runs->sends[own - 1].segment_bytes > bytes && is_open_for(runs, own - 1, key))
        return own - 1;
    return UINT32_MAX;
}

static uint32_t open_run(struct fp_runs *runs, struct fp_run_key key, uint32_t bytes, uint32_t floor)
{
    uint32_t limit = packets_per_run(runs, bytes);
    uint32_t capacity = run_capacity(limit, bytes);
    /* Neither the list nor the arena may run over. */
    if (runs->count == FP_RUNS_MAX || capacity > FP_ARENA_BYTES - runs->arena_used)
        return UINT32_MAX;
    uint32_t run = runs->count++;
    runs->runs[run] = (struct fp_run){.packet_limit = limit, .floor = (uint16_t)floor, .closed = false};
    runs->sends[run] = (struct fp_send){
        .data = runs->arena + runs->arena_used, .segment_bytes = (uint16_t)bytes, .hop = key.hop, .tos = key.tos};
    runs->arena_used += capacity;
    return run;
}

uint32_t fp_runs_place(struct fp_runs *runs, struct fp_run_key key, struct fp_flow flow, uint32_t bytes, uint32_t packets,
                       uint32_t *taken, uint8_t **to)
{
    if (FP_UNLIKELY(runs->finished))
        return UINT32_MAX;
    uint32_t floor = flow_floor(runs, flow);
    uint32_t run = find_run(runs, key, bytes, floor, flow);
    if (run == UINT32_MAX)
        run = open_run(runs, key, bytes, floor);
    if (run == UINT32_MAX)
        return UINT32_MAX;
    const struct fp_send *send = &runs->sends[run];
    uint32_t left = runs->runs[run].packet_limit - send->segments; /* at least 1: a full run is closed */
    if (bytes < send->segment_bytes)
        left = 1; /* a shorter packet ends the run */
    *taken = packets < left ? packets : left;
    *to = send->data + send->bytes;
    return run;
}

void fp_runs_add(struct fp_runs *runs, uint32_t run, struct fp_flow flow, uint32_t bytes, uint32_t packets)
{
    struct fp_send *send = &runs->sends[run];
    send->bytes += bytes * packets;
    send->segments = (uint16_t)(send->segments + packets);
    if (bytes < send->segment_bytes || send->segments >= runs->runs[run].packet_limit)
        runs->runs[run].closed = true;
    runs->last[flow.hash] = (uint16_t)(run + 1);
    if (flow.fragment)
        runs->floor = run;
}

/*
 * An earlier run that a run of one packet may end: open, larger packets, same hop and TOS, and not before the flow's own earlier
 * packets. Saves a send, which costs as much as cutting a superpacket.
 */
static uint32_t find_host(const struct fp_runs *runs, const struct fp_run *run, const struct fp_send *send, uint32_t kept)
{
    struct fp_run_key key = {.hop = send->hop, .tos = send->tos};
    uint32_t first = kept > FP_RUNS_SEARCHED ? kept - FP_RUNS_SEARCHED : 0;
    if (first < run->floor)
        first = run->floor;
    for (uint32_t host = kept; host-- > first;) {
        if (is_open_for(runs, host, key) && runs->sends[host].segment_bytes > send->bytes)
            return host;
    }
    return UINT32_MAX;
}

uint32_t fp_runs_finish(struct fp_runs *runs)
{
    if (runs->finished)
        return runs->count;
    runs->finished = true;
    /* Closing up only makes numbers smaller, so a number that is not below a floor was not below it before. */
    uint32_t kept = 0;
    for (uint32_t run = 0; run < runs->count; run++) {
        struct fp_send *send = &runs->sends[run];
        uint32_t host = send->segments == 1 && runs->max_segments > 1 ? find_host(runs, &runs->runs[run], send, kept) : UINT32_MAX;
        if (host == UINT32_MAX) {
            runs->runs[kept] = runs->runs[run];
            runs->sends[kept] = *send;
            kept++;
            continue;
        }
        memcpy(runs->sends[host].data + runs->sends[host].bytes, send->data, send->bytes);
        runs->sends[host].bytes += send->bytes;
        runs->sends[host].segments++;
        runs->runs[host].closed = true;
    }
    runs->count = kept;
    return kept;
}
