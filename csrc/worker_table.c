/*
 * worker_table.c: the hand-over of route tables from the thread that publishes to the workers; the theory stands in worker.c.
 *
 *   publish: copy or mapping -> check -> store-release -> wake all -> wait until all have moved on -> free the old one
 *   worker:  load-acquire once a turn -> say under the lock that it has moved on
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "worker_state.h"

#define PUBLISH_LIMIT_S 2 /* a turn takes milliseconds; a thread that needs longer does not run at all */

void fp_worker_pick_up_table(struct fp_worker *worker)
{
    struct fp_datapath *datapath = worker->datapath;
    const struct fp_snapshot *table = __atomic_load_n(&datapath->table, __ATOMIC_ACQUIRE);

    if (table == worker->held)
        return;
    worker->context.table = table->table;
    worker->context.mtu_bytes = fp_table_mtu(table->table);
    __atomic_store_n(&worker->stats->generation, fp_table_generation(worker->context.table), __ATOMIC_RELAXED);
    fp_worker_work(worker, FP_WORK_TABLES, 1);
    pthread_mutex_lock(&datapath->lock);
    worker->held = table;
    pthread_cond_signal(&datapath->moved_on);
    pthread_mutex_unlock(&datapath->lock);
}

void fp_worker_wake(const struct fp_worker *worker)
{
    const uint64_t one = 1;

    if (write(worker->wake_fd, &one, sizeof(one)) < 0)
        return; /* EAGAIN: the counter is full of wake-ups that it has not seen yet, so it will wake */
}

void fp_snapshots_free(struct fp_snapshot *snapshot)
{
    while (snapshot) {
        struct fp_snapshot *older = snapshot->retired;

        if (snapshot->mapped)
            munmap(snapshot->mapped, snapshot->mapped_bytes);
        free(snapshot);
        snapshot = older;
    }
}

/* Wait until every worker holds this table. 0 or -ETIMEDOUT. */
static int wait_for_workers(struct fp_datapath *datapath, const struct fp_snapshot *table)
{
    struct timespec deadline;
    int error = 0;

    clock_gettime(CLOCK_MONOTONIC, &deadline);
    deadline.tv_sec += PUBLISH_LIMIT_S;
    pthread_mutex_lock(&datapath->lock);
    for (size_t i = 0; i < datapath->n_workers && !error;) {
        if (datapath->workers[i].held == table)
            i++;
        else
            error = pthread_cond_timedwait(&datapath->moved_on, &datapath->lock, &deadline);
    }
    pthread_mutex_unlock(&datapath->lock);
    return error ? -ETIMEDOUT : 0;
}

static struct fp_snapshot *new_snapshot(size_t blob_bytes)
{
    size_t rounded = (sizeof(struct fp_snapshot) + blob_bytes + FP_CACHE_LINE - 1) / FP_CACHE_LINE * FP_CACHE_LINE;
    struct fp_snapshot *snapshot = aligned_alloc(FP_CACHE_LINE, rounded);

    if (snapshot)
        memset(snapshot, 0, sizeof(*snapshot));
    return snapshot;
}

static int put_up(struct fp_datapath *datapath, struct fp_snapshot *snapshot)
{
    int error;

    pthread_mutex_lock(&datapath->publishing);
    snapshot->retired = datapath->table;
    __atomic_store_n(&datapath->table, snapshot, __ATOMIC_RELEASE);
    for (size_t i = 0; i < datapath->n_workers; i++)
        fp_worker_wake(&datapath->workers[i]);
    error = wait_for_workers(datapath, snapshot);
    if (!error) {
        fp_snapshots_free(snapshot->retired);
        snapshot->retired = NULL;
    }
    pthread_mutex_unlock(&datapath->publishing);
    return error;
}

int fp_datapath_publish(struct fp_datapath *datapath, const void *table, size_t bytes)
{
    struct fp_snapshot *snapshot = new_snapshot(bytes);

    if (!snapshot)
        return -ENOMEM;
    memcpy(snapshot->blob, table, bytes);
    if (fp_table_check(snapshot->blob, bytes) != 0) {
        free(snapshot);
        return -EINVAL;
    }
    snapshot->table = (const struct fp_table *)(const void *)snapshot->blob;
    return put_up(datapath, snapshot);
}

int fp_datapath_publish_mapped(struct fp_datapath *datapath, void *mapped, size_t bytes)
{
    struct fp_snapshot *snapshot;

    if (fp_table_check(mapped, bytes) != 0)
        return -EINVAL;
    snapshot = new_snapshot(0);
    if (!snapshot)
        return -ENOMEM;
    snapshot->table = mapped;
    snapshot->mapped = mapped;
    snapshot->mapped_bytes = bytes;
    return put_up(datapath, snapshot);
}
