/*
 * worker_stats.c: the pages that workers count in, and adding them up from outside while they do.
 *
 *   page  | struct fp_stats | struct fp_peer_counts, on the next cache line |
 *
 * A page may be memory that another process writes: nothing in it is a length or a place, so reading is bounded whatever it holds.
 */
#include <errno.h>
#include <string.h>

#include "worker_state.h"

static size_t peers_at(void)
{
    return (sizeof(struct fp_stats) + FP_CACHE_LINE - 1) / FP_CACHE_LINE * FP_CACHE_LINE;
}

size_t fp_page_bytes(void)
{
    return peers_at() + fp_peer_counts_bytes();
}

struct fp_peer_counts *fp_page_peers(void *page)
{
    return (struct fp_peer_counts *)(void *)((uint8_t *)page + peers_at());
}

static uint64_t peek(const uint64_t *counter)
{
    return __atomic_load_n(counter, __ATOMIC_RELAXED);
}

static void add_stats(struct fp_stats *sum, const struct fp_stats *page)
{
    uint64_t generation = peek(&page->generation);

    for (size_t i = 0; i < FP_VERDICT_COUNT; i++) {
        sum->verdicts.by[i].packets += peek(&page->verdicts.by[i].packets);
        sum->verdicts.by[i].bytes += peek(&page->verdicts.by[i].bytes);
    }
    for (size_t i = 0; i < FP_WORK_COUNT; i++)
        sum->work[i] += peek(&page->work[i]);
    if (generation < sum->generation)
        sum->generation = generation;
    if (!sum->failed)
        sum->failed = __atomic_load_n(&page->failed, __ATOMIC_RELAXED);
}

void fp_stats_sum(const void *pages, size_t n_pages, struct fp_stats *out)
{
    memset(out, 0, sizeof(*out));
    out->generation = n_pages ? UINT64_MAX : 0;
    for (size_t i = 0; i < n_pages; i++)
        add_stats(out, (const struct fp_stats *)(const void *)((const uint8_t *)pages + i * fp_page_bytes()));
}

int fp_datapath_stats(const struct fp_datapath *datapath, size_t queue, struct fp_stats *out)
{
    size_t per_queue = datapath->n_workers / datapath->n_queues;

    if (queue >= datapath->n_queues)
        return -ERANGE;
    memset(out, 0, sizeof(*out));
    out->generation = UINT64_MAX;
    for (size_t i = 0; i < per_queue; i++)
        add_stats(out, datapath->workers[queue * per_queue + i].stats);
    return 0;
}

void fp_peers_sum(const void *pages, size_t n_pages, const struct fp_address *addresses, size_t n, struct fp_peer_count *out)
{
    for (size_t i = 0; i < n_pages; i++) {
        const uint8_t *peers = (const uint8_t *)pages + i * fp_page_bytes() + peers_at();

        fp_peer_counts_add((const struct fp_peer_counts *)(const void *)peers, addresses, n, out);
    }
}

void fp_datapath_peers(const struct fp_datapath *datapath, const struct fp_address *addresses, size_t n, struct fp_peer_count *out)
{
    for (size_t i = 0; i < datapath->n_workers; i++)
        fp_peer_counts_add(datapath->workers[i].peers, addresses, n, out);
}
