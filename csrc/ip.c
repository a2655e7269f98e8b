/*
 * ip.c: reading and checking the IPv4 header, and the choice between it and ip6.c. Changes no packet but where a name says so; knows no transport.
 */
#include "ip.h"

/* 20..60 bytes in words of 4; at most 15 additions, so 64 bits cannot overflow. */
static uint64_t header_sum(const uint8_t *packet, size_t header_bytes)
{
    uint64_t sum = (uint64_t)fp_load32(packet) + fp_load32(packet + 4) + fp_load32(packet + 8) + fp_load32(packet + 12) +
                   fp_load32(packet + 16);
    for (size_t offset = FP_IP_BYTES; offset < header_bytes; offset += 4)
        sum += fp_load32(packet + offset);
    return sum;
}

enum fp_verdict fp_ip_check(const uint8_t *packet, size_t bytes, struct fp_ip *ip)
{
    if (bytes > 0 && FP_UNLIKELY((packet[0] >> 4) == 6))
        return fp_ip6_check(packet, bytes, ip);
    /* Nothing is read before the fixed header is known to be there. */
    if (FP_UNLIKELY(bytes < FP_IP_BYTES))
        return FP_DROP_TRUNCATED;
    size_t header_bytes = (size_t)(packet[0] & 0x0f) * 4;
    if (FP_UNLIKELY((packet[0] >> 4) != 4 || header_bytes < FP_IP_BYTES))
        return FP_DROP_BAD_HEADER;
    size_t total_bytes = fp_load16_be(packet + FP_IP_LENGTH);
    if (FP_UNLIKELY(total_bytes < header_bytes))
        return FP_DROP_BAD_HEADER;
    /* The packet may not reach past what was received; bytes behind it are padding and fall away. */
    if (FP_UNLIKELY(total_bytes > bytes))
        return FP_DROP_TRUNCATED;
    if (FP_UNLIKELY(fp_folded(header_sum(packet, header_bytes)) != 0xffff))
        return FP_DROP_BAD_HEADER;

    ip->source = fp_load32_be(packet + FP_IP_SOURCE);
    ip->destination = fp_load32_be(packet + FP_IP_DESTINATION);
    ip->header_bytes = (uint16_t)header_bytes;
    ip->total_bytes = (uint16_t)total_bytes;
    ip->fragment = fp_load16_be(packet + FP_IP_FRAGMENT);
    ip->protocol = packet[FP_IP_PROTOCOL];
    ip->ttl = packet[FP_IP_TTL];
    ip->tos = packet[FP_IP_TOS];
    ip->version = 4;
    if (FP_UNLIKELY(fp_ip_martian(ip->source) || fp_ip_martian(ip->destination)))
        return FP_DROP_MARTIAN;
    return FP_ENCAPSULATED;
}

void fp_ip_store_check(uint8_t *packet, size_t header_bytes)
{
    fp_store16(packet + FP_IP_CHECK, 0);
    fp_store16(packet + FP_IP_CHECK, (uint16_t)~fp_folded(header_sum(packet, header_bytes)));
}

int fp_ecn_combine(unsigned inner, unsigned outer)
{
    enum { NOT_ECT, ECT_1, ECT_0, CE };
    if (inner == NOT_ECT)
        return outer == CE ? -1 : NOT_ECT;
    if (outer == CE || inner == CE)
        return CE;
    return outer == ECT_1 ? ECT_1 : (int)inner;
}

size_t fp_ip_later_header(const uint8_t *packet, size_t header_bytes, uint8_t *out)
{
    enum { END = 0, NOP = 1, COPIED = 0x80 };
    size_t written = FP_IP_BYTES;
    size_t at = FP_IP_BYTES;
    memset(out, 0, FP_IP_BYTES_MAX);
    memcpy(out, packet, FP_IP_BYTES);
    while (at < header_bytes && packet[at] != END) {
        if (packet[at] == NOP) {
            at++;
            continue;
        }
        /* An option's length byte must lie in the header and the option may not reach past it, nor stand still. */
        if (at + 1 >= header_bytes || packet[at + 1] < 2 || at + packet[at + 1] > header_bytes)
            break;
        size_t option_bytes = packet[at + 1];
        if (packet[at] & COPIED) {
            memcpy(out + written, packet + at, option_bytes);
            written += option_bytes;
        }
        at += option_bytes;
    }
    written = (written + 3) & ~(size_t)3; /* the rest is zero: end of options */
    out[0] = (uint8_t)(0x40 | (written / 4));
    return written;
}
