/*
 * flows.h: which of the packets that leave are of bulk flows, so that the others need not wait behind them. Pure; the caller tells the time.
 *
 * A table of slots by the hash of a flow. A flow that leaves faster than FP_BULK_BYTES in FP_BULK_WINDOW_MS is bulk, and stays so for
 * FP_BULK_FRESH_MS after it last was as fast. Bulk packets wait in numbered batches, which are sent in order; the others leave before the next of them.
 *
 * Order. No packet overtakes an earlier one of its flow: a flow of which something waits in a batch is bulk, whatever its rate. A fragment
 * has no ports, so it may be of any flow: it is bulk, and as long as it waits everything is.
 *
 * Flows of one hash are one flow here, and who wants to can make it so, or send fragments all the time: then others wait with them, no more.
 */
#ifndef FLANPY_FLOWS_H
#define FLANPY_FLOWS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    FP_FLOW_RATES = 1024,   /* slots; a power of two */
    FP_BULK_BYTES = 65536,
    FP_BULK_WINDOW_MS = 16, /* some ticks of the coarse clock; 4 MB/s */
    FP_BULK_FRESH_MS = 50,
};

struct fp_flow_rate {
    uint32_t since_ms; /* when the window began, and what has come in it */
    uint32_t bytes;
    uint32_t bulk_ms;  /* when it was bulk last; `bulk_once` tells whether it ever was */
    uint32_t batch;    /* the last one that has a packet of it */
    bool bulk_once;
};

/* All numbers wrap around: what has not been seen for half a round may be taken for bulk, once. */
struct fp_flows {
    uint32_t now_ms;
    uint32_t filling;        /* number of the batch that takes packets */
    uint32_t oldest;         /* of the first batch that is not sent yet; `filling` when none waits */
    uint32_t fragment_batch; /* the last one with a fragment */
    struct fp_flow_rate rates[FP_FLOW_RATES];
};

void fp_flows_init(struct fp_flows *flows);

/*
 * A packet leaves: does it belong into the batch that is being filled (true), or can it go before? Of what is neither IPv4 nor IPv6, or too
 * short for a header, false: it goes nowhere.
 */
bool fp_flows_take(struct fp_flows *flows, const uint8_t *packet, size_t bytes);

/* From now on the next batch is filled. The one before is sent when fp_flows_sent says so, in the same order. */
void fp_flows_next_batch(struct fp_flows *flows);
void fp_flows_sent(struct fp_flows *flows);

#endif
