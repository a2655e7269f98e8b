/*
 * fuzz.h: what the fuzz targets share: reading the input, one node's table, and memory of exactly the size that is claimed, so that
 * AddressSanitizer sees a step outside.
 *
 * A target is LLVMFuzzerTestOneInput; build.sh links it with libFuzzer, or with replay.c to run files. FZ_CHECK ends the process.
 */
#ifndef FLANPY_FUZZ_H
#define FLANPY_FUZZ_H

#include <stdio.h>
#include <stdlib.h>

#include "ip.h"

#define FZ_CHECK(condition)                                                                                                   \
    do {                                                                                                                      \
        if (!(condition)) {                                                                                                   \
            fprintf(stderr, "%s:%d: %s does not hold\n", __FILE__, __LINE__, #condition);                                     \
            abort();                                                                                                          \
        }                                                                                                                     \
    } while (0)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

/* The input, read from the front; past its end come zeros. */
struct fz_input {
    const uint8_t *data;
    size_t left;
};

FP_INLINE uint8_t fz_u8(struct fz_input *input)
{
    if (input->left == 0)
        return 0;
    input->left--;
    return *input->data++;
}

FP_INLINE uint16_t fz_u16(struct fz_input *input)
{
    uint8_t high = fz_u8(input);
    return (uint16_t)(high << 8 | fz_u8(input));
}

FP_INLINE uint32_t fz_u32(struct fz_input *input)
{
    uint32_t high = fz_u16(input);
    return high << 16 | fz_u16(input);
}

/* Up to `bytes` of the input in heap memory of exactly that size. */
FP_INLINE uint8_t *fz_take(struct fz_input *input, size_t *bytes)
{
    if (*bytes > input->left)
        *bytes = input->left;
    uint8_t *copy = malloc(*bytes > 0 ? *bytes : 1);
    if (*bytes > 0)
        memcpy(copy, input->data, *bytes);
    input->data += *bytes;
    input->left -= *bytes;
    return copy;
}

#define FZ_HERE 0x0a050105u  /* 10.5.1.5, ours */
#define FZ_THERE 0x0a050207u /* 10.5.2.7, behind 172.16.0.2 */

static const uint8_t fz_here6[16] = {0xfd, 0x05, [7] = 1, [15] = 5};  /* fd05:0:0:1::5, ours */
static const uint8_t fz_there6[16] = {0xfd, 0x05, [7] = 2, [15] = 7}; /* fd05:0:0:2::7, behind 172.16.0.2 */

FP_INLINE void fz_store_address(uint8_t *packet, size_t at4, size_t at6, uint32_t address)
{
    if (packet[0] >> 4 == 6)
        memcpy(packet + at6, address == FZ_HERE ? fz_here6 : fz_there6, 16);
    else
        fp_store32_be(packet + at4, address);
}

/* With a right header checksum and, if they are given, addresses that the table of this file knows: else all ends at the first check. */
FP_INLINE void fz_repair(uint8_t *packet, size_t bytes, const uint32_t *source, const uint32_t *destination)
{
    bool ip6 = bytes > 0 && packet[0] >> 4 == 6;
    size_t header_bytes = ip6 ? FP_IP6_BYTES : bytes > 0 ? (size_t)(packet[0] & 15) * 4 : 0;
    if (bytes < FP_IP_BYTES || header_bytes < FP_IP_BYTES || header_bytes > bytes)
        return;
    if (source != NULL)
        fz_store_address(packet, FP_IP_SOURCE, FP_IP6_SOURCE, *source);
    if (destination != NULL)
        fz_store_address(packet, FP_IP_DESTINATION, FP_IP6_DESTINATION, *destination);
    if (!ip6)
        fp_ip_store_check(packet, header_bytes);
}

FP_INLINE void *fz_aligned(size_t bytes)
{
    void *memory = aligned_alloc(64, (bytes + 63) / 64 * 64);
    FZ_CHECK(memory != NULL);
    return memory;
}

/* Memory that lasts for the whole run: allocating a megabyte for each input would be most of the work. */
FP_INLINE void *fz_lasting(void **memory, size_t bytes)
{
    if (*memory == NULL)
        *memory = fz_aligned(bytes);
    return *memory;
}

static const struct fp_address fz_peer = {{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 172, 16, 0, 2}};

struct fz_node {
    struct fp_context context;
    struct fp_verdict_counters counters;
};

/* 10.5.1.0/24 and fd05:0:0:1::/64 are ours, 10.5.2.0/24 and fd05:0:0:2::/64 are the peer's. */
FP_INLINE void fz_node_init(struct fz_node *node, uint32_t mtu_bytes, uint32_t options)
{
    const struct fp_route4 routes[] = {{0x0a050100, 24, FP_HOP_LOCAL}, {0x0a050200, 24, 0}};
    struct fp_hop hop = {.address = fz_peer, .port = 8285, .flags = FP_HOP_ECN};
    const struct fp_route6 routes6[] = {{{{0xfd, 0x05, [7] = 1}}, 64, FP_HOP_LOCAL}, {{{0xfd, 0x05, [7] = 2}}, 64, 0}};
    const struct fp_routes all = {.v4 = routes, .n_v4 = 2, .v6 = routes6, .n_v6 = 2, .hops = &hop, .n_hops = 1};
    static void *table;
    if (table == NULL) { /* sizing it anew for each input would be most of the work */
        size_t bytes = fp_table_bytes(&all);
        FZ_CHECK(fp_table_build(fz_lasting(&table, bytes), bytes, 1, &all) == 0);
    }
    memset(&node->counters, 0, sizeof node->counters);
    node->context = (struct fp_context){.table = table, .counters = &node->counters, .mtu_bytes = mtu_bytes, .options = options,
                                        .tunnel_address = 0x0a050100, .tunnel_address6 = routes6[0].prefix};
}

#endif
