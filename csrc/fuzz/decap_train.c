/*
 * Fuzz target: trains from the underlay. Every datagram must get one verdict, and every write must be readable and stand for as many
 * packets as it says.
 *
 *   | options | then trains: | flags: 1 repair, 2 addresses | outer TOS | segment 2 | length 2 | bytes | ...
 */
#include "fuzz.h"

enum { TRAINS_MAX = 16 };

struct batch {
    struct fp_decap *decap;
    uint8_t *trains[TRAINS_MAX];
    uint32_t count;
    uint64_t packets; /* written */
};

static void check_write(const struct fp_write *write)
{
    static uint8_t packet[FP_VNET_HDR_BYTES + FP_PACKET_BYTES_MAX];
    size_t bytes = 0;
    for (uint32_t i = 0; i < write->iov_count; i++) {
        FZ_CHECK(bytes + write->iov[i].iov_len <= sizeof packet);
        memcpy(packet + bytes, write->iov[i].iov_base, write->iov[i].iov_len);
        bytes += write->iov[i].iov_len;
    }
    struct fp_ip ip;
    FZ_CHECK(fp_ip_check(packet + FP_VNET_HDR_BYTES, bytes - FP_VNET_HDR_BYTES, &ip) == FP_ENCAPSULATED);
    FZ_CHECK(ip.total_bytes == bytes - FP_VNET_HDR_BYTES);
    if (write->packets == 1)
        return;
    struct fp_vnet vnet;
    memcpy(&vnet, packet, sizeof vnet);
    uint32_t headers = vnet.header_bytes;
    FZ_CHECK(vnet.gso_size > 0 && headers < ip.total_bytes);
    FZ_CHECK(write->packets == (ip.total_bytes - headers - 1) / vnet.gso_size + 1);
    FZ_CHECK(write->bytes == ip.total_bytes - headers + write->packets * headers);
}

static void flush(struct batch *batch)
{
    const struct fp_write *writes;
    const struct iovec *expired;
    size_t count = fp_decap_writes(batch->decap, &writes);
    for (size_t i = 0; i < count; i++) {
        check_write(&writes[i]);
        batch->packets += writes[i].packets;
    }
    count = fp_decap_expired(batch->decap, &expired);
    for (size_t i = 0; i < count; i++) {
        const uint8_t *packet = expired[i].iov_base;
        FZ_CHECK(packet[packet[0] >> 4 == 6 ? FP_IP6_HOPS : FP_IP_TTL] <= 1);
    }
    fp_decap_reset(batch->decap);
    for (uint32_t i = 0; i < batch->count; i++)
        free(batch->trains[i]);
    batch->count = 0;
}

static void repair(uint8_t *train, size_t bytes, size_t segment, bool addresses)
{
    const uint32_t here = FZ_HERE, there = FZ_THERE;
    for (size_t at = 0; at < bytes; at += segment)
        fz_repair(train + at, bytes - at < segment ? bytes - at : segment, addresses ? &there : NULL, addresses ? &here : NULL);
}

/* Offer one train, in as many batches as it needs. Returns the number of datagrams in it. */
static uint64_t offer(struct batch *batch, const struct fp_context *context, struct fz_input *input)
{
    uint8_t flags = fz_u8(input);
    uint8_t tos = fz_u8(input);
    size_t segment = fz_u16(input);
    size_t bytes = fz_u16(input);
    uint8_t *train = fz_take(input, &bytes);
    size_t step = segment == 0 || segment > bytes ? bytes : segment;
    if ((flags & 1) && step > 0)
        repair(train, bytes, step, flags & 2);
    uint64_t datagrams = step == 0 ? 1 : (bytes - 1) / step + 1;
    batch->trains[batch->count++] = train;
    size_t taken = fp_decap_train(batch->decap, context, &fz_peer, tos, train, bytes, segment);
    while (taken < bytes) {
        size_t left = bytes - taken;
        uint8_t *rest = malloc(left);
        memcpy(rest, train + taken, left);
        flush(batch);
        train = rest;
        bytes = left;
        batch->trains[batch->count++] = train;
        taken = fp_decap_train(batch->decap, context, &fz_peer, tos, train, bytes, step);
        FZ_CHECK(taken > 0); /* an empty batch takes something */
    }
    return datagrams;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    struct fz_input input = {data, bytes};
    struct fz_node node;
    struct batch batch = {.count = 0, .packets = 0};
    fz_node_init(&node, 1472, fz_u8(&input));
    static void *memory;
    batch.decap = fp_decap_init(fz_lasting(&memory, fp_decap_bytes()));
    uint64_t datagrams = 0;
    while (input.left > 0) {
        if (batch.count == TRAINS_MAX)
            flush(&batch);
        datagrams += offer(&batch, &node.context, &input);
    }
    flush(&batch);
    for (uint32_t i = 0; i < FP_VERDICT_COUNT; i++)
        batch.packets += node.counters.by[i].packets;
    FZ_CHECK(batch.packets == datagrams); /* each got one verdict */
    return 0;
}
