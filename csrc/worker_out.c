/*
 * worker_out.c: the outward direction of a worker: TUN frames in, UDP sends out. What a packet becomes is decided by encap.c, which packets
 * are of bulk flows by flows.c, what follows from errors of a send in worker_send.c; here is what is sent when.
 *
 *   read until EAGAIN or the bound -> fp_flows_take -> fp_encap_frame into `sparse` or one of `bulk`
 *   until nothing is left: send all of `sparse` -> send a few runs of the bulk batch whose turn it is -> read again
 *
 * A TUN device never holds a sender back, so what is bulk may fill its queue and the batches, and where packets are cut for a wire sending them
 * takes a millisecond and more. Whoever sends little does not wait for that: each look at the device between two sends finds what has come, and
 * packets of other flows leave before the rest of the bulk. Two bulk batches take turns: one is sent while the other is filled by those looks.
 * Bulk is not starved: a turn reads FRAMES_PER_TURN frames at most, whatever they are, and ends when all of them are sent.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "worker_state.h"

#define FRAMES_PER_TURN 64u   /* keeps a flood from the pods from starving the other direction, tables and stop */
#define RUNS_PER_LOOK 16u     /* so much bulk is sent between two looks at the device: what one call takes, or two runs */
#define BYTES_PER_LOOK 98304u /* of superpackets, 0.2 ms where they are cut for a wire; a look costs 0.3 us */
#define WAITS_PER_TURN 8u     /* of 1 ms each: a full socket holds this worker no longer, however many runs there are */
#define FRAME_LEAD 54u        /* the vnet_hdr's 10 bytes then end on a cache line, where the packet begins */
#define BATCHES 3u

/* Nothing more comes in until it is sent. */
static void close_batch(struct fp_batch *batch)
{
    batch->count = fp_encap_sends(batch->encap, &batch->runs);
    batch->done = 0;
}

/* All its runs are sent: make room for frames. */
static void empty(struct fp_worker *worker, struct fp_batch *batch)
{
    struct fp_outward *out = &worker->out;

    fp_worker_turn_gso_on(worker);
    if (batch->max_segments != out->max_segments)
        batch->encap = fp_encap_init(batch->memory, out->max_segments);
    else
        fp_encap_reset(batch->encap);
    batch->max_segments = out->max_segments;
    batch->holds_frames = false;
    batch->count = batch->done = 0;
}

static void send_until(struct fp_worker *worker, struct fp_batch *batch, size_t end)
{
    while (batch->done < end)
        batch->done += fp_worker_send(worker, batch->runs + batch->done, end - batch->done);
}

/* As many runs as may leave before the next look. */
static size_t end_of_some(const struct fp_batch *batch)
{
    size_t end = batch->done, bytes = 0;

    while (end < batch->count && end - batch->done < RUNS_PER_LOOK && bytes < BYTES_PER_LOOK)
        bytes += batch->runs[end++].bytes;
    return end;
}

static void send_sparse(struct fp_worker *worker)
{
    struct fp_batch *sparse = &worker->out.sparse;

    if (!sparse->holds_frames)
        return;
    close_batch(sparse);
    send_until(worker, sparse, sparse->count);
    empty(worker, sparse);
}

/* A few runs of bulk; first of the batch that is being sent, then of what was filled meanwhile. False: nothing was left. */
static bool send_bulk(struct fp_worker *worker)
{
    struct fp_outward *out = &worker->out;
    struct fp_batch *sending = &out->bulk[!out->filling];

    if (!sending->holds_frames) {
        if (!out->bulk[out->filling].holds_frames)
            return false;
        out->filling = !out->filling;
        fp_flows_next_batch(out->flows);
        sending = &out->bulk[!out->filling];
        close_batch(sending);
    }
    send_until(worker, sending, end_of_some(sending));
    if (sending->done == sending->count) {
        empty(worker, sending);
        fp_flows_sent(out->flows);
    }
    return true;
}

/* The batch that this frame goes to is full. `sparse` is sent; of bulk as much as lets the other batch take over. */
static void make_room(struct fp_worker *worker, bool bulk)
{
    const struct fp_outward *out = &worker->out;
    unsigned full = out->filling;

    send_sparse(worker);
    while (bulk && out->filling == full && send_bulk(worker))
        ;
}

static bool is_bulk(struct fp_worker *worker, const uint8_t *frame, size_t bytes)
{
    return bytes > FP_VNET_HDR_BYTES && fp_flows_take(worker->out.flows, frame + FP_VNET_HDR_BYTES, bytes - FP_VNET_HDR_BYTES);
}

static enum fp_verdict offer(struct fp_worker *worker, bool bulk, uint8_t *frame, size_t bytes)
{
    struct fp_outward *out = &worker->out;
    struct fp_batch *batch = bulk ? &out->bulk[out->filling] : &out->sparse;
    enum fp_verdict verdict;

    if (!batch->holds_frames && batch->max_segments != out->max_segments)
        empty(worker, batch); /* UDP_SEGMENT has been turned off or on since it was used */
    verdict = fp_encap_frame(batch->encap, &worker->context, frame, bytes);
    batch->holds_frames |= verdict == FP_ENCAPSULATED;
    return verdict;
}

static void take_frame(struct fp_worker *worker, uint8_t *frame, size_t bytes)
{
    bool bulk = is_bulk(worker, frame, bytes);
    enum fp_verdict verdict = offer(worker, bulk, frame, bytes);

    if (verdict == FP_FULL) {
        make_room(worker, bulk);
        bulk = bulk && is_bulk(worker, frame, bytes); /* of another batch now, which later packets of its flow must know; counted twice by its rate */
        verdict = offer(worker, bulk, frame, bytes);
    }
    if (bulk)
        fp_worker_work(worker, FP_WORK_TUN_BULK_READS, 1);
    if (verdict != FP_ENCAPSULATED && verdict != FP_FULL && bytes > FP_VNET_HDR_BYTES)
        fp_worker_answer(worker, verdict, frame + FP_VNET_HDR_BYTES, bytes - FP_VNET_HDR_BYTES, worker->context.mtu_bytes);
}

/* Read what waits, at most so many frames; returns how many there were. */
static unsigned read_frames(struct fp_worker *worker, unsigned most)
{
    uint8_t *frame = worker->out.frame + FRAME_LEAD;
    unsigned frames = 0;

    while (frames < most) {
        ssize_t bytes = read(worker->queue.tun_fd, frame, FP_FRAME_BYTES_MAX);

        if (bytes <= 0) {
            if (bytes < 0 && fp_worker_tun_is_gone(errno))
                fp_worker_fail(worker, errno);
            break;
        }
        take_frame(worker, frame, (size_t)bytes);
        frames++;
    }
    return frames;
}

bool fp_outward_turn(struct fp_worker *worker)
{
    struct fp_outward *out = &worker->out;
    unsigned frames;

    out->waits_left = WAITS_PER_TURN;
    out->flows->now_ms = (uint32_t)(fp_clock_ns(CLOCK_MONOTONIC_COARSE) / (FP_NS_PER_S / 1000));
    frames = read_frames(worker, FRAMES_PER_TURN);
    if (!frames)
        return false;
    send_sparse(worker);
    while (send_bulk(worker)) {
        frames += read_frames(worker, FRAMES_PER_TURN - frames);
        send_sparse(worker);
    }
    fp_worker_work(worker, FP_WORK_TUN_READS, frames);
    return true;
}

static size_t rounded(size_t bytes)
{
    return (bytes + FP_CACHE_LINE - 1) / FP_CACHE_LINE * FP_CACHE_LINE;
}

static struct fp_batch *batch_of(struct fp_outward *out, size_t number)
{
    return number ? &out->bulk[number - 1] : &out->sparse;
}

int fp_outward_init(struct fp_worker *worker)
{
    struct fp_outward *out = &worker->out;

    out->max_segments = worker->settings.max_segments;
    out->frame = aligned_alloc(FP_CACHE_LINE, rounded(FRAME_LEAD + FP_FRAME_BYTES_MAX));
    out->flows = malloc(sizeof(*out->flows));
    if (!out->frame || !out->flows)
        return -ENOMEM;
    fp_flows_init(out->flows);
    for (size_t i = 0; i < BATCHES; i++) {
        struct fp_batch *batch = batch_of(out, i);

        batch->memory = aligned_alloc(FP_CACHE_LINE, rounded(fp_encap_bytes()));
        if (!batch->memory)
            return -ENOMEM;
        batch->encap = fp_encap_init(batch->memory, out->max_segments);
        batch->max_segments = out->max_segments;
    }
    return 0;
}

void fp_outward_free(struct fp_worker *worker)
{
    free(worker->out.frame);
    free(worker->out.flows);
    for (size_t i = 0; i < BATCHES; i++)
        free(batch_of(&worker->out, i)->memory);
}
