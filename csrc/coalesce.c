/*
 * coalesce.c: which packets may be one superpacket, so that cutting it again gives the same packets.
 *
 * TCP joins when addresses, ports, TOS with ECN, TTL, DF, acknowledgement, window, options and flags (ACK, PSH, ECE) are equal, the
 * sequence goes on, and the payload is no longer than the first one's. PSH, a shorter payload, 64 packets and 65,535 bytes end a
 * write. Everything else that belongs to the flow goes as it is and ends it too. Checksums are verified before merging, for
 * merging makes new ones; a wrong one goes as it is, and the receiver's stack judges it.
 */
#include "coalesce.h"

/* A packet that could be merged: no options in its IP header, no fragment, ordinary flags, some payload. */
struct candidate {
    uint8_t *packet;
    const uint8_t *transport;
    uint32_t sequence;
    uint16_t headers_bytes;
    uint16_t payload_bytes;
    uint16_t id;
    uint8_t protocol;
    uint8_t push;
};

enum kind {
    OTHER,     /* as it is, touches no flow that could be open */
    SEALS,     /* as it is, and ends its flow */
    SEALS_ALL, /* as it is, and ends all flows of its addresses and protocol: a fragment, whose ports are unknown */
    MERGEABLE,
};

void fp_coalesce_init(struct fp_coalesce *coalesce)
{
    memset(coalesce->plain, 0, sizeof coalesce->plain);
    fp_coalesce_reset(coalesce);
}

void fp_coalesce_reset(struct fp_coalesce *coalesce)
{
    coalesce->count = 0;
    coalesce->iovs_used = 0;
    memset(coalesce->flows, 0, sizeof coalesce->flows);
}

/* ---------------------------------------------------------------------------------------------------------------- kinds */

static enum kind tcp_kind(struct candidate *candidate, const struct fp_ip *ip, uint32_t transport_bytes)
{
    const uint8_t *tcp = candidate->transport;
    /* No field is read before the fixed header is there; without ports, the packet is in no flow. */
    if (transport_bytes < FP_TCP_BYTES)
        return OTHER;
    uint32_t tcp_bytes = (uint32_t)(tcp[FP_TCP_OFFSET] >> 4) * 4;
    uint8_t flags = tcp[FP_TCP_FLAGS];
    if (tcp_bytes < FP_TCP_BYTES || tcp_bytes >= transport_bytes)
        return SEALS; /* broken, or nothing but an acknowledgement */
    if ((flags & ~(FP_ACK | FP_PSH | FP_ECE)) != 0 || (flags & FP_ACK) == 0)
        return SEALS;
    candidate->headers_bytes = (uint16_t)(ip->header_bytes + tcp_bytes);
    candidate->sequence = fp_load32_be(tcp + FP_TCP_SEQUENCE);
    candidate->push = flags & FP_PSH;
    return MERGEABLE;
}

static enum kind udp_kind(struct candidate *candidate, const struct fp_ip *ip, uint32_t transport_bytes)
{
    const uint8_t *udp = candidate->transport;
    if (transport_bytes < FP_UDP_BYTES)
        return OTHER;
    /* A length of its own, no payload, or no checksum: merging would change what the receiver sees. */
    if (fp_load16_be(udp + FP_UDP_LENGTH) != transport_bytes || transport_bytes == FP_UDP_BYTES || fp_load16(udp + FP_UDP_CHECK) == 0)
        return SEALS;
    candidate->headers_bytes = (uint16_t)(ip->header_bytes + FP_UDP_BYTES);
    candidate->sequence = 0;
    candidate->push = 0;
    return MERGEABLE;
}

static enum kind classify(struct candidate *candidate, uint32_t options, uint8_t *packet, const struct fp_ip *ip)
{
    bool tcp = ip->protocol == FP_PROTOCOL_TCP;
    bool udp = ip->protocol == FP_PROTOCOL_UDP && (options & FP_OPT_USO) != 0;
    if ((options & FP_OPT_NO_COALESCE) != 0 || (!tcp && !udp))
        return OTHER;
    if (fp_ip_is_fragment(ip))
        return SEALS_ALL;
    uint32_t transport_bytes = (uint32_t)ip->total_bytes - ip->header_bytes;
    candidate->packet = packet;
    candidate->transport = packet + ip->header_bytes;
    candidate->protocol = ip->protocol;
    enum kind kind = tcp ? tcp_kind(candidate, ip, transport_bytes) : udp_kind(candidate, ip, transport_bytes);
    if (kind != MERGEABLE)
        return kind;
    /* IP options and the reserved bit do not survive a merge. */
    if (ip->header_bytes != FP_IP_BYTES || (ip->fragment & ~FP_IP_DF) != 0)
        return SEALS;
    candidate->payload_bytes = (uint16_t)(ip->total_bytes - candidate->headers_bytes);
    candidate->id = fp_load16_be(packet + FP_IP_ID);
    return MERGEABLE;
}

/* ---------------------------------------------------------------------------------------------------------------- flows */

static uint16_t *flow_slot(struct fp_coalesce *coalesce, const uint8_t *packet, const uint8_t *transport)
{
    uint64_t mixed = fp_load64(packet + FP_IP_SOURCE) ^ (uint64_t)fp_load32(transport) * 0x9e3779b97f4a7c15ull;
    return &coalesce->flows[(mixed * 0xff51afd7ed558ccdull) >> 58];
}

static bool same_flow(const struct fp_merge *merge, const uint8_t *packet, const uint8_t *transport)
{
    return fp_load64(merge->packet + FP_IP_SOURCE) == fp_load64(packet + FP_IP_SOURCE) &&
           merge->protocol == packet[FP_IP_PROTOCOL] &&
           fp_load32(merge->packet + merge->network_bytes) == fp_load32(transport);
}

/* A flow that lost its slot to another is no longer found, so it is closed as well: later packets begin a new write. */
static struct fp_merge *find_merge(struct fp_coalesce *coalesce, uint16_t slot, const struct candidate *candidate)
{
    if (slot == 0)
        return NULL;
    struct fp_merge *merge = &coalesce->merges[slot - 1];
    return same_flow(merge, candidate->packet, candidate->transport) ? merge : NULL;
}

static void seal_all(struct fp_coalesce *coalesce, const uint8_t *packet)
{
    for (uint32_t i = 0; i < FP_FLOW_SLOTS; i++) {
        if (coalesce->flows[i] == 0)
            continue;
        const struct fp_merge *merge = &coalesce->merges[coalesce->flows[i] - 1];
        if (fp_load64(merge->packet + FP_IP_SOURCE) == fp_load64(packet + FP_IP_SOURCE) &&
            merge->protocol == packet[FP_IP_PROTOCOL])
            coalesce->flows[i] = 0;
    }
}

/* ---------------------------------------------------------------------------------------------------------------- merge */

/* The first packet's checksum is looked at only when a second one wants to join. */
static bool checksum_right(const uint8_t *packet, uint8_t protocol, uint32_t headers_bytes, uint32_t payload_bytes)
{
    uint32_t transport_bytes = headers_bytes - FP_IP_BYTES + payload_bytes;
    uint64_t sum = fp_ip_pseudo_sum(packet, protocol, transport_bytes);
    return fp_fold(fp_sum(packet + FP_IP_BYTES, transport_bytes, sum)) == 0xffff;
}

static bool tcp_headers_equal(const uint8_t *a, const uint8_t *b, uint32_t tcp_bytes)
{
    return fp_load32(a + FP_TCP_ACK) == fp_load32(b + FP_TCP_ACK) && a[FP_TCP_OFFSET] == b[FP_TCP_OFFSET] &&
           ((a[FP_TCP_FLAGS] ^ b[FP_TCP_FLAGS]) & ~FP_PSH) == 0 && fp_load16(a + FP_TCP_WINDOW) == fp_load16(b + FP_TCP_WINDOW) &&
           fp_load16(a + FP_TCP_URGENT) == fp_load16(b + FP_TCP_URGENT) &&
           memcmp(a + FP_TCP_BYTES, b + FP_TCP_BYTES, tcp_bytes - FP_TCP_BYTES) == 0;
}

static bool headers_equal(const struct fp_merge *merge, const struct candidate *candidate)
{
    const uint8_t *a = merge->packet;
    const uint8_t *b = candidate->packet;
    if (merge->headers_bytes != candidate->headers_bytes || a[FP_IP_TOS] != b[FP_IP_TOS] ||
        fp_load32(a + FP_IP_FRAGMENT) != (fp_load32(b + FP_IP_FRAGMENT))) /* DF, TTL and protocol */
        return false;
    /* Where DF is clear the id means something (RFC 6864), and a cut counts it up. */
    if ((a[FP_IP_FRAGMENT] & (FP_IP_DF >> 8)) == 0 && (uint16_t)(merge->last_id + 1) != candidate->id)
        return false;
    return candidate->protocol == FP_PROTOCOL_UDP ||
           tcp_headers_equal(a + FP_IP_BYTES, b + FP_IP_BYTES, merge->headers_bytes - (uint32_t)FP_IP_BYTES);
}

static bool may_join(struct fp_merge *merge, const struct fp_write *write, const struct candidate *candidate)
{
    if (!merge->open || candidate->payload_bytes > merge->segment_payload || candidate->sequence != merge->next_sequence)
        return false;
    /* A merged packet's total length has 16 bits, and the list of payloads FP_MERGED_MAX places. */
    if (write->packets == FP_MERGED_MAX || merge->headers_bytes + merge->payload_bytes + candidate->payload_bytes > FP_PACKET_BYTES_MAX)
        return false;
    if (!headers_equal(merge, candidate))
        return false;
    if (!merge->verified) {
        merge->verified = checksum_right(merge->packet, merge->protocol, merge->headers_bytes, merge->payload_bytes);
        merge->open = merge->verified; /* a wrong first packet stays alone */
    }
    return merge->verified &&
           checksum_right(candidate->packet, candidate->protocol, candidate->headers_bytes, candidate->payload_bytes);
}

static void join(struct fp_merge *merge, struct fp_write *write, const struct candidate *candidate)
{
    if (write->packets == 1) {
        /* Was a packet as it is: its payload alone, now that the headers are made anew. iov[0] follows in finish. */
        write->iov[1] = (struct iovec){merge->packet + merge->headers_bytes, merge->segment_payload};
    }
    write->iov[write->iov_count++] = (struct iovec){candidate->packet + candidate->headers_bytes, candidate->payload_bytes};
    write->packets++;
    write->bytes += (uint32_t)candidate->headers_bytes + candidate->payload_bytes;
    merge->payload_bytes += candidate->payload_bytes;
    merge->last_id = candidate->id;
    merge->pushed = candidate->push;
    if (candidate->protocol == FP_PROTOCOL_TCP)
        merge->next_sequence += candidate->payload_bytes;
    if (candidate->push != 0 || candidate->payload_bytes < merge->segment_payload)
        merge->open = false;
}

/* ---------------------------------------------------------------------------------------------------------------- writes */

/* A write of this packet alone. The places of the payloads that may join are kept only for those that can be joined. */
static uint32_t add_write(struct fp_coalesce *coalesce, uint8_t *packet, uint32_t bytes, uint32_t iovs)
{
    uint32_t number = coalesce->count++;
    struct iovec *iov = &coalesce->iovs[coalesce->iovs_used];
    coalesce->iovs_used += iovs;
    iov[0] = (struct iovec){coalesce->plain, sizeof coalesce->plain};
    iov[1] = (struct iovec){packet, bytes};
    coalesce->writes[number] = (struct fp_write){.iov = iov, .iov_count = 2, .packets = 1, .bytes = bytes};
    return number;
}

static void add_mergeable(struct fp_coalesce *coalesce, const struct candidate *candidate, uint16_t *slot)
{
    uint32_t bytes = (uint32_t)candidate->headers_bytes + candidate->payload_bytes;
    uint32_t number = add_write(coalesce, candidate->packet, bytes, FP_WRITE_IOVS);
    coalesce->merges[number] = (struct fp_merge){
        .packet = candidate->packet,
        .next_sequence = candidate->protocol == FP_PROTOCOL_TCP ? candidate->sequence + candidate->payload_bytes : 0,
        .payload_bytes = candidate->payload_bytes,
        .segment_payload = candidate->payload_bytes,
        .network_bytes = FP_IP_BYTES,
        .headers_bytes = candidate->headers_bytes,
        .last_id = candidate->id,
        .protocol = candidate->protocol,
        .pushed = candidate->push,
        .open = candidate->push == 0,
    };
    *slot = (uint16_t)(number + 1);
}

void fp_coalesce_packet(struct fp_coalesce *coalesce, uint32_t options, uint8_t *packet, const struct fp_ip *ip)
{
    struct candidate candidate;
    enum kind kind = classify(&candidate, options, packet, ip);
    if (kind == MERGEABLE) {
        uint16_t *slot = flow_slot(coalesce, packet, candidate.transport);
        struct fp_merge *merge = find_merge(coalesce, *slot, &candidate);
        if (merge != NULL && may_join(merge, &coalesce->writes[*slot - 1], &candidate))
            join(merge, &coalesce->writes[*slot - 1], &candidate);
        else
            add_mergeable(coalesce, &candidate, slot);
        return;
    }
    if (kind == SEALS)
        *flow_slot(coalesce, packet, candidate.transport) = 0; /* of whichever flow: closing one too many costs only speed */
    if (kind == SEALS_ALL)
        seal_all(coalesce, packet);
    add_write(coalesce, packet, ip->total_bytes, 2);
}

/* ---------------------------------------------------------------------------------------------------------------- finish */

static void finish_write(const struct fp_merge *merge, struct fp_write *write, uint8_t *slot)
{
    bool tcp = merge->protocol == FP_PROTOCOL_TCP;
    uint8_t *packet = slot + FP_VNET_HDR_BYTES;
    uint8_t *transport = packet + FP_IP_BYTES;
    uint32_t transport_bytes = merge->headers_bytes - (uint32_t)FP_IP_BYTES + merge->payload_bytes;
    struct fp_vnet vnet = {
        .flags = FP_VNET_NEEDS_CSUM,
        .gso_type = tcp ? FP_VNET_GSO_TCPV4 : FP_VNET_GSO_UDP_L4,
        .header_bytes = merge->headers_bytes,
        .gso_size = merge->segment_payload,
        .csum_start = FP_IP_BYTES,
        .csum_offset = tcp ? FP_TCP_CHECK : FP_UDP_CHECK,
    };
    memcpy(slot, &vnet, sizeof vnet);
    memcpy(packet, merge->packet, merge->headers_bytes);
    fp_store16_be(packet + FP_IP_LENGTH, (uint16_t)(FP_IP_BYTES + transport_bytes));
    fp_ip_store_check(packet, FP_IP_BYTES);
    if (tcp)
        transport[FP_TCP_FLAGS] |= merge->pushed;
    else
        fp_store16_be(transport + FP_UDP_LENGTH, (uint16_t)transport_bytes);
    /* The kernel or the receiver finishes it: pseudo-header only, folded, not complemented. */
    fp_store16(transport + vnet.csum_offset, fp_fold(fp_ip_pseudo_sum(packet, merge->protocol, transport_bytes)));
    write->iov[0] = (struct iovec){slot, FP_VNET_HDR_BYTES + (size_t)merge->headers_bytes};
}

void fp_coalesce_finish(struct fp_coalesce *coalesce)
{
    for (uint32_t i = 0; i < coalesce->count; i++) {
        if (coalesce->writes[i].packets > 1)
            finish_write(&coalesce->merges[i], &coalesce->writes[i], coalesce->headers[i]);
    }
}
