/*
 * Fuzz target: requests to the datapath process. Even: a packet as it comes; odd: one of the right kind and size with some bytes changed.
 * What is taken must be what protocol.h promises, and what is refused must be refused for the reason that it gives.
 *
 *   even: | descriptors | packet ...
 *   odd:  | kind | descriptors | n_queues 3, n_lanes 1, or bytes of the table 4 | length, less 128 | changes: | place | value | ...
 */
#include "fuzz.h"
#include "protocol.h"

#include <errno.h>

static size_t size_of(uint16_t kind)
{
    return kind == FP_MESSAGE_START   ? sizeof(struct fp_message_start)
           : kind == FP_MESSAGE_TABLE || kind == FP_MESSAGE_HOLD ? sizeof(struct fp_message_table)
                                      : sizeof(struct fp_message);
}

/* protocol.h once more, as a list of what must be true in turn. */
static int expected(const uint8_t *packet, size_t bytes, size_t n_fds)
{
    struct fp_message head;
    struct fp_message_start start;
    struct fp_message_table table;
    if (bytes < sizeof head)
        return -EPROTO;
    memcpy(&head, packet, sizeof head);
    bool known = head.kind >= FP_MESSAGE_HELLO && head.kind <= FP_MESSAGE_HOLD;
    bool holds_table = head.kind == FP_MESSAGE_TABLE || head.kind == FP_MESSAGE_HOLD;
    bool versioned = head.kind == FP_MESSAGE_START || holds_table;
    if (head.magic != FP_PROTOCOL_MAGIC || head.bytes != bytes || !known)
        return -EPROTO;
    if (versioned && head.version != FP_PROTOCOL_VERSION)
        return -EPROTONOSUPPORT;
    if (bytes != size_of(head.kind))
        return -EPROTO;
    if (holds_table) {
        memcpy(&table, packet, sizeof table);
        bool fitting = n_fds == 1 || (n_fds == 2 && head.kind == FP_MESSAGE_HOLD);
        return table.bytes == 0 || table.bytes > FP_TABLE_BYTES_MAX ? -EINVAL : fitting ? 0 : -EBADF;
    }
    if (head.kind == FP_MESSAGE_START) {
        memcpy(&start, packet, sizeof start);
        uint64_t fds = (uint64_t)start.n_queues * (1 + (uint64_t)start.n_lanes) + 1;
        bool fits = start.n_queues > 0 && start.n_queues <= FP_PROTOCOL_QUEUES_MAX && start.n_lanes > 0 && fds < FP_PROTOCOL_FDS_MAX;
        return !fits || start.n_lanes > FP_LANES_MAX ? -EINVAL : n_fds == fds ? 0 : -EBADF;
    }
    return n_fds == 0 ? 0 : -EBADF;
}

static void read_request(const uint8_t *packet, size_t bytes, size_t n_fds)
{
    struct fp_request request;
    struct fp_message head;
    memset(&request, 0xa5, sizeof request);
    int error = fp_request_read(packet, bytes, n_fds, &request);
    FZ_CHECK(error == expected(packet, bytes, n_fds));
    if (error != 0)
        return;
    memcpy(&head, packet, sizeof head);
    FZ_CHECK(request.kind == head.kind);
    if (request.kind == FP_MESSAGE_START)
        FZ_CHECK(memcmp(&request.start, packet, bytes) == 0);
    if (request.kind == FP_MESSAGE_TABLE || request.kind == FP_MESSAGE_HOLD)
        FZ_CHECK(memcmp(&request.table, packet, bytes) == 0);
    struct fp_message reply = fp_reply_head(request.kind, sizeof reply, error);
    /* What we say is no request: two processes that were connected to each other would fall silent. */
    FZ_CHECK(fp_request_read(&reply, sizeof reply, 0, &request) == -EPROTO);
}

static void as_it_comes(struct fz_input *input)
{
    size_t n_fds = fz_u8(input);
    size_t bytes = FP_PROTOCOL_BYTES_MAX;
    uint8_t *packet = fz_take(input, &bytes);
    read_request(packet, bytes, n_fds);
    free(packet);
}

static void nearly_right(struct fz_input *input)
{
    uint8_t whole[sizeof(struct fp_message_start) + 128];
    uint16_t kind = fz_u8(input) % 8;
    size_t n_fds = fz_u8(input);
    uint32_t number = fz_u32(input);
    size_t bytes = size_of(kind) + fz_u8(input);
    memset(whole, 0, sizeof whole);
    bytes = bytes < 128 ? 0 : bytes - 128;
    struct fp_message head = {.magic = FP_PROTOCOL_MAGIC, .version = FP_PROTOCOL_VERSION, .kind = kind, .bytes = (uint32_t)bytes};
    uint64_t table_bytes = number;
    memcpy(whole, &head, sizeof head);
    if (kind == FP_MESSAGE_START) {
        const uint32_t queues_and_lanes[] = {number >> 8, number & 0xff};
        memcpy(whole + offsetof(struct fp_message_start, n_queues), queues_and_lanes, sizeof queues_and_lanes);
    }
    if (kind == FP_MESSAGE_TABLE || kind == FP_MESSAGE_HOLD)
        memcpy(whole + offsetof(struct fp_message_table, bytes), &table_bytes, sizeof table_bytes);
    while (input->left > 0) {
        size_t place = fz_u8(input) % sizeof whole;
        whole[place] = fz_u8(input);
    }
    uint8_t *packet = malloc(bytes > 0 ? bytes : 1); /* of its size, so that a byte beyond is seen */
    memcpy(packet, whole, bytes);
    read_request(packet, bytes, n_fds);
    free(packet);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    struct fz_input input = {data, bytes};
    if (fz_u8(&input) & 1)
        nearly_right(&input);
    else
        as_it_comes(&input);
    return 0;
}
