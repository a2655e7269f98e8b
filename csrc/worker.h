/*
 * worker.h: the part of the core with system calls: one thread for each TUN queue and UDP socket pair.
 * Theory of operation at the top of worker.c.
 */
#ifndef FLANPY_WORKER_H
#define FLANPY_WORKER_H

#include "peers.h"

enum { FP_LANES_MAX = 64 };

/*
 * What one worker works on. Descriptors are borrowed: opened, configured, non-blocking and later closed by the caller.
 *
 * All UDP sockets have one address and port; which of them gets a packet is the kernel's choice, by its sender. Each is a lane with a queue of
 * its own, and the lanes are read in turn, so that a sender that fills its lane takes nothing from those in the others.
 */
struct fp_queue {
    int tun_fd;
    uint32_t n_lanes;
    int udp_fds[FP_LANES_MAX]; /* the first one sends, too */
};

struct fp_settings {
    uint32_t options;        /* FP_OPT_* */
    uint32_t tunnel_address; /* host order; 0: the overlay has no IPv4 */
    struct fp_address tunnel_address6; /* ::, the overlay has no IPv6 */
    uint32_t max_segments;   /* of one UDP_SEGMENT send; 1 turns GSO off */
    uint32_t spin_us;        /* busy wait after traffic before poll */
    uint32_t icmp_per_second; /* ICMP errors that one worker may send */
    uint32_t threads_per_queue; /* 0 or 1: both directions in one thread; 2: a thread for each */
    uint32_t gso_retry_ms;      /* so long after EIO UDP_SEGMENT is tried again; 0: never */
};

/* Besides verdicts: what the worker does. X(SYMBOL, "name", "meaning"); append only. */
#define FP_WORK_COUNTERS(X)                                                                                                   \
    X(TUN_READS, "tun_reads", "frames read from the TUN device")                                                              \
    X(TUN_WRITES, "tun_writes", "frames written to the TUN device")                                                           \
    X(UDP_SENDS, "udp_sends", "send calls to the underlay")                                                                   \
    X(UDP_SENT_SEGMENTS, "udp_sent_segments", "datagrams in those sends")                                                     \
    X(UDP_RECEIVES, "udp_receives", "trains received from the underlay")                                                      \
    X(UDP_RECEIVED_SEGMENTS, "udp_received_segments", "datagrams in those trains")                                            \
    X(UDP_TRUNCATED, "udp_truncated", "trains dropped because the kernel cut them (MSG_TRUNC, MSG_CTRUNC)")                   \
    X(POLLS, "polls", "times a worker slept in poll")                                                                         \
    X(SEND_RETRIES, "send_retries", "sends repeated after EAGAIN or ENOBUFS")                                                 \
    X(GSO_OFF, "gso_off", "times a socket has turned UDP_SEGMENT off for a minute after EIO")                                               \
    X(TABLES, "tables", "route tables picked up")                                                                             \
    X(TUN_BULK_READS, "tun_bulk_reads", "frames of bulk flows among tun_reads; the others are sent before them")

enum fp_work_counter {
#define FP_ENUM(symbol, name, meaning) FP_WORK_##symbol,
    FP_WORK_COUNTERS(FP_ENUM)
#undef FP_ENUM
    FP_WORK_COUNT
};

/* At the start of a worker's page; one writer, read from outside at any time by relaxed loads. Its counters by peer follow there. */
struct fp_stats {
    struct fp_verdict_counters verdicts;
    uint64_t work[FP_WORK_COUNT];
    uint64_t generation; /* of the table in use */
    int32_t failed;      /* errno that ended the worker, 0 while it runs */
    int32_t reserved;
};

struct fp_datapath;

/*
 * Start the threads of each queue, which leave packets where they are until a first table is published. All run when it returns.
 * 0, or -errno (ENOMEM, EAGAIN from pthread_create, EINVAL settings). Signals are blocked in the threads.
 */
int fp_datapath_start(const struct fp_queue *queues, size_t n_queues, const struct fp_settings *settings,
                      struct fp_datapath **out);

/*
 * The same with pages for the counters that are the caller's: fp_page_bytes() for each thread (n_queues times threads_per_queue),
 * aligned to a cache line, readable by others while the threads run, and by later datapaths, which go on counting in them.
 */
int fp_datapath_start_in(const struct fp_queue *queues, size_t n_queues, const struct fp_settings *settings, void *pages,
                         struct fp_datapath **out);
size_t fp_page_bytes(void);

/*
 * Forward by a copy of this table from now on. Returns when every worker has let go of the old one and frees it.
 * 0, -EINVAL (fp_table_check), -ENOMEM, -ETIMEDOUT (a worker is stuck; the new table is still published, the old kept).
 */
int fp_datapath_publish(struct fp_datapath *datapath, const void *table, size_t bytes);

/*
 * The same without a copy: a page-aligned read-only mapping of memory that nobody can change any more. It is the datapath's to unmap
 * unless -EINVAL or -ENOMEM come back.
 */
int fp_datapath_publish_mapped(struct fp_datapath *datapath, void *mapped, size_t bytes);

/* Add up such pages as they are now: counters summed, the oldest generation, the first failure. Zeros for no page. Never blocks. */
void fp_stats_sum(const void *pages, size_t n_pages, struct fp_stats *out);

/* Add what all these pages have counted for the peers of these addresses to out[n]. Never blocks. */
void fp_peers_sum(const void *pages, size_t n_pages, const struct fp_address *addresses, size_t n, struct fp_peer_count *out);

/* Snapshot of one queue's counters. -ERANGE for a queue that is not there. Never blocks. */
int fp_datapath_stats(const struct fp_datapath *datapath, size_t queue, struct fp_stats *out);
/* As fp_peers_sum, of all its workers. */
void fp_datapath_peers(const struct fp_datapath *datapath, const struct fp_address *addresses, size_t n, struct fp_peer_count *out);

/* Stop, join and free. Takes less than 1 s also under a flood, for every loop is bounded. */
void fp_datapath_stop(struct fp_datapath *datapath);

#endif
