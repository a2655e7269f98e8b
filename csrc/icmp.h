/*
 * icmp.h: what icmp.c hands on to icmp6.c, and what both of them need.
 */
#ifndef FLANPY_ICMP_H
#define FLANPY_ICMP_H

#include "ip.h"

/* fp_icmp_error for a packet of version 6. */
size_t fp_icmp6_error(const struct fp_context *context, enum fp_verdict verdict, const uint8_t *packet, size_t bytes,
                      uint32_t next_hop_mtu, uint8_t *out, size_t out_bytes);

enum { FP_ICMP_HEADER_BYTES = 8 };

/* How much of a packet an answer of at most `most` bytes quotes behind headers of `header_bytes`. */
FP_INLINE size_t fp_icmp_quoted(size_t packet_bytes, size_t header_bytes, size_t most)
{
    return packet_bytes < most - header_bytes ? packet_bytes : most - header_bytes;
}

#endif
