/*
 * process.h: the parts of flanpy-datapath, the process that carries the userspace datapath's packets. Theory of operation in main.c.
 */
#ifndef FLANPY_PROCESS_H
#define FLANPY_PROCESS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "protocol.h"

#define PROCESS_CONNECTIONS_MAX 8u
#define PROCESS_FDS_SPARE 6u /* descriptors that may arrive while all connections are open: a table, a pidfd, and room to refuse more */

struct process {
    int listener;
    int connections[PROCESS_CONNECTIONS_MAX]; /* -1: free */
    uid_t starter;                            /* besides root the only user that may talk to us */

    struct fp_datapath *datapath; /* NULL before START */
    struct fp_settings settings;
    uint32_t n_queues;
    uint32_t n_fds;
    int fds[FP_PROTOCOL_FDS_MAX]; /* TUN and UDP sockets of each queue */
    int pages_fd;
    void *pages;
    uint32_t n_pages;
    int table_fd; /* -1: none yet; kept to be handed on */
    uint64_t table_bytes;
    int held_fd; /* -1: none; a checked table that waits for TABLE, or for the end of the connection that has brought it */
    uint64_t held_bytes;
    int held_by;  /* the connection; -1: it is hung up */
    int other_fd; /* -1: none; the pidfd of the one that reads the queues until we do */
    uint32_t confined; /* FP_CONFINED_* */
    uint8_t version[64];
    bool stopping;
};

/* control.c: serve connections until STOP, or until nobody is left who could START us. */
void process_serve(struct process *process);

/* start.c: carry out START, TABLE and HOLD with descriptors that are ours from then on. 0 or -errno; on error they are closed. */
int process_start(struct process *process, const struct fp_message_start *start, const int *fds);
int process_table(struct process *process, const struct fp_message_table *table, int fd);
int process_hold(struct process *process, const struct fp_message_table *table, int fd, int other_fd, int connection);
/* A connection is hung up: what it has let us hold is the table once the other process has ended. */
void process_hung_up(struct process *process, int connection);
/* What to poll for that end, -1: it is not waited for; and what to do then. */
int process_awaited_fd(const struct process *process);
void process_other_ended(struct process *process);

/* confine.c: give up user, groups, capabilities, new privileges and core dumps. Returns the FP_CONFINED_* bits that worked. */
uint32_t process_drop_privileges(uid_t uid, gid_t gid);
/* Descriptors up to the number that this datapath needs, no processes, no files. */
uint32_t process_set_limits(size_t n_queue_fds, size_t n_threads);

/* filter.c: from now on every thread of this process can make a few harmless system calls and no others. 0 or -errno. */
int process_filter_system_calls(void);

/* forbidden.c: try what must not work any more and print what came of it; the exit status is 0 when nothing worked. */
int process_try_forbidden(bool filter);

#endif
