/*
 * worker.c: threads that carry packets between TUN queues and UDP sockets, and the hand-over of route tables to them.
 * With the other worker_*.c the only file with system calls; what becomes of a packet is decided in the pure files.
 *
 * Theory of operation
 *
 * Threads. Two for each queue (a TUN queue descriptor and some UDP sockets), one for each direction, or one that runs both to completion
 *   (settings.threads_per_queue). All signals are blocked in them. They share nothing but the descriptors and the published table,
 *   and never wait for each other.
 *
 *       turn:  pick up the table -> outward batch -> inward batch          nothing done: spin for spin_us with sched_yield,
 *       sleep: poll on TUN, UDP and the eventfd                            then sleep
 *
 * Bulk. What bulk flows send outward waits in batches, and between two sends of them the device is looked at again: packets of the other flows
 *   leave first, but never before an earlier packet of their own flow (worker_out.c, flows.c).
 *
 * Lanes. A queue has several UDP sockets of one port; the kernel puts a packet into one of them by its sender (SO_REUSEPORT and a
 *   program, flanpy/datapath/sockets.py). A turn visits those in which something waits, one after the other, and takes a bounded
 *   number of packets from each. So a sender of more than this node can take fills the queue of its own lane, where the kernel drops what
 *   is too much, and costs the others no packet and no more than their share of the worker's time (worker_in.c).
 *
 * Memory. Every buffer belongs to one thread from start to stop: the frame buffer is free again when fp_encap_frame returns, the
 *   arena of an encapsulator when its runs are sent, the receive arena when the writes that point into it are done; all three within
 *   one turn. Nothing is allocated after start, except by publish in the caller's thread.
 *
 * Tables. A table is an immutable copy. publish stores the pointer with release and writes the eventfds; a worker loads it with
 *   acquire once a turn, uses that one for the whole turn, and says under the lock that it has moved on. publish waits for all
 *   (at most PUBLISH_LIMIT_S) and frees the old one; if a worker is stuck, the old one is kept until a later publish sees it move
 *   (worker_table.c).
 *   Before the first table the descriptors are not read: packets wait in their queues.
 *
 * Bounds. Each direction takes a bounded batch a turn, so neither can starve the other, the table or stop. A full socket holds a turn for
 *   a few milliseconds at most (WAITS_PER_TURN in worker_out.c). The spin ends by the clock. poll has no time limit; the eventfd ends it.
 *
 * Failures.
 *   peer gone      sends succeed or meet an ICMP error that the kernel keeps to itself; unreachable is counted as a drop
 *   kernel says no ENOBUFS, EAGAIN: bounded retry, then a drop; EPERM: a drop; TUN down: writes are drops, nothing comes to read
 *   TUN deleted    read or write says EBADFD: `failed` is set and the thread sleeps on the eventfd alone, so it uses no CPU, still
 *                  acknowledges tables, and can be stopped
 *   agent or etcd  not known here: the last table stays in force
 *
 * Readers of the statistics take a snapshot by relaxed loads of a page that only the worker writes.
 */
#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "worker_state.h"

#define QUEUES_MAX 256u    /* a TUN device has no more (MAX_TAP_QUEUES) */

/* ------------------------------------------------------------------------------------------------------- the thread */

void fp_worker_fail(struct fp_worker *worker, int error)
{
    __atomic_store_n(&worker->stats->failed, error, __ATOMIC_RELAXED);
}

bool fp_worker_tun_is_gone(int error)
{
    return error == EBADFD || error == EBADF || error == ENODEV || error == EFAULT;
}

static bool has_failed(const struct fp_worker *worker)
{
    return __atomic_load_n(&worker->stats->failed, __ATOMIC_RELAXED) != 0;
}

static bool turn(struct fp_worker *worker)
{
    bool busy = false;

    if (!worker->context.table || has_failed(worker))
        return false;
    if (worker->directions & FP_OUTWARD)
        busy |= fp_outward_turn(worker);
    if (worker->directions & FP_INWARD)
        busy |= fp_inward_turn(worker);
    return busy;
}

/* After traffic, wait for more without sleeping: a wake-up costs as much as tens of packets. */
static bool spin(struct fp_worker *worker)
{
    uint64_t now;

    if (!worker->idle_since_ns)
        return false;
    now = fp_clock_ns(CLOCK_MONOTONIC);
    if (worker->idle_since_ns == UINT64_MAX)
        worker->idle_since_ns = now;
    if (now - worker->idle_since_ns >= (uint64_t)worker->settings.spin_us * 1000) {
        worker->idle_since_ns = 0;
        return false;
    }
    sched_yield();
    return true;
}

static void sleep_in_poll(struct fp_worker *worker)
{
    bool listens = worker->context.table && !has_failed(worker);
    struct pollfd polled[3] = {
        {.fd = worker->wake_fd, .events = POLLIN},
        {.fd = listens && worker->directions & FP_OUTWARD ? worker->queue.tun_fd : -1, .events = POLLIN},
        {.fd = listens && worker->directions & FP_INWARD ? worker->in.epoll_fd : -1, .events = POLLIN},
    };
    uint64_t wakes;

    if (worker->context.table) /* before the first the page may still be another's */
        fp_worker_work(worker, FP_WORK_POLLS, 1);
    if (poll(polled, 3, -1) > 0 && polled[0].revents && read(worker->wake_fd, &wakes, sizeof(wakes)) < 0)
        return; /* EAGAIN: somebody else's wake-up was taken with ours */
}

static void say_running(struct fp_datapath *datapath)
{
    pthread_mutex_lock(&datapath->lock);
    datapath->running++;
    pthread_cond_signal(&datapath->moved_on);
    pthread_mutex_unlock(&datapath->lock);
}

/* A new thread makes system calls of its own before it is ours: whoever shuts the process in waits for that. */
static void wait_until_running(struct fp_datapath *datapath)
{
    pthread_mutex_lock(&datapath->lock);
    while (datapath->running < datapath->started)
        pthread_cond_wait(&datapath->moved_on, &datapath->lock);
    pthread_mutex_unlock(&datapath->lock);
}

static void *run(void *argument)
{
    struct fp_worker *worker = argument;

    say_running(worker->datapath);
    while (!__atomic_load_n(&worker->datapath->stop, __ATOMIC_ACQUIRE)) {
        fp_worker_pick_up_table(worker);
        if (turn(worker))
            worker->idle_since_ns = UINT64_MAX; /* busy; the clock is read when it is not */
        else if (!spin(worker))
            sleep_in_poll(worker);
    }
    return NULL;
}

/* ------------------------------------------------------------------------------------------------- start and stop */

static int underlay_family(int udp_fd)
{
    int family = AF_INET;
    socklen_t length = sizeof(family);

    getsockopt(udp_fd, SOL_SOCKET, SO_DOMAIN, &family, &length);
    return family;
}

/*
 * Counters of lent pages go on from where they stand. As long as we have no table another worker may count in them, so the only thing
 * that is written now is that one which has failed, and so counts no more, is not us.
 */
static int init_stats(struct fp_worker *worker, void *lent)
{
    worker->stats_are_lent = lent != NULL;
    if (lent) {
        worker->stats = lent;
        worker->peers = fp_page_peers(lent);
        if (has_failed(worker))
            __atomic_store_n(&worker->stats->failed, 0, __ATOMIC_RELAXED);
        return 0;
    }
    worker->stats = aligned_alloc(FP_CACHE_LINE, fp_page_bytes());
    if (!worker->stats)
        return -ENOMEM;
    memset(worker->stats, 0, fp_page_bytes());
    worker->peers = fp_page_peers(worker->stats);
    return 0;
}

static int init_worker(struct fp_worker *worker, void *lent)
{
    int error = init_stats(worker, lent);

    if (error)
        return error;
    worker->context = (struct fp_context){.counters = &worker->stats->verdicts,
                                          .options = worker->settings.options,
                                          .tunnel_address = worker->settings.tunnel_address,
                                          .tunnel_address6 = worker->settings.tunnel_address6};
    fp_bucket_fill(&worker->bucket);
    fp_bucket_fill(&worker->too_big_bucket);
    worker->wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (worker->wake_fd < 0)
        return -errno;
    if (worker->directions & FP_OUTWARD) {
        worker->route_fd = socket(underlay_family(worker->send_fd), SOCK_DGRAM | SOCK_CLOEXEC, 0);
        error = fp_outward_init(worker);
    }
    if (!error && worker->directions & FP_INWARD)
        error = fp_inward_init(worker);
    return error;
}

static void free_worker(struct fp_worker *worker)
{
    if (worker->wake_fd >= 0)
        close(worker->wake_fd);
    if (worker->route_fd >= 0)
        close(worker->route_fd);
    fp_outward_free(worker);
    fp_inward_free(worker);
    if (!worker->stats_are_lent)
        free(worker->stats);
}

static int start_thread(struct fp_worker *worker, size_t number)
{
    char name[16];
    sigset_t all, before;
    int error;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    error = pthread_create(&worker->thread, NULL, run, worker);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (error)
        return -error;
    snprintf(name, sizeof(name), "flanpy-%zu", number % 10000);
    pthread_setname_np(worker->thread, name);
    worker->datapath->started++;
    return 0;
}

static bool lanes_are_sane(const struct fp_queue *queues, size_t n_queues)
{
    for (size_t i = 0; i < n_queues; i++) {
        if (queues[i].n_lanes < 1 || queues[i].n_lanes > FP_LANES_MAX)
            return false;
    }
    return true;
}

static bool settings_are_sane(const struct fp_settings *settings, size_t n_queues)
{
    return n_queues >= 1 && n_queues <= QUEUES_MAX && settings->max_segments >= 1 && settings->max_segments <= FP_SEGMENTS_MAX &&
           settings->threads_per_queue <= 2;
}

static struct fp_datapath *new_datapath(size_t n_queues, size_t n_workers)
{
    struct fp_datapath *datapath = calloc(1, sizeof(*datapath));
    pthread_condattr_t monotonic;

    if (!datapath)
        return NULL;
    datapath->workers = calloc(n_workers, sizeof(*datapath->workers));
    if (!datapath->workers) {
        free(datapath);
        return NULL;
    }
    datapath->n_queues = n_queues;
    datapath->n_workers = n_workers;
    pthread_mutex_init(&datapath->publishing, NULL);
    pthread_mutex_init(&datapath->lock, NULL);
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&datapath->moved_on, &monotonic);
    pthread_condattr_destroy(&monotonic);
    return datapath;
}

int fp_datapath_start(const struct fp_queue *queues, size_t n_queues, const struct fp_settings *settings, struct fp_datapath **out)
{
    return fp_datapath_start_in(queues, n_queues, settings, NULL, out);
}

int fp_datapath_start_in(const struct fp_queue *queues, size_t n_queues, const struct fp_settings *settings, void *pages,
                         struct fp_datapath **out)
{
    size_t per_queue = settings->threads_per_queue == 2 ? 2 : 1;
    struct fp_datapath *datapath;
    int error = 0;

    if (!settings_are_sane(settings, n_queues) || !lanes_are_sane(queues, n_queues))
        return -EINVAL;
    datapath = new_datapath(n_queues, n_queues * per_queue);
    if (!datapath)
        return -ENOMEM;
    for (size_t i = 0; i < datapath->n_workers; i++) {
        struct fp_worker *worker = &datapath->workers[i];

        *worker = (struct fp_worker){.datapath = datapath, .queue = queues[i / per_queue], .settings = *settings, .wake_fd = -1,
                                     .route_fd = -1, .send_fd = queues[i / per_queue].udp_fds[0], .in.epoll_fd = -1};
        worker->directions = per_queue == 1 ? FP_OUTWARD | FP_INWARD : i % 2 ? FP_INWARD : FP_OUTWARD;
        if (!error)
            error = init_worker(worker, pages ? (uint8_t *)pages + i * fp_page_bytes() : NULL);
    }
    for (size_t i = 0; i < datapath->n_workers && !error; i++)
        error = start_thread(&datapath->workers[i], i);
    wait_until_running(datapath);
    if (error)
        fp_datapath_stop(datapath);
    else
        *out = datapath;
    return error;
}

void fp_datapath_stop(struct fp_datapath *datapath)
{
    __atomic_store_n(&datapath->stop, 1, __ATOMIC_RELEASE);
    for (size_t i = 0; i < datapath->started; i++)
        fp_worker_wake(&datapath->workers[i]);
    for (size_t i = 0; i < datapath->started; i++)
        pthread_join(datapath->workers[i].thread, NULL);
    for (size_t i = 0; i < datapath->n_workers; i++)
        free_worker(&datapath->workers[i]);
    fp_snapshots_free(datapath->table);
    pthread_cond_destroy(&datapath->moved_on);
    pthread_mutex_destroy(&datapath->lock);
    pthread_mutex_destroy(&datapath->publishing);
    free(datapath->workers);
    free(datapath);
}
