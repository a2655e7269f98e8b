/*
 * ip6.c: reading and checking the IPv6 header (RFC 8200). Changes no packet; knows no transport.
 *
 *   | IPv6 40 | hop-by-hop, destination options 8n ... | fragment 8 | protocol ...
 *
 * Extension headers are the ends' business: a node on the way carries them as they are. They are walked only to find what follows, so that
 * what can be merged is merged and nothing else.
 */
#include "ip.h"

enum {
    OPTIONS_HEADERS_MAX = 4, /* RFC 8200 4.1 has three at most; bounds the walk */
    FRAGMENT_BYTES = 8,
    FRAGMENT_OFFSET = 2,
};

/* Never forwarded: multicast, link-local, and all of ::/80 (unspecified, loopback, mapped and compatible IPv4; RFC 4291 2.5). */
static bool martian(const uint8_t *address)
{
    if (address[0] == 0xff || (address[0] == 0xfe && (address[1] & 0xc0) == 0x80))
        return true;
    return fp_load64(address) == 0 && fp_load16(address + 8) == 0;
}

/* The options header at `at`: its bytes, or 0 when it does not lie in the packet as a whole. */
static size_t options_bytes(const uint8_t *packet, size_t at, size_t total_bytes)
{
    /* Its length byte must be there to be read, and what it says must be there to be passed. */
    if (total_bytes - at < 8)
        return 0;
    size_t bytes = ((size_t)packet[at + 1] + 1) * 8;
    return bytes <= total_bytes - at ? bytes : 0;
}

static void find_protocol(const uint8_t *packet, struct fp_ip *ip)
{
    uint8_t next = packet[FP_IP6_NEXT];
    size_t at = FP_IP6_BYTES;
    for (unsigned i = 0; i < OPTIONS_HEADERS_MAX && (next == FP_PROTOCOL_HOP_BY_HOP || next == FP_PROTOCOL_DESTINATION); i++) {
        size_t bytes = options_bytes(packet, at, ip->total_bytes);
        next = bytes == 0 ? FP_PROTOCOL_NONE : packet[at];
        at += bytes;
    }
    if (next == FP_PROTOCOL_FRAGMENT && ip->total_bytes - at >= FRAGMENT_BYTES) {
        ip->fragment = (uint16_t)(FP_IP_MF | fp_load16_be(packet + at + FRAGMENT_OFFSET) >> 3);
        next = packet[at];
        at += FRAGMENT_BYTES;
    }
    ip->protocol = next;
    ip->header_bytes = (uint16_t)at;
}

enum fp_verdict fp_ip6_check(const uint8_t *packet, size_t bytes, struct fp_ip *ip)
{
    /* Nothing but the version is read before the fixed header is known to be there. */
    if (FP_UNLIKELY(bytes < FP_IP6_BYTES))
        return FP_DROP_TRUNCATED;
    size_t payload_bytes = fp_load16_be(packet + FP_IP6_LENGTH);
    if (FP_UNLIKELY(payload_bytes == 0 && packet[FP_IP6_NEXT] == FP_PROTOCOL_HOP_BY_HOP))
        return FP_DROP_BAD_HEADER;
    /* The packet may not reach past what was received, nor past the 16 bits of our own lengths. */
    size_t total_bytes = FP_IP6_BYTES + payload_bytes;
    if (FP_UNLIKELY(total_bytes > bytes || total_bytes > FP_PACKET_BYTES_MAX))
        return FP_DROP_TRUNCATED;

    *ip = (struct fp_ip){.total_bytes = (uint16_t)total_bytes, .version = 6};
    ip->tos = (uint8_t)(fp_load16_be(packet) >> 4);
    ip->ttl = packet[FP_IP6_HOPS];
    find_protocol(packet, ip);
    if (FP_UNLIKELY(martian(packet + FP_IP6_SOURCE) || martian(packet + FP_IP6_DESTINATION)))
        return FP_DROP_MARTIAN;
    return FP_ENCAPSULATED;
}
