/*
 * protocol.h: what the agent and the datapath process say to each other. Pure; the process and Python share these declarations.
 *
 * One request a packet of a SOCK_SEQPACKET Unix socket, one reply for each. Host byte order: both ends are on one machine.
 * Descriptors travel beside (SCM_RIGHTS), in the order that is given here.
 *
 *   request  descriptors                        reply: head.kind | FP_MESSAGE_REPLY, head.error 0 or -errno
 *   HELLO                                       fp_message_state; while RUNNING with all of START's, and the table if there is one
 *   START    n_queues x (TUN, n_lanes x UDP),   fp_message_state, without descriptors
 *            counters
 *   TABLE    a sealed memfd                     the head alone; every worker forwards by the table then
 *   STOP                                        the head alone, after the last packet in hand has left; then the process ends
 *   PING                                        the head alone: the process is there
 *   HOLD     a sealed memfd, and a pidfd        the head alone: it is kept, checked, for TABLE
 *
 * HOLD is for one that takes over: the other still reads the queues, and ends when this one is sure to have a table. Whoever has brought
 * it says TABLE then. If the connection is hung up instead nobody is left to, and the table is taken when the other, whose pidfd that is,
 * has ended; until then it goes on, and two never read the same queues. Without a pidfd the other counts as ended.
 * A reply whose descriptors the kernel does not pass on (ETOOMANYREFS) comes without them, as that error.
 *
 * HELLO, STOP and everything before `settings` in the state keep their form for ever, so that any agent can take over from any process.
 * A change of START or TABLE, or of struct fp_settings, needs another FP_PROTOCOL_VERSION. How many lanes a process has is told by the number of
 * descriptors in its answer to HELLO; versions 1 and 2 had one.
 */
#ifndef FLANPY_PROTOCOL_H
#define FLANPY_PROTOCOL_H

#include <stddef.h>
#include <stdint.h>

#include "worker.h"

#define FP_PROTOCOL_MAGIC 0x70647066u
#define FP_PROTOCOL_VERSION 3u
#define FP_PROTOCOL_QUEUES_MAX 64u
#define FP_PROTOCOL_FDS_MAX 130u /* 64 x (TUN, UDP), counters, table: the kernel takes 253 in one packet (SCM_MAX_FD) */
#define FP_PROTOCOL_BYTES_MAX 1024u /* longer packets are refused unread */
#define FP_TABLE_BYTES_MAX 0x40000000u /* of a table's memfd */

enum fp_message_kind {
    FP_MESSAGE_HELLO = 1,
    FP_MESSAGE_START = 2,
    FP_MESSAGE_TABLE = 3,
    FP_MESSAGE_STOP = 4,
    FP_MESSAGE_PING = 5,
    FP_MESSAGE_HOLD = 6,
    FP_MESSAGE_REPLY = 0x8000,
};

struct fp_message {
    uint32_t magic;
    uint16_t version;
    uint16_t kind;
    uint32_t bytes; /* of the whole message */
    int32_t error;  /* of a reply; 0 in a request */
};

struct fp_message_start {
    struct fp_message head;
    uint32_t n_queues;
    uint32_t n_lanes;    /* of each queue */
    uint8_t version[64]; /* which executable this is; told in the state, for whoever comes later */
    struct fp_settings settings;
};

struct fp_message_table { /* TABLE and HOLD */
    struct fp_message head;
    uint64_t bytes; /* of the table; the memfd has exactly this size */
};

enum fp_process_state {
    FP_PROCESS_WAITING = 0, /* for START */
    FP_PROCESS_RUNNING = 1,
};

/* What the process has given up; a bit for each that worked. */
#define FP_CONFINED_USER 1u         /* runs as an unprivileged user */
#define FP_CONFINED_CAPABILITIES 2u /* none in any set, and no new privileges by exec */
#define FP_CONFINED_LIMITS 4u       /* no files, no processes, no core dumps, few descriptors */
#define FP_CONFINED_SYSCALLS 8u     /* the seccomp filter is on, in all threads */

struct fp_message_state {
    struct fp_message head;
    uint32_t state; /* enum fp_process_state */
    uint32_t n_queues;
    uint32_t confined;       /* FP_CONFINED_*; SYSCALLS comes with START */
    uint32_t settings_bytes; /* sizeof(settings) there; differs in another version */
    uint64_t table_bytes;    /* 0: no table yet */
    uint32_t page_bytes;     /* of one thread's counters */
    uint32_t n_verdicts;
    uint32_t n_work;
    uint32_t n_pages;
    uint8_t version[64];
    struct fp_settings settings;
};

/* A request that has passed the check; `start` or `table` by its kind. */
struct fp_request {
    uint16_t kind;
    struct fp_message_start start;
    struct fp_message_table table;
};

/*
 * Is this packet with so many descriptors a request? 0 and `out` filled, or
 *   -EPROTO           shorter than a head, another magic, a length that is not the packet's, an unknown kind
 *   -EPROTONOSUPPORT  START, TABLE or HOLD of another version
 *   -EBADF            not the descriptors that belong to it
 *   -EINVAL           n_queues, n_lanes or bytes out of range
 */
int fp_request_read(const void *packet, size_t bytes, size_t n_fds, struct fp_request *out);

/* The descriptors of all queues, without the counters, of a START that has passed the check. */
uint32_t fp_start_queue_fds(const struct fp_message_start *start);

/* The head of the reply to a request of this kind. */
struct fp_message fp_reply_head(uint16_t kind, size_t bytes, int error);

#endif
