/*
 * protocol.c: reads requests to the datapath process. Pure: no descriptor is touched here, only counted.
 */
#include "protocol.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

static_assert(sizeof(struct fp_message) == 16, "the head keeps its form for ever");
static_assert(offsetof(struct fp_message_state, settings) == 120, "what every agent can read of the state keeps its form");
static_assert(sizeof(struct fp_message_start) <= FP_PROTOCOL_BYTES_MAX && sizeof(struct fp_message_state) <= FP_PROTOCOL_BYTES_MAX,
              "every message fits into the buffers");
static_assert(2 * FP_PROTOCOL_QUEUES_MAX + 2 <= FP_PROTOCOL_FDS_MAX, "all queues of one lane, counters and table");

uint32_t fp_start_queue_fds(const struct fp_message_start *start)
{
    return start->n_queues * (1 + start->n_lanes);
}

static int read_start(const void *packet, size_t bytes, size_t n_fds, struct fp_message_start *start)
{
    if (bytes != sizeof(*start))
        return -EPROTO;
    memcpy(start, packet, sizeof(*start));
    if (start->n_queues < 1 || start->n_queues > FP_PROTOCOL_QUEUES_MAX || start->n_lanes < 1 || start->n_lanes > FP_LANES_MAX)
        return -EINVAL;
    /* With the table these are all that an answer to HELLO has room for. */
    if (fp_start_queue_fds(start) + 2 > FP_PROTOCOL_FDS_MAX)
        return -EINVAL;
    return n_fds == (size_t)fp_start_queue_fds(start) + 1 ? 0 : -EBADF;
}

static int read_table(const void *packet, size_t bytes, size_t n_fds, size_t n_fds_max, struct fp_message_table *table)
{
    if (bytes != sizeof(*table))
        return -EPROTO;
    memcpy(table, packet, sizeof(*table));
    if (table->bytes < 1 || table->bytes > FP_TABLE_BYTES_MAX)
        return -EINVAL;
    return n_fds >= 1 && n_fds <= n_fds_max ? 0 : -EBADF;
}

static int read_bare(size_t bytes, size_t n_fds)
{
    if (bytes != sizeof(struct fp_message))
        return -EPROTO;
    return n_fds == 0 ? 0 : -EBADF;
}

int fp_request_read(const void *packet, size_t bytes, size_t n_fds, struct fp_request *out)
{
    struct fp_message head;

    memset(out, 0, sizeof(*out));
    if (bytes < sizeof(head))
        return -EPROTO;
    memcpy(&head, packet, sizeof(head));
    if (head.magic != FP_PROTOCOL_MAGIC || head.bytes != bytes)
        return -EPROTO;
    out->kind = head.kind;
    if (head.kind == FP_MESSAGE_HELLO || head.kind == FP_MESSAGE_STOP || head.kind == FP_MESSAGE_PING)
        return read_bare(bytes, n_fds);
    if (head.kind != FP_MESSAGE_START && head.kind != FP_MESSAGE_TABLE && head.kind != FP_MESSAGE_HOLD)
        return -EPROTO;
    if (head.version != FP_PROTOCOL_VERSION)
        return -EPROTONOSUPPORT;
    return head.kind == FP_MESSAGE_START ? read_start(packet, bytes, n_fds, &out->start)
                                         : read_table(packet, bytes, n_fds, head.kind == FP_MESSAGE_HOLD ? 2 : 1, &out->table);
}

struct fp_message fp_reply_head(uint16_t kind, size_t bytes, int error)
{
    return (struct fp_message){.magic = FP_PROTOCOL_MAGIC,
                               .version = FP_PROTOCOL_VERSION,
                               .kind = (uint16_t)(kind | FP_MESSAGE_REPLY),
                               .bytes = (uint32_t)bytes,
                               .error = error};
}
