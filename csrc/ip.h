/*
 * ip.h: the IPv4 header: check, fields, addresses, time to live and ECN with an incremental checksum (RFC 1624).
 */
#ifndef FLANPY_IP_H
#define FLANPY_IP_H

#include "wire.h"

/* What a checked header says, in host order. */
struct fp_ip {
    uint32_t source;
    uint32_t destination;
    uint16_t header_bytes; /* 20..60, a multiple of 4 */
    uint16_t total_bytes;  /* header_bytes..bytes given */
    uint16_t fragment;     /* the field with DF, MF and the offset */
    uint8_t protocol;
    uint8_t ttl;
    uint8_t tos;
};

/*
 * Check a header and read it. 0 (FP_ENCAPSULATED: nothing against it), FP_DROP_TRUNCATED, FP_DROP_BAD_HEADER (not version 4, impossible
 * lengths, wrong header checksum; RFC 1812 5.2.2), FP_DROP_MARTIAN. `ip` is filled only for 0 and FP_DROP_MARTIAN.
 */
enum fp_verdict fp_ip_check(const uint8_t *packet, size_t bytes, struct fp_ip *ip);

/* Never forwarded, as source or destination: 0/8, 127/8, multicast, limited broadcast. */
FP_INLINE bool fp_ip_martian(uint32_t address)
{
    uint32_t top = address >> 24;
    return top == 0 || top == 127 || (top & 0xf0) == 0xe0 || address == 0xffffffff;
}

FP_INLINE bool fp_ip_is_fragment(const struct fp_ip *ip)
{
    return (ip->fragment & (FP_IP_MF | FP_IP_OFFSET)) != 0;
}

/* Checksum after a 16-bit word of the data changed; all in native order (RFC 1624, equation 3). */
FP_INLINE uint16_t fp_check_adjust(uint16_t check, uint16_t before, uint16_t after)
{
    uint32_t sum = (uint32_t)(uint16_t)~check + (uint16_t)~before + after;
    sum = (sum >> 16) + (sum & 0xffff);
    sum = (sum >> 16) + (sum & 0xffff);
    return (uint16_t)~sum;
}

/* Store one of the header's 16-bit words (at an even offset) and keep the header checksum right. */
FP_INLINE void fp_ip_replace16(uint8_t *packet, size_t offset, uint16_t after)
{
    uint16_t before = fp_load16(packet + offset);
    fp_store16(packet + offset, after);
    fp_store16(packet + FP_IP_CHECK, fp_check_adjust(fp_load16(packet + FP_IP_CHECK), before, after));
}

/* The caller has seen a TTL of at least 1. */
FP_INLINE void fp_ip_decrement_ttl(uint8_t *packet)
{
    uint16_t word = fp_load16_be(packet + FP_IP_TTL);
    fp_ip_replace16(packet, FP_IP_TTL, fp_swap16((uint16_t)(word - 0x0100)));
}

FP_INLINE void fp_ip_set_tos(uint8_t *packet, uint8_t tos)
{
    uint16_t word = fp_load16_be(packet);
    fp_ip_replace16(packet, 0, fp_swap16((uint16_t)((word & 0xff00) | tos)));
}

/* Make the header checksum anew. */
void fp_ip_store_check(uint8_t *packet, size_t header_bytes);

/* Inner ECN bits after decapsulation (RFC 6040, figure 4), or -1: drop. */
int fp_ecn_combine(unsigned inner, unsigned outer);

/* Pseudo-header of TCP or UDP over IPv4 as a sum in native order; addresses are read from the packet. */
FP_INLINE uint64_t fp_ip_pseudo_sum(const uint8_t *packet, uint8_t protocol, uint32_t transport_bytes)
{
    return (uint64_t)fp_load32(packet + FP_IP_SOURCE) + fp_load32(packet + FP_IP_DESTINATION) + fp_swap16(protocol) +
           fp_swap16((uint16_t)transport_bytes);
}

/*
 * Options of the header of every fragment but the first (RFC 791: those with the copied flag), from a checked header into
 * `out` (FP_IP_BYTES_MAX bytes, header included). Returns the header's bytes, padded to 4; lengths and checksum are the caller's.
 */
size_t fp_ip_later_header(const uint8_t *packet, size_t header_bytes, uint8_t *out);

#endif
