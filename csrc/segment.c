/*
 * segment.c: cutting superpackets. One pass over the payload: copied and summed at once, straight to where it is sent from.
 *
 * Per segment (as Linux' own segmentation does): IPv4 total length, id + i and header checksum, IPv6 payload length; TCP sequence number, FIN and PSH
 * on the last only, CWR on the first only (RFC 3168 6.1.2); UDP length; transport checksum.
 */
#include "segment.h"

/* One packet's place in the superpacket. */
struct piece {
    uint32_t index;
    uint32_t payload_bytes;
    uint64_t payload_sum;
};

static void write_ip4(const struct fp_cut *cut, const struct piece *piece, uint8_t *packet)
{
    uint16_t total = fp_swap16((uint16_t)(cut->headers_bytes + piece->payload_bytes));
    uint16_t id = fp_swap16((uint16_t)(cut->id + piece->index));
    fp_store16(packet + FP_IP_LENGTH, total);
    fp_store16(packet + FP_IP_ID, id);
    fp_store16(packet + FP_IP_CHECK, (uint16_t)~fp_folded(cut->network_sum + total + id));
}

static void write_ip6(const struct fp_cut *cut, const struct piece *piece, uint8_t *packet)
{
    fp_store16_be(packet + FP_IP6_LENGTH, (uint16_t)(cut->headers_bytes - FP_IP6_BYTES + piece->payload_bytes));
}

static uint8_t tcp_flags(const struct fp_cut *cut, uint32_t index)
{
    unsigned flags = cut->flags;
    if (index + 1 < cut->segments)
        flags &= ~(unsigned)(FP_FIN | FP_PSH);
    if (index > 0)
        flags &= ~(unsigned)FP_CWR;
    return (uint8_t)flags;
}

static void write_tcp(const struct fp_cut *cut, const struct piece *piece, uint8_t *tcp)
{
    uint32_t sequence = fp_swap32(cut->sequence + piece->index * cut->segment_payload);
    uint32_t transport_bytes = (uint32_t)(cut->headers_bytes - cut->network_bytes) + piece->payload_bytes;
    uint16_t offset_flags = fp_swap16((uint16_t)(cut->offset_byte << 8 | tcp_flags(cut, piece->index)));
    fp_store32(tcp + FP_TCP_SEQUENCE, sequence);
    fp_store16(tcp + FP_TCP_OFFSET, offset_flags);
    /* The payload's sum is folded first: it fills 64 bits, and a carry out of this addition would be lost. */
    uint64_t sum = cut->transport_sum + sequence + offset_flags + fp_swap16((uint16_t)transport_bytes);
    fp_store16(tcp + FP_TCP_CHECK, (uint16_t)~fp_folded(sum + fp_folded(piece->payload_sum)));
}

static void write_udp(const struct fp_cut *cut, const struct piece *piece, uint8_t *udp)
{
    uint16_t length = fp_swap16((uint16_t)(FP_UDP_BYTES + piece->payload_bytes));
    fp_store16(udp + FP_UDP_LENGTH, length);
    /* The length counts twice: in the header and in the pseudo-header. */
    uint16_t check = (uint16_t)~fp_folded(cut->transport_sum + 2ull * length + fp_folded(piece->payload_sum));
    fp_store16(udp + FP_UDP_CHECK, check == 0 ? 0xffff : check); /* 0 would mean "no checksum" (RFC 768) */
}

static enum fp_verdict prepare_tcp(struct fp_cut *cut, const uint8_t *tcp, uint32_t transport_bytes)
{
    /* The fixed header must be there before its length field is read, and the options before they are copied. */
    if (transport_bytes < FP_TCP_BYTES)
        return FP_DROP_TRUNCATED;
    uint32_t tcp_bytes = (uint32_t)(tcp[FP_TCP_OFFSET] >> 4) * 4;
    if (tcp_bytes < FP_TCP_BYTES)
        return FP_DROP_BAD_HEADER;
    if (tcp_bytes > transport_bytes)
        return FP_DROP_TRUNCATED;
    cut->sequence = fp_load32_be(tcp + FP_TCP_SEQUENCE);
    cut->flags = tcp[FP_TCP_FLAGS];
    cut->offset_byte = tcp[FP_TCP_OFFSET];
    cut->headers_bytes = (uint16_t)(cut->network_bytes + tcp_bytes);
    /* All but sequence, offset with flags, and checksum. */
    uint64_t sum = (uint64_t)fp_load32(tcp) + fp_load32(tcp + FP_TCP_ACK) + fp_load16(tcp + FP_TCP_WINDOW) + fp_load16(tcp + FP_TCP_URGENT);
    for (uint32_t at = FP_TCP_BYTES; at < tcp_bytes; at += 4)
        sum += fp_load32(tcp + at);
    cut->transport_sum += sum;
    return FP_ENCAPSULATED;
}

static enum fp_verdict prepare_udp(struct fp_cut *cut, const uint8_t *udp, uint32_t transport_bytes)
{
    if (transport_bytes < FP_UDP_BYTES)
        return FP_DROP_TRUNCATED;
    cut->headers_bytes = (uint16_t)(cut->network_bytes + FP_UDP_BYTES);
    cut->transport_sum += fp_load32(udp); /* ports */
    return FP_ENCAPSULATED;
}

/* The kernel never marks a fragment as a superpacket, and the type must be the packet's own. */
static bool offload_fits(const struct fp_ip *ip, const struct fp_vnet *vnet)
{
    unsigned type = vnet->gso_type & ~(unsigned)FP_VNET_GSO_ECN;
    unsigned tcp = ip->version == 4 ? FP_VNET_GSO_TCPV4 : FP_VNET_GSO_TCPV6;
    bool known = (type == tcp && ip->protocol == FP_PROTOCOL_TCP) || (type == FP_VNET_GSO_UDP_L4 && ip->protocol == FP_PROTOCOL_UDP);
    /* IPv6 extension headers have no end of their own: the headers' place does. */
    return known && vnet->gso_size != 0 && !fp_ip_is_fragment(ip) && ip->header_bytes <= FP_IP_BYTES_MAX;
}

static void prepare_headers(struct fp_cut *cut, const uint8_t *packet, uint8_t ttl)
{
    memcpy(cut->headers, packet, cut->headers_bytes);
    if (cut->version == 6) {
        cut->headers[FP_IP6_HOPS] = ttl;
        return;
    }
    cut->headers[FP_IP_TTL] = ttl;
    fp_store16(cut->headers + FP_IP_LENGTH, 0);
    fp_store16(cut->headers + FP_IP_ID, 0);
    fp_store16(cut->headers + FP_IP_CHECK, 0);
    uint64_t sum = 0;
    for (uint32_t at = 0; at < cut->network_bytes; at += 4)
        sum += fp_load32(cut->headers + at);
    cut->network_sum = sum;
}

enum fp_verdict fp_cut_prepare(struct fp_cut *cut, const uint8_t *packet, const struct fp_ip *ip, const struct fp_vnet *vnet,
                               uint8_t ttl)
{
    if (!offload_fits(ip, vnet))
        return FP_DROP_BAD_OFFLOAD;
    const uint8_t *transport = packet + ip->header_bytes;
    uint32_t transport_bytes = (uint32_t)ip->total_bytes - ip->header_bytes;
    cut->network_bytes = ip->header_bytes;
    cut->version = ip->version;
    cut->protocol = ip->protocol;
    cut->id = fp_load16_be(packet + FP_IP_ID);
    cut->transport_sum = fp_ip_any_pseudo_sum(packet, ip->version, ip->protocol, 0);
    enum fp_verdict verdict = ip->protocol == FP_PROTOCOL_TCP ? prepare_tcp(cut, transport, transport_bytes)
                                                              : prepare_udp(cut, transport, transport_bytes);
    if (verdict != FP_ENCAPSULATED)
        return verdict;
    prepare_headers(cut, packet, ttl);
    cut->payload = packet + cut->headers_bytes;
    cut->payload_bytes = (uint32_t)ip->total_bytes - cut->headers_bytes;
    cut->segment_payload = vnet->gso_size;
    /* A payload that fits into one segment, even none at all, is still one packet. */
    cut->segments = cut->payload_bytes == 0 ? 1 : (cut->payload_bytes - 1) / cut->segment_payload + 1;
    return FP_ENCAPSULATED;
}

FP_INLINE void write_headers(const struct fp_cut *cut, uint8_t *to)
{
    /* Usual headers (20 + 32) go by a copy of constant size; what is too much lies under the payload or in the slack. */
    static_assert(FP_CUT_SLACK_BYTES <= FP_HEADERS_BYTES_MAX, "reads no further than the headers' place");
    if (FP_LIKELY(cut->headers_bytes <= FP_CUT_SLACK_BYTES))
        memcpy(to, cut->headers, FP_CUT_SLACK_BYTES);
    else
        memcpy(to, cut->headers, cut->headers_bytes);
}

void fp_cut_write(const struct fp_cut *cut, uint32_t first, uint32_t count, uint8_t *to)
{
    for (uint32_t i = first; i < first + count; i++) {
        struct piece piece = {.index = i, .payload_bytes = cut->segment_payload};
        uint32_t offset = i * cut->segment_payload;
        if (i + 1 == cut->segments)
            piece.payload_bytes = cut->payload_bytes - offset;
        write_headers(cut, to);
        piece.payload_sum = fp_copy_sum(to + cut->headers_bytes, cut->payload + offset, piece.payload_bytes, 0);
        if (FP_LIKELY(cut->version == 4))
            write_ip4(cut, &piece, to);
        else
            write_ip6(cut, &piece, to);
        if (cut->protocol == FP_PROTOCOL_TCP)
            write_tcp(cut, &piece, to + cut->network_bytes);
        else
            write_udp(cut, &piece, to + cut->network_bytes);
        to += cut->headers_bytes + piece.payload_bytes;
    }
}
