/*
 * ip.h: IP headers: check, fields, addresses, time to live and ECN; in IPv4 with an incremental checksum (RFC 1624).
 *
 * What differs between the families is decided here by `version`; who looks at transports sees one struct fp_ip. The functions with
 * `ip6` in their names are ip6.c's.
 */
#ifndef FLANPY_IP_H
#define FLANPY_IP_H

#include "wire.h"

/* What a checked header says, in host order. */
struct fp_ip {
    uint32_t source;       /* IPv4 alone; IPv6 addresses are read from the packet */
    uint32_t destination;
    uint16_t header_bytes; /* IPv4 20..60, a multiple of 4; IPv6 40 and the extension headers before `protocol` */
    uint16_t total_bytes;  /* header_bytes..bytes given */
    uint16_t fragment;     /* IPv4's field with DF, MF and the offset; IPv6 with a fragment header: MF and its offset */
    uint8_t protocol;
    uint8_t ttl;
    uint8_t tos;
    uint8_t version; /* 4 or 6 */
};

/*
 * Check a header of either family and read it. 0 (FP_ENCAPSULATED: nothing against it), FP_DROP_TRUNCATED, FP_DROP_BAD_HEADER (neither
 * version 4 nor 6, impossible lengths, wrong header checksum; RFC 1812 5.2.2), FP_DROP_MARTIAN. `ip` is filled only for 0 and
 * FP_DROP_MARTIAN.
 */
enum fp_verdict fp_ip_check(const uint8_t *packet, size_t bytes, struct fp_ip *ip);
/*
 * The same for what has at least a byte, of version 6. `protocol` is what follows hop-by-hop and destination options (at most four such
 * headers) and a fragment header; a chain that is longer or reaches past the packet ends in FP_PROTOCOL_NONE or the header that stopped
 * it: such packets are carried as they are, and nobody looks into them. Routing headers are not walked: they change what the checksum
 * is about. A jumbogram (RFC 2675) is FP_DROP_BAD_HEADER.
 */
enum fp_verdict fp_ip6_check(const uint8_t *packet, size_t bytes, struct fp_ip *ip);

/* IPv6: an extension header, behind which there is another (RFC 7045 and its registry); what it is, is known by walking on. */
FP_INLINE bool fp_ip6_is_extension(uint8_t next)
{
    return next == FP_PROTOCOL_HOP_BY_HOP || next == FP_PROTOCOL_ROUTING || next == FP_PROTOCOL_FRAGMENT || next == FP_PROTOCOL_AH ||
           next == FP_PROTOCOL_DESTINATION || next == FP_PROTOCOL_MOBILITY || next == FP_PROTOCOL_HIP || next == FP_PROTOCOL_SHIM6;
}

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

FP_INLINE void fp_ip6_set_tos(uint8_t *packet, uint8_t tos)
{
    uint16_t word = fp_load16_be(packet);
    fp_store16_be(packet, (uint16_t)((word & 0xf00f) | (unsigned)tos << 4));
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

FP_INLINE uint64_t fp_ip6_pseudo_sum(const uint8_t *packet, uint8_t protocol, uint32_t transport_bytes)
{
    uint64_t sum = (uint64_t)fp_swap16(protocol) + fp_swap16((uint16_t)transport_bytes);
    for (size_t at = FP_IP6_SOURCE; at < FP_IP6_BYTES; at += 4)
        sum += fp_load32(packet + at);
    return sum;
}

/* Where the addresses of both ends stand, and how long they are together. */
FP_INLINE const uint8_t *fp_ip_addresses(const uint8_t *packet, uint8_t version)
{
    return packet + (version == 4 ? FP_IP_SOURCE : FP_IP6_SOURCE);
}

FP_INLINE size_t fp_ip_addresses_bytes(uint8_t version)
{
    return version == 4 ? 8 : 32;
}

/* For hash tables of flows; good enough where nothing but speed depends on it. */
FP_INLINE uint64_t fp_ip_addresses_hash(const uint8_t *packet, uint8_t version)
{
    const uint8_t *addresses = fp_ip_addresses(packet, version);
    if (FP_LIKELY(version == 4))
        return fp_load64(addresses);
    return fp_load64(addresses) + 3 * fp_load64(addresses + 8) + 5 * fp_load64(addresses + 16) + 7 * fp_load64(addresses + 24);
}

FP_INLINE uint64_t fp_ip_any_pseudo_sum(const uint8_t *packet, uint8_t version, uint8_t protocol, uint32_t transport_bytes)
{
    return FP_LIKELY(version == 4) ? fp_ip_pseudo_sum(packet, protocol, transport_bytes)
                                   : fp_ip6_pseudo_sum(packet, protocol, transport_bytes);
}

/* One hop less; the caller has seen a TTL of at least 1. */
FP_INLINE void fp_ip_age(uint8_t *packet, uint8_t version)
{
    if (FP_LIKELY(version == 4))
        fp_ip_decrement_ttl(packet);
    else
        packet[FP_IP6_HOPS]--;
}

/*
 * Options of the header of every fragment but the first (RFC 791: those with the copied flag), from a checked header into
 * `out` (FP_IP_BYTES_MAX bytes, header included). Returns the header's bytes, padded to 4; lengths and checksum are the caller's.
 */
size_t fp_ip_later_header(const uint8_t *packet, size_t header_bytes, uint8_t *out);

#endif
