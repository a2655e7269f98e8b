/*
 * coalesce.c: which packets may be one superpacket, so that cutting it again gives the same packets.
 *
 * TCP joins when addresses, ports, TOS with ECN, TTL, DF (IPv6: the flow label), acknowledgement, window, options and flags (ACK, PSH, ECE) are equal, the
 * sequence goes on, and the payload is no longer than the first one's. PSH, a shorter payload, 64 packets and 65,535 bytes end a
 * write. Everything else that belongs to the flow goes as it is and ends it too. Checksums are verified before merging, for
 * merging makes new ones; a wrong one goes as it is, and the receiver's stack judges it.
 *
 * What happens to each packet is written once and compiled for each family (`version` is a constant there): asking again at every step
 * costs an eighth of the time.
 */
#include "coalesce.h"

/* A packet that could be merged: no options or extension headers, no fragment, ordinary flags, some payload. */
struct candidate {
    uint8_t *packet;
    const uint8_t *transport;
    uint32_t sequence;
    uint16_t headers_bytes;
    uint16_t payload_bytes;
    uint16_t id; /* IPv4 */
    uint8_t protocol;
    uint8_t push;
};

FP_INLINE uint32_t network_bytes(uint8_t version)
{
    return version == 4 ? FP_IP_BYTES : FP_IP6_BYTES;
}

enum kind {
    OTHER,     /* as it is, touches no flow that could be open */
    SEALS,     /* as it is, and ends its flow */
    SEALS_ALL, /* as it is, and ends all flows of its addresses and protocol: a fragment, say, whose ports are unknown */
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

FP_INLINE enum kind tcp_kind(struct candidate *candidate, const struct fp_ip *ip, uint32_t transport_bytes)
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

FP_INLINE enum kind classify(struct candidate *candidate, uint32_t options, uint8_t *packet, const struct fp_ip *ip,
                             const uint8_t version)
{
    bool tcp = ip->protocol == FP_PROTOCOL_TCP;
    bool udp = ip->protocol == FP_PROTOCOL_UDP && (options & FP_OPT_USO) != 0;
    if ((options & FP_OPT_NO_COALESCE) != 0)
        return OTHER;
    /* An IPv6 fragment does not always tell what it is a part of: more headers may be behind. */
    if (fp_ip_is_fragment(ip) && (tcp || udp || version == 6))
        return SEALS_ALL;
    /* Behind a routing or authentication header, or in a chain that could not be read, may be a packet of a flow that is open. */
    if (version == 6 && (fp_ip6_is_extension(ip->protocol) || ip->protocol == FP_PROTOCOL_NONE))
        return SEALS_ALL;
    if (!tcp && !udp)
        return OTHER;
    uint32_t transport_bytes = (uint32_t)ip->total_bytes - ip->header_bytes;
    candidate->packet = packet;
    candidate->transport = packet + ip->header_bytes;
    candidate->protocol = ip->protocol;
    enum kind kind = tcp ? tcp_kind(candidate, ip, transport_bytes) : udp_kind(candidate, ip, transport_bytes);
    if (kind != MERGEABLE)
        return kind;
    /* IP options, extension headers and the reserved bit do not survive a merge. */
    if (ip->header_bytes != network_bytes(version) || (ip->fragment & ~FP_IP_DF) != 0)
        return SEALS;
    candidate->payload_bytes = (uint16_t)(ip->total_bytes - candidate->headers_bytes);
    candidate->id = fp_load16_be(packet + FP_IP_ID);
    return MERGEABLE;
}

/* ---------------------------------------------------------------------------------------------------------------- flows */

FP_INLINE uint16_t *flow_slot(struct fp_coalesce *coalesce, const struct candidate *candidate, const uint8_t version)
{
    uint64_t mixed = fp_ip_addresses_hash(candidate->packet, version) ^
                     (uint64_t)fp_load32(candidate->transport) * 0x9e3779b97f4a7c15ull;
    return &coalesce->flows[(mixed * 0xff51afd7ed558ccdull) >> 58];
}

FP_INLINE bool same_addresses(const struct fp_merge *merge, const uint8_t *packet, const uint8_t version)
{
    if (FP_UNLIKELY(merge->version != version))
        return false;
    return version == 4 ? fp_load64(merge->packet + FP_IP_SOURCE) == fp_load64(packet + FP_IP_SOURCE)
                                   : memcmp(merge->packet + FP_IP6_SOURCE, packet + FP_IP6_SOURCE, 32) == 0;
}

FP_INLINE bool same_flow(const struct fp_merge *merge, const struct candidate *candidate, const uint8_t version)
{
    return same_addresses(merge, candidate->packet, version) && merge->protocol == candidate->protocol &&
           fp_load32(merge->packet + network_bytes(version)) == fp_load32(candidate->transport);
}

/* A flow that lost its slot to another is no longer found, so it is closed as well: later packets begin a new write. */
FP_INLINE struct fp_merge *find_merge(struct fp_coalesce *coalesce, uint16_t slot, const struct candidate *candidate,
                                      const uint8_t version)
{
    if (slot == 0)
        return NULL;
    struct fp_merge *merge = &coalesce->merges[slot - 1];
    return same_flow(merge, candidate, version) ? merge : NULL;
}

static void seal_all(struct fp_coalesce *coalesce, const uint8_t *packet, const struct fp_ip *ip)
{
    for (uint32_t i = 0; i < FP_FLOW_SLOTS; i++) {
        if (coalesce->flows[i] == 0)
            continue;
        const struct fp_merge *merge = &coalesce->merges[coalesce->flows[i] - 1];
        if (same_addresses(merge, packet, ip->version) && (ip->version == 6 || merge->protocol == ip->protocol))
            coalesce->flows[i] = 0;
    }
}

/* ---------------------------------------------------------------------------------------------------------------- merge */

/* Of a packet with headers like the merge's. The first packet's is looked at only when a second one wants to join. */
FP_INLINE bool checksum_right(const struct fp_merge *merge, const uint8_t *packet, uint32_t payload_bytes, const uint8_t version)
{
    uint32_t transport_bytes = merge->headers_bytes - network_bytes(version) + payload_bytes;
    uint64_t sum = fp_ip_any_pseudo_sum(packet, version, merge->protocol, transport_bytes);
    return fp_folded(fp_sum(packet + network_bytes(version), transport_bytes, sum)) == 0xffff;
}

FP_INLINE bool tcp_headers_equal(const uint8_t *a, const uint8_t *b, uint32_t tcp_bytes)
{
    return fp_load32(a + FP_TCP_ACK) == fp_load32(b + FP_TCP_ACK) && a[FP_TCP_OFFSET] == b[FP_TCP_OFFSET] &&
           ((a[FP_TCP_FLAGS] ^ b[FP_TCP_FLAGS]) & ~FP_PSH) == 0 && fp_load16(a + FP_TCP_WINDOW) == fp_load16(b + FP_TCP_WINDOW) &&
           fp_load16(a + FP_TCP_URGENT) == fp_load16(b + FP_TCP_URGENT) &&
           memcmp(a + FP_TCP_BYTES, b + FP_TCP_BYTES, tcp_bytes - FP_TCP_BYTES) == 0;
}

FP_INLINE bool ip4_headers_equal(const struct fp_merge *merge, const struct candidate *candidate)
{
    const uint8_t *a = merge->packet;
    const uint8_t *b = candidate->packet;
    if (a[FP_IP_TOS] != b[FP_IP_TOS] || fp_load32(a + FP_IP_FRAGMENT) != fp_load32(b + FP_IP_FRAGMENT)) /* DF, TTL and protocol */
        return false;
    /* Where DF is clear the id means something (RFC 6864), and a cut counts it up. */
    return (a[FP_IP_FRAGMENT] & (FP_IP_DF >> 8)) != 0 || (uint16_t)(merge->last_id + 1) == candidate->id;
}

/* Traffic class and flow label, and the hop limit; what follows the header is TCP or UDP in both. */
static bool ip6_headers_equal(const uint8_t *a, const uint8_t *b)
{
    return fp_load32(a) == fp_load32(b) && a[FP_IP6_HOPS] == b[FP_IP6_HOPS];
}

FP_INLINE bool headers_equal(const struct fp_merge *merge, const struct candidate *candidate, const uint8_t version)
{
    if (merge->headers_bytes != candidate->headers_bytes)
        return false;
    if (version == 4 ? !ip4_headers_equal(merge, candidate) : !ip6_headers_equal(merge->packet, candidate->packet))
        return false;
    return candidate->protocol == FP_PROTOCOL_UDP ||
           tcp_headers_equal(merge->packet + network_bytes(version), candidate->packet + network_bytes(version),
                             merge->headers_bytes - network_bytes(version));
}

FP_INLINE bool may_join(struct fp_merge *merge, const struct fp_write *write, const struct candidate *candidate, const uint8_t version)
{
    if (!merge->open || candidate->payload_bytes > merge->segment_payload || candidate->sequence != merge->next_sequence)
        return false;
    /* A merged packet's total length has 16 bits, and the list of payloads FP_MERGED_MAX places. */
    if (write->packets == FP_MERGED_MAX || merge->headers_bytes + merge->payload_bytes + candidate->payload_bytes > FP_PACKET_BYTES_MAX)
        return false;
    if (!headers_equal(merge, candidate, version))
        return false;
    if (!merge->verified) {
        merge->verified = checksum_right(merge, merge->packet, merge->payload_bytes, version);
        merge->open = merge->verified; /* a wrong first packet stays alone */
    }
    return merge->verified && checksum_right(merge, candidate->packet, candidate->payload_bytes, version);
}

FP_INLINE void join(struct fp_merge *merge, struct fp_write *write, const struct candidate *candidate)
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

static void add_mergeable(struct fp_coalesce *coalesce, const struct candidate *candidate, uint16_t *slot, uint8_t version)
{
    uint32_t bytes = (uint32_t)candidate->headers_bytes + candidate->payload_bytes;
    uint32_t number = add_write(coalesce, candidate->packet, bytes, FP_WRITE_IOVS);
    coalesce->merges[number] = (struct fp_merge){
        .packet = candidate->packet,
        .next_sequence = candidate->protocol == FP_PROTOCOL_TCP ? candidate->sequence + candidate->payload_bytes : 0,
        .payload_bytes = candidate->payload_bytes,
        .segment_payload = candidate->payload_bytes,
        .network_bytes = (uint16_t)network_bytes(version),
        .headers_bytes = candidate->headers_bytes,
        .last_id = candidate->id,
        .version = version,
        .protocol = candidate->protocol,
        .pushed = candidate->push,
        .open = candidate->push == 0,
    };
    *slot = (uint16_t)(number + 1);
}

FP_INLINE void take(struct fp_coalesce *coalesce, uint32_t options, uint8_t *packet, const struct fp_ip *ip, const uint8_t version)
{
    struct candidate candidate;
    enum kind kind = classify(&candidate, options, packet, ip, version);
    if (kind == MERGEABLE) {
        uint16_t *slot = flow_slot(coalesce, &candidate, version);
        struct fp_merge *merge = find_merge(coalesce, *slot, &candidate, version);
        if (merge != NULL && may_join(merge, &coalesce->writes[*slot - 1], &candidate, version))
            join(merge, &coalesce->writes[*slot - 1], &candidate);
        else
            add_mergeable(coalesce, &candidate, slot, version);
        return;
    }
    if (kind == SEALS)
        *flow_slot(coalesce, &candidate, version) = 0; /* of whichever flow: closing one too many costs only speed */
    if (kind == SEALS_ALL)
        seal_all(coalesce, packet, ip);
    add_write(coalesce, packet, ip->total_bytes, 2);
}

void fp_coalesce_packet(struct fp_coalesce *coalesce, uint32_t options, uint8_t *packet, const struct fp_ip *ip)
{
    if (FP_LIKELY(ip->version == 4))
        take(coalesce, options, packet, ip, 4);
    else
        take(coalesce, options, packet, ip, 6);
}

/* ---------------------------------------------------------------------------------------------------------------- finish */

static void finish_ip(const struct fp_merge *merge, uint8_t *packet, uint32_t transport_bytes)
{
    if (FP_UNLIKELY(merge->version == 6)) {
        fp_store16_be(packet + FP_IP6_LENGTH, (uint16_t)transport_bytes);
        return;
    }
    fp_store16_be(packet + FP_IP_LENGTH, (uint16_t)(FP_IP_BYTES + transport_bytes));
    fp_ip_store_check(packet, FP_IP_BYTES);
}

static uint8_t gso_type(const struct fp_merge *merge)
{
    if (merge->protocol == FP_PROTOCOL_UDP)
        return FP_VNET_GSO_UDP_L4;
    return merge->version == 4 ? FP_VNET_GSO_TCPV4 : FP_VNET_GSO_TCPV6;
}

static void finish_write(const struct fp_merge *merge, struct fp_write *write, uint8_t *slot)
{
    bool tcp = merge->protocol == FP_PROTOCOL_TCP;
    uint8_t *packet = slot + FP_VNET_HDR_BYTES;
    uint8_t *transport = packet + merge->network_bytes;
    uint32_t transport_bytes = (uint32_t)(merge->headers_bytes - merge->network_bytes) + merge->payload_bytes;
    struct fp_vnet vnet = {
        .flags = FP_VNET_NEEDS_CSUM,
        .gso_type = gso_type(merge),
        .header_bytes = merge->headers_bytes,
        .gso_size = merge->segment_payload,
        .csum_start = merge->network_bytes,
        .csum_offset = tcp ? FP_TCP_CHECK : FP_UDP_CHECK,
    };
    memcpy(slot, &vnet, sizeof vnet);
    memcpy(packet, merge->packet, merge->headers_bytes);
    finish_ip(merge, packet, transport_bytes);
    if (tcp)
        transport[FP_TCP_FLAGS] |= merge->pushed;
    else
        fp_store16_be(transport + FP_UDP_LENGTH, (uint16_t)transport_bytes);
    /* The kernel or the receiver finishes it: pseudo-header only, folded, not complemented. */
    fp_store16(transport + vnet.csum_offset, fp_folded(fp_ip_any_pseudo_sum(packet, merge->version, merge->protocol, transport_bytes)));
    write->iov[0] = (struct iovec){slot, FP_VNET_HDR_BYTES + (size_t)merge->headers_bytes};
}

void fp_coalesce_finish(struct fp_coalesce *coalesce)
{
    for (uint32_t i = 0; i < coalesce->count; i++) {
        if (coalesce->writes[i].packets > 1)
            finish_write(&coalesce->merges[i], &coalesce->writes[i], coalesce->headers[i]);
    }
}
