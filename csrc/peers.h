/*
 * peers.h: what every peer was sent and has sent, counted by its address in memory that others read while it is written.
 *
 * Pure. One writer, which counts once for each send call and each train; any number of readers.
 *
 *   address --hash--> set of 8 places of a cache line each --> the place of this address, or a free one, or one of a peer that has gone
 *
 * Only addresses of the table get a place, so that no stranger can fill the sets; where a set is full of peers the others are not counted.
 * The address in the place says whose figures they are: neither a new table nor another process can confuse them.
 */
#ifndef FLANPY_PEERS_H
#define FLANPY_PEERS_H

#include "flanpy.h"

#define FP_PEER_WAYS 8u
#define FP_PEER_SETS 1024u /* a power of two; with 4,000 peers one in a thousand finds its set full */

/* One cache line. Bytes and packets are inner ones, as in struct fp_count; those that met a verdict of FP_DROP_* are in `dropped_*` alone. */
struct fp_peer_count {
    uint64_t address[2]; /* struct fp_address; zeros: free */
    struct fp_count sent;
    struct fp_count received;
    uint64_t dropped_out; /* packets for it that the kernel did not send */
    uint64_t dropped_in;  /* packets from it that were refused */
};

struct fp_peer_counts;

size_t fp_peer_counts_bytes(void);

/* The place of this address, for the one writer. NULL: the table has no such hop, or there is no room. */
struct fp_peer_count *fp_peer_counts_of(struct fp_peer_counts *counts, const struct fp_table *table, const struct fp_address *address);

/* Add what is counted for each of these addresses to out[n]; `address` there is left alone. For readers; bounded whatever the memory holds. */
void fp_peer_counts_add(const struct fp_peer_counts *counts, const struct fp_address *addresses, size_t n, struct fp_peer_count *out);

#endif
