/*
 * icmp.c: the ICMP error that answers an IPv4 packet we could not forward; IPv6 is icmp6.c's. Builds bytes only; the worker limits the rate and sends.
 *
 *   | IPv4 20, from the tunnel address | type code checksum, rest 4 (MTU for 3/4) | the packet's first bytes | <= 576 in all
 */
#include "icmp.h"

enum {
    ERROR_BYTES_MAX = 576,                   /* RFC 1812 4.3.2.3 */
    PRECEDENCE_INTERNETWORK_CONTROL = 0xc0,  /* RFC 1812 4.3.2.5 */
    ERROR_TTL = 64,
};

struct error_kind {
    uint8_t type;
    uint8_t code;
};

static bool error_kind(enum fp_verdict verdict, struct error_kind *kind)
{
    switch (verdict) {
    case FP_DROP_NO_ROUTE:
        *kind = (struct error_kind){3, 0};
        return true;
    case FP_DROP_TTL:
        *kind = (struct error_kind){11, 0};
        return true;
    case FP_DROP_TOO_BIG:
        *kind = (struct error_kind){3, 4};
        return true;
    default:
        return false;
    }
}

/* Echo, router discovery, timestamp, information and address mask: all else is an error message, or may become one. */
static bool is_icmp_query(uint8_t type)
{
    return type == 0 || (type >= 8 && type <= 10) || (type >= 13 && type <= 18);
}

/* RFC 1122 3.2.2 and RFC 1812 4.3.2.7. fp_ip_check has refused martian addresses; 240/4 names no single host either. */
static bool may_answer(const uint8_t *packet, const struct fp_ip *ip)
{
    if ((ip->fragment & FP_IP_OFFSET) != 0 || ip->source >= 0xf0000000 || ip->destination >= 0xf0000000)
        return false;
    if (ip->protocol != FP_PROTOCOL_ICMP)
        return true;
    /* The type byte must be there to be judged. */
    return ip->total_bytes > ip->header_bytes && is_icmp_query(packet[ip->header_bytes]);
}

size_t fp_icmp_error(const struct fp_context *context, enum fp_verdict verdict, const uint8_t *packet, size_t bytes,
                     uint32_t next_hop_mtu, uint8_t *out, size_t out_bytes)
{
    struct error_kind kind;
    struct fp_ip ip;
    if (bytes > 0 && packet[0] >> 4 == 6)
        return fp_icmp6_error(context, verdict, packet, bytes, next_hop_mtu, out, out_bytes);
    if (context->tunnel_address == 0)
        return 0;
    if (!error_kind(verdict, &kind) || fp_ip_check(packet, bytes, &ip) != FP_ENCAPSULATED || !may_answer(packet, &ip))
        return 0;
    size_t quoted = fp_icmp_quoted(ip.total_bytes, FP_IP_BYTES + FP_ICMP_HEADER_BYTES, ERROR_BYTES_MAX);
    size_t total = FP_IP_BYTES + FP_ICMP_HEADER_BYTES + quoted;
    if (total > out_bytes)
        return 0;

    uint8_t *icmp = out + FP_IP_BYTES;
    memset(out, 0, FP_IP_BYTES + FP_ICMP_HEADER_BYTES);
    memcpy(icmp + FP_ICMP_HEADER_BYTES, packet, quoted);
    icmp[0] = kind.type;
    icmp[1] = kind.code;
    if (verdict == FP_DROP_TOO_BIG)
        fp_store16_be(icmp + 6, (uint16_t)(next_hop_mtu > 0xffff ? 0xffff : next_hop_mtu)); /* RFC 1191 4 */
    fp_store16(icmp + 2, (uint16_t)~fp_fold(fp_sum(icmp, FP_ICMP_HEADER_BYTES + quoted, 0)));

    out[0] = 0x45;
    out[FP_IP_TOS] = PRECEDENCE_INTERNETWORK_CONTROL;
    fp_store16_be(out + FP_IP_LENGTH, (uint16_t)total);
    fp_store16_be(out + FP_IP_FRAGMENT, FP_IP_DF); /* atomic, so the id may be 0 (RFC 6864 4.1) */
    out[FP_IP_TTL] = ERROR_TTL;
    out[FP_IP_PROTOCOL] = FP_PROTOCOL_ICMP;
    fp_store32_be(out + FP_IP_SOURCE, context->tunnel_address);
    fp_store32_be(out + FP_IP_DESTINATION, ip.source);
    fp_ip_store_check(out, FP_IP_BYTES);
    return total;
}
