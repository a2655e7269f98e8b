/*
 * worker_state.h: what one worker thread owns; shared by worker.c and the files of the two directions, by nobody else.
 *
 * The directions touch disjoint state (struct fp_outward, struct fp_inward), so that one thread can run both or each can have a
 * thread of its own: `directions` alone tells which.
 */
#ifndef FLANPY_WORKER_STATE_H
#define FLANPY_WORKER_STATE_H

#include <netinet/in.h>
#include <pthread.h>
#include <time.h>

#include "flows.h"
#include "worker.h"

#define FP_CACHE_LINE 64u
#define FP_NS_PER_S 1000000000ull
#define FP_OUTWARD 1u /* TUN -> UDP */
#define FP_INWARD 2u  /* UDP -> TUN */

/* Tokens of the ICMP errors; one for each worker, refilled by the coarse clock. */
struct fp_bucket {
    uint64_t filled_ns;
    uint64_t credit_ns; /* one token is 1 s / icmp_per_second of credit; never more than a second's worth */
};

/* Packets that are sent together: an encapsulator, and while it is being emptied its runs. */
struct fp_batch {
    void *memory;
    struct fp_encap *encap;
    uint32_t max_segments; /* that it was made for */
    bool holds_frames;
    const struct fp_send *runs;
    size_t count, done; /* of the runs; equal when none is left to send */
};

/*
 * TUN -> UDP: one frame buffer, free again after each fp_encap_frame, for the encapsulators copy into their own arenas. One takes what goes at
 * once, and two take turns for bulk: while one is sent the other is filled.
 */
struct fp_outward {
    uint8_t *frame;
    struct fp_flows *flows;
    struct fp_batch sparse;
    struct fp_batch bulk[2];
    unsigned filling; /* the one of `bulk` that takes frames */
    uint32_t max_segments; /* 1 after EIO: a route of this socket cannot cut */
    uint64_t gso_off_ns;   /* when that was */
    uint32_t waits_left;   /* for room in the socket, in this turn */
};

/* UDP -> TUN: trains lie one behind the other in the arena and stay there until their writes are done. */
struct fp_inward {
    int epoll_fd; /* which lanes have something; level-triggered, and those that were told of go to its end */
    uint8_t *arena;
    size_t used;
    void *decap_memory;
    struct fp_decap *decap;
};

/* An address on the underlay; a worker's socket is of one family, and so are its peers. */
union fp_socket_address {
    struct sockaddr any;
    struct sockaddr_in v4;
    struct sockaddr_in6 v6;
};

/* A published table: a copy that follows on the next cache line, or a read-only mapping that is ours to undo. */
struct fp_snapshot {
    struct fp_snapshot *retired; /* older ones that a stuck worker may still hold */
    const struct fp_table *table;
    void *mapped; /* NULL: a copy */
    size_t mapped_bytes;
    uint64_t reserved[4];
    uint8_t blob[];
};
_Static_assert(sizeof(struct fp_snapshot) == FP_CACHE_LINE, "the blob behind it must be aligned to 64");

struct fp_datapath {
    struct fp_worker *workers;
    size_t n_workers;
    size_t n_queues;
    size_t started; /* threads to join */
    struct fp_snapshot *table; /* stored with release, loaded with acquire */
    int stop;
    pthread_mutex_t publishing; /* one publish at a time */
    pthread_mutex_t lock;       /* guards fp_worker.held and `running` */
    size_t running;             /* threads that have begun */
    pthread_cond_t moved_on;
};

struct fp_worker {
    struct fp_datapath *datapath;
    struct fp_queue queue;
    int send_fd; /* of its lanes */
    struct fp_settings settings;
    uint32_t directions;
    int wake_fd;  /* eventfd: a new table, or stop */
    int route_fd; /* a UDP socket of our own to ask the kernel for a path MTU; -1: not known */
    pthread_t thread;
    const struct fp_snapshot *held; /* table in use; written by the thread under the datapath's lock */

    struct fp_context context;
    struct fp_outward out;
    struct fp_inward in;
    struct fp_bucket bucket;
    struct fp_bucket too_big_bucket; /* path MTU discovery must not wait for a flood of other errors to end */
    uint64_t idle_since_ns; /* 0: busy, or already asleep once since the last traffic */
    struct fp_stats *stats; /* on cache lines of its own, in one page with `peers` */
    struct fp_peer_counts *peers;
    bool stats_are_lent;    /* by the caller of fp_datapath_start_in, who keeps them */
};

/* One turn of a direction: a bounded batch. True when there was something to do. */
bool fp_outward_turn(struct fp_worker *worker);
bool fp_inward_turn(struct fp_worker *worker);
int fp_outward_init(struct fp_worker *worker);
int fp_inward_init(struct fp_worker *worker);
void fp_outward_free(struct fp_worker *worker);
void fp_inward_free(struct fp_worker *worker);

/* Send runs[0..count) in one call as far as the kernel takes them; how many are dealt with, at least one. `count` is not 0. */
size_t fp_worker_send(struct fp_worker *worker, const struct fp_send *runs, size_t count);
/* UDP_SEGMENT again, once it has been off for long enough. */
void fp_worker_turn_gso_on(struct fp_worker *worker);

/* The counters by peer in a page of fp_page_bytes(). */
struct fp_peer_counts *fp_page_peers(void *page);
/* A full bucket: a second's worth of ICMP errors may go at once. */
void fp_bucket_fill(struct fp_bucket *bucket);
/* Answer `packet` with the ICMP error of this verdict, into the TUN device, if the rate allows. */
void fp_worker_answer(struct fp_worker *worker, enum fp_verdict verdict, const uint8_t *packet, size_t bytes, uint32_t mtu_bytes);
/* The worker cannot go on (errno); from now on it only waits for stop and acknowledges tables. */
void fp_worker_fail(struct fp_worker *worker, int error);
/* Use the table that is published now, and say so to the publisher if it is another one. */
void fp_worker_pick_up_table(struct fp_worker *worker);
void fp_worker_wake(const struct fp_worker *worker);
void fp_snapshots_free(struct fp_snapshot *snapshot); /* and all older ones behind it */
/* Whether this errno of the TUN device says that the device is gone; a device that is only down says EIO. */
bool fp_worker_tun_is_gone(int error);

static inline uint64_t fp_clock_ns(clockid_t clock)
{
    struct timespec now;

    clock_gettime(clock, &now);
    return (uint64_t)now.tv_sec * FP_NS_PER_S + (uint64_t)now.tv_nsec;
}

/* Counters: the worker is the only writer, so a load and a store are enough; readers see whole 64-bit values. */
static inline void fp_bump(uint64_t *counter, uint64_t by)
{
    __atomic_store_n(counter, __atomic_load_n(counter, __ATOMIC_RELAXED) + by, __ATOMIC_RELAXED);
}

static inline void fp_worker_work(struct fp_worker *worker, enum fp_work_counter counter, uint64_t by)
{
    fp_bump(&worker->stats->work[counter], by);
}

static inline void fp_worker_verdict(struct fp_worker *worker, enum fp_verdict verdict, uint64_t packets, uint64_t bytes)
{
    struct fp_count *count = &worker->stats->verdicts.by[verdict];

    fp_bump(&count->packets, packets);
    fp_bump(&count->bytes, bytes);
}

#endif
