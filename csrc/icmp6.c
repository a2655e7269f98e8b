/*
 * icmp6.c: the ICMPv6 error that answers an IPv6 packet we could not forward (RFC 4443). Builds bytes only.
 *
 *   | IPv6 40, from the tunnel address | type code checksum, rest 4 (MTU for packet too big) | the packet's first bytes | <= 1280 in all
 */
#include "icmp.h"

enum {
    ERROR_HOPS = 64,
    UNREACHABLE = 1,
    TOO_BIG = 2,
    TIME_EXCEEDED = 3,
    FIRST_INFORMATIONAL = 128, /* types below are errors (RFC 4443 2.1) */
    REDIRECT = 137,
    EXTENSIONS_MAX = 8,
};

/* 0: no error answers this verdict. The code is 0 for each: no route to destination, hop limit exceeded in transit. */
static uint8_t error_type(enum fp_verdict verdict)
{
    switch (verdict) {
    case FP_DROP_NO_ROUTE:
        return UNREACHABLE;
    case FP_DROP_TTL:
        return TIME_EXCEEDED;
    case FP_DROP_TOO_BIG:
        return TOO_BIG;
    default:
        return 0;
    }
}

/* The extension header at `at`: its bytes, or 0 when it does not lie in the packet as a whole. */
static size_t extension_bytes(uint8_t kind, const uint8_t *packet, size_t at, size_t total_bytes)
{
    /* Its length byte must be there to be read, and what it says must be there to be passed. */
    if (total_bytes - at < 8)
        return 0;
    size_t length = packet[at + 1];
    size_t bytes = kind == FP_PROTOCOL_FRAGMENT ? 8 : kind == FP_PROTOCOL_AH ? (length + 2) * 4 : (length + 1) * 8;
    return bytes <= total_bytes - at ? bytes : 0;
}

/*
 * RFC 4443 2.4 (e); fp_ip6_check has refused multicast and what names no single host. An error may stand behind headers that forwarding
 * does not walk (routing, authentication): they are walked here. Where that does not come to an end, nothing is answered.
 */
static bool may_answer(const uint8_t *packet, const struct fp_ip *ip)
{
    bool later = (ip->fragment & FP_IP_OFFSET) != 0; /* a later fragment has neither the headers nor the type */
    uint8_t next = ip->protocol;
    size_t at = ip->header_bytes;
    for (unsigned i = 0; i < EXTENSIONS_MAX && fp_ip6_is_extension(next) && !later; i++) {
        size_t bytes = extension_bytes(next, packet, at, ip->total_bytes);
        if (bytes == 0)
            return false;
        later = next == FP_PROTOCOL_FRAGMENT && fp_load16_be(packet + at + 2) >> 3 != 0;
        next = packet[at];
        at += bytes;
    }
    if (next != FP_PROTOCOL_ICMP6)
        return !fp_ip6_is_extension(next);
    /* The type byte must be there to be judged. */
    if (later || ip->total_bytes <= at)
        return false;
    return packet[at] >= FIRST_INFORMATIONAL && packet[at] != REDIRECT;
}

static bool is_unset(const struct fp_address *address)
{
    return fp_load64(address->bytes) == 0 && fp_load64(address->bytes + 8) == 0;
}

size_t fp_icmp6_error(const struct fp_context *context, enum fp_verdict verdict, const uint8_t *packet, size_t bytes,
                      uint32_t next_hop_mtu, uint8_t *out, size_t out_bytes)
{
    struct fp_ip ip;
    uint8_t type = error_type(verdict);
    if (type == 0 || is_unset(&context->tunnel_address6) || fp_ip_check(packet, bytes, &ip) != FP_ENCAPSULATED ||
        !may_answer(packet, &ip))
        return 0;
    size_t quoted = fp_icmp_quoted(ip.total_bytes, FP_IP6_BYTES + FP_ICMP_HEADER_BYTES, FP_ICMP_BYTES_MAX);
    size_t total = FP_IP6_BYTES + FP_ICMP_HEADER_BYTES + quoted;
    if (total > out_bytes)
        return 0;

    uint8_t *icmp = out + FP_IP6_BYTES;
    memset(out, 0, FP_IP6_BYTES + FP_ICMP_HEADER_BYTES);
    out[0] = 0x60;
    fp_store16_be(out + FP_IP6_LENGTH, (uint16_t)(FP_ICMP_HEADER_BYTES + quoted));
    out[FP_IP6_NEXT] = FP_PROTOCOL_ICMP6;
    out[FP_IP6_HOPS] = ERROR_HOPS;
    memcpy(out + FP_IP6_SOURCE, context->tunnel_address6.bytes, 16);
    memcpy(out + FP_IP6_DESTINATION, packet + FP_IP6_SOURCE, 16);

    memcpy(icmp + FP_ICMP_HEADER_BYTES, packet, quoted);
    icmp[0] = type;
    /* A smaller one would be ignored (RFC 8201 4): what the path cannot carry is fragmented outside. */
    if (type == TOO_BIG)
        fp_store32_be(icmp + 4, next_hop_mtu < FP_IP6_MTU_MIN ? FP_IP6_MTU_MIN : next_hop_mtu);
    uint64_t sum = fp_ip6_pseudo_sum(out, FP_PROTOCOL_ICMP6, (uint32_t)(FP_ICMP_HEADER_BYTES + quoted));
    fp_store16(icmp + 2, (uint16_t)~fp_fold(fp_sum(icmp, FP_ICMP_HEADER_BYTES + quoted, sum)));
    return total;
}
