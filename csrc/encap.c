/*
 * encap.c: one frame from the TUN device becomes packets in runs. Decides and counts; cutting is segment.c's, packing runs.c's.
 *
 *   frame -> header check -> offload check -> look up -> TTL -> superpacket: cut into runs
 *                                                              fits:        copied into a run, checksum finished on the way
 *                                                              too big:     fragments, or dropped when DF or IPv6 forbids them
 *
 * One look-up for each frame. Nothing is written before there is known to be room, so FP_FULL leaves everything as it was.
 */
#include "runs.h"
#include "table.h"

struct fp_encap {
    struct fp_runs runs;
};

/* A frame on its way through. */
struct inner {
    uint8_t *packet;
    struct fp_ip ip;
    struct fp_vnet vnet;
    struct fp_run_key key;
    struct fp_flow flow;
    uint32_t bytes_max; /* of a packet that may be sent */
};

size_t fp_encap_bytes(void)
{
    return sizeof(struct fp_encap);
}

struct fp_encap *fp_encap_init(void *memory, uint32_t max_segments)
{
    struct fp_encap *encap = memory;
    fp_runs_init(&encap->runs, max_segments);
    return encap;
}

size_t fp_encap_sends(struct fp_encap *encap, const struct fp_send **sends)
{
    *sends = encap->runs.sends;
    return fp_runs_finish(&encap->runs);
}

void fp_encap_reset(struct fp_encap *encap)
{
    fp_runs_reset(&encap->runs);
}

/* Addresses, protocol and, where they are, ports. A fragment is in no flow of its own; see runs.h. */
FP_INLINE struct fp_flow flow_of(const uint8_t *packet, const struct fp_ip *ip)
{
    uint64_t mixed = fp_ip_addresses_hash(packet, ip->version);
    bool fragment = fp_ip_is_fragment(ip);
    bool ports = !fragment && (ip->protocol == FP_PROTOCOL_TCP || ip->protocol == FP_PROTOCOL_UDP);
    /* The ports may not lie behind the packet's end. */
    if (ports && ip->total_bytes >= ip->header_bytes + 4u)
        mixed ^= (uint64_t)fp_load32(packet + ip->header_bytes) * 0x9e3779b97f4a7c15ull;
    mixed = (mixed ^ ip->protocol) * 0xff51afd7ed558ccdull;
    return (struct fp_flow){.hash = (uint8_t)(mixed >> 56), .fragment = fragment};
}

/* RFC 6040 4.1: normal mode copies the mark out, compatibility mode sends Not-ECT. DSCP stays 0. */
static uint8_t outer_tos(struct fp_leaf leaf, uint8_t inner_tos)
{
    return leaf.value & FP_TABLE_TAKES_ECN ? inner_tos & 3 : 0;
}

/*
 * Where to, and may it live on? Without side effects. Inline, so that key and flow stay in registers: written field by field and read
 * whole by the next call, each would wait until its stores have left the store buffer.
 */
FP_INLINE enum fp_verdict route(const struct fp_context *context, struct inner *inner)
{
    struct fp_leaf leaf = FP_LIKELY(inner->ip.version == 4) ? fp_table_leaf4(context->table, inner->ip.destination)
                                                            : fp_table_leaf6(context->table, inner->packet + FP_IP6_DESTINATION);
    /* Our own prefix is not on the other side of the tunnel: nobody else has it. */
    if (FP_UNLIKELY(fp_leaf_is_no_hop(leaf)))
        return FP_DROP_NO_ROUTE;
    if (FP_UNLIKELY(inner->ip.ttl <= 1))
        return FP_DROP_TTL;
    inner->key = (struct fp_run_key){.hop = fp_leaf_hop(leaf), .tos = outer_tos(leaf, inner->ip.tos)};
    inner->flow = flow_of(inner->packet, &inner->ip);
    return FP_ENCAPSULATED;
}

/* -------------------------------------------------------------------------------------------------------- superpacket */

static void place_pieces(struct fp_runs *runs, const struct inner *inner, const struct fp_cut *cut, uint32_t first, uint32_t count,
                         uint32_t bytes)
{
    /* Each step places at least one packet. */
    while (count > 0) {
        uint32_t taken;
        uint8_t *to;
        uint32_t run = fp_runs_place(runs, inner->key, inner->flow, bytes, count, &taken, &to);
        if (FP_UNLIKELY(run == UINT32_MAX))
            return; /* cannot be: fp_runs_have_room was asked */
        fp_cut_write(cut, first, taken, to);
        fp_runs_add(runs, run, inner->flow, bytes, taken);
        first += taken;
        count -= taken;
    }
}

static enum fp_verdict put_superpacket(struct fp_runs *runs, const struct inner *inner, const struct fp_cut *cut)
{
    uint32_t last_bytes = fp_cut_last_bytes(cut);
    uint32_t bytes = cut->segments > 1 ? fp_cut_bytes(cut) : last_bytes;
    if (bytes > inner->bytes_max)
        return FP_DROP_TOO_BIG;
    if (!fp_runs_have_room(runs, cut->segments, bytes))
        return FP_FULL;
    uint32_t equal = last_bytes == bytes ? cut->segments : cut->segments - 1;
    place_pieces(runs, inner, cut, 0, equal, bytes);
    place_pieces(runs, inner, cut, equal, cut->segments - equal, last_bytes);
    return FP_ENCAPSULATED;
}

/* ----------------------------------------------------------------------------------------------------------- one packet */

/* An unfinished checksum covers csum_start to the end and stands csum_offset behind its start, in the packet. */
static bool csum_fits(const struct inner *inner)
{
    if ((inner->vnet.flags & FP_VNET_NEEDS_CSUM) == 0)
        return true;
    uint32_t field = (uint32_t)inner->vnet.csum_start + inner->vnet.csum_offset;
    return inner->vnet.csum_start >= inner->ip.header_bytes && field + 2 <= inner->ip.total_bytes && !fp_ip_is_fragment(&inner->ip);
}

static uint16_t finished_csum(const struct inner *inner, uint64_t sum)
{
    uint16_t check = (uint16_t)~fp_folded(sum);
    /* UDP says "no checksum" by 0, and sends a sum of 0 as all ones (RFC 768). */
    return check == 0 && inner->vnet.csum_offset == FP_UDP_CHECK ? 0xffff : check;
}

static void copy_packet(const struct inner *inner, uint8_t *to)
{
    if ((inner->vnet.flags & FP_VNET_NEEDS_CSUM) == 0) {
        memcpy(to, inner->packet, inner->ip.total_bytes);
    } else {
        uint32_t start = inner->vnet.csum_start;
        memcpy(to, inner->packet, start);
        uint64_t sum = fp_copy_sum(to + start, inner->packet + start, inner->ip.total_bytes - start, 0);
        fp_store16(to + start + inner->vnet.csum_offset, finished_csum(inner, sum));
    }
    fp_ip_age(to, inner->ip.version);
}

static enum fp_verdict put_packet(struct fp_runs *runs, const struct inner *inner)
{
    uint32_t taken;
    uint8_t *to;
    uint32_t run = fp_runs_place(runs, inner->key, inner->flow, inner->ip.total_bytes, 1, &taken, &to);
    if (FP_UNLIKELY(run == UINT32_MAX))
        return FP_FULL;
    copy_packet(inner, to);
    fp_runs_add(runs, run, inner->flow, inner->ip.total_bytes, 1);
    return FP_ENCAPSULATED;
}

/* ------------------------------------------------------------------------------------------------------------ fragments */

/* How a packet falls into fragments (RFC 791 3.2); all but the last carry the same number of bytes, a multiple of 8. */
struct fragments {
    uint8_t later_header[FP_IP_BYTES_MAX];
    uint32_t later_header_bytes;
    uint32_t payload_bytes; /* of the packet */
    uint32_t each_bytes;
    uint32_t count;
};

static enum fp_verdict plan_fragments(const struct inner *inner, struct fragments *plan)
{
    const struct fp_ip *ip = &inner->ip;
    /* Only the sender of an IPv6 packet may fragment it (RFC 8200 4.5). */
    if (ip->version == 6 || (ip->fragment & FP_IP_DF) != 0 || inner->bytes_max < ip->header_bytes + 8u)
        return FP_DROP_TOO_BIG;
    plan->later_header_bytes = (uint32_t)fp_ip_later_header(inner->packet, ip->header_bytes, plan->later_header);
    plan->payload_bytes = (uint32_t)ip->total_bytes - ip->header_bytes;
    plan->each_bytes = (inner->bytes_max - ip->header_bytes) & ~7u;
    plan->count = (plan->payload_bytes - 1) / plan->each_bytes + 1;
    /* The offset field ends at 65,528: a fragment that reaches beyond it cannot be described. */
    uint32_t end = (uint32_t)(ip->fragment & FP_IP_OFFSET) * 8 + plan->payload_bytes;
    return plan->count <= FP_FRAME_SEGMENTS_MAX && end <= FP_PACKET_BYTES_MAX ? FP_ENCAPSULATED : FP_DROP_TOO_BIG;
}

static void put_fragment(struct fp_runs *runs, const struct inner *inner, const struct fragments *plan, uint32_t index)
{
    const uint8_t *header = index == 0 ? inner->packet : plan->later_header;
    uint32_t header_bytes = index == 0 ? inner->ip.header_bytes : plan->later_header_bytes;
    uint32_t offset = index * plan->each_bytes;
    bool is_last = index + 1 == plan->count;
    uint32_t bytes = is_last ? plan->payload_bytes - offset : plan->each_bytes;
    uint32_t taken;
    uint8_t *to;
    uint32_t run = fp_runs_place(runs, inner->key, inner->flow, header_bytes + bytes, 1, &taken, &to);
    if (FP_UNLIKELY(run == UINT32_MAX))
        return; /* cannot be: fp_runs_have_room was asked */

    memcpy(to, header, header_bytes);
    memcpy(to + header_bytes, inner->packet + inner->ip.header_bytes + offset, bytes);
    fp_store16_be(to + FP_IP_LENGTH, (uint16_t)(header_bytes + bytes));
    /* A piece of a fragment keeps its offset, and its More Fragments bit where it is not the last. */
    uint32_t field = (inner->ip.fragment + offset / 8) | (is_last ? 0u : (uint32_t)FP_IP_MF);
    fp_store16_be(to + FP_IP_FRAGMENT, (uint16_t)field);
    to[FP_IP_TTL] = (uint8_t)(inner->ip.ttl - 1);
    fp_ip_store_check(to, header_bytes);
    fp_runs_add(runs, run, inner->flow, header_bytes + bytes, 1);
}

static enum fp_verdict put_fragments(struct fp_runs *runs, struct inner *inner)
{
    struct fragments plan;
    enum fp_verdict verdict = plan_fragments(inner, &plan);
    if (verdict != FP_ENCAPSULATED)
        return verdict;
    if (!fp_runs_have_room(runs, plan.count, inner->ip.header_bytes + plan.each_bytes))
        return FP_FULL;
    if (inner->vnet.flags & FP_VNET_NEEDS_CSUM) {
        uint8_t *start = inner->packet + inner->vnet.csum_start;
        uint64_t sum = fp_sum(start, (size_t)inner->ip.total_bytes - inner->vnet.csum_start, 0);
        fp_store16(start + inner->vnet.csum_offset, finished_csum(inner, sum));
    }
    inner->flow.fragment = true;
    for (uint32_t i = 0; i < plan.count; i++)
        put_fragment(runs, inner, &plan, i);
    return FP_ENCAPSULATED;
}

/* ---------------------------------------------------------------------------------------------------------------- frame */

static enum fp_verdict take_superpacket(struct fp_encap *encap, const struct fp_context *context, struct inner *inner)
{
    struct fp_cut cut;
    enum fp_verdict verdict =
        fp_cut_prepare(&cut, inner->packet, &inner->ip, &inner->vnet, (uint8_t)(inner->ip.ttl - 1));
    if (FP_UNLIKELY(verdict != FP_ENCAPSULATED)) {
        fp_count_verdict(context->counters, verdict, 1, inner->ip.total_bytes);
        return verdict;
    }
    /* Bounds the runs that one frame can need, so that it always fits into empty ones. */
    if (cut.segments > FP_FRAME_SEGMENTS_MAX)
        verdict = FP_DROP_BAD_OFFLOAD;
    else
        verdict = route(context, inner);
    if (verdict == FP_ENCAPSULATED)
        verdict = put_superpacket(&encap->runs, inner, &cut);
    if (FP_UNLIKELY(verdict != FP_ENCAPSULATED && verdict != FP_FULL))
        fp_count_verdict(context->counters, verdict, cut.segments, cut.payload_bytes + (uint64_t)cut.segments * cut.headers_bytes);
    return verdict;
}

static enum fp_verdict take_packet(struct fp_encap *encap, const struct fp_context *context, struct inner *inner)
{
    enum fp_verdict verdict = csum_fits(inner) ? route(context, inner) : FP_DROP_BAD_OFFLOAD;
    if (verdict == FP_ENCAPSULATED)
        verdict = inner->ip.total_bytes <= inner->bytes_max ? put_packet(&encap->runs, inner) : put_fragments(&encap->runs, inner);
    if (FP_UNLIKELY(verdict != FP_ENCAPSULATED && verdict != FP_FULL))
        fp_count_verdict(context->counters, verdict, 1, inner->ip.total_bytes);
    return verdict;
}

enum fp_verdict fp_encap_frame(struct fp_encap *encap, const struct fp_context *context, uint8_t *frame, size_t bytes)
{
    struct inner inner;
    size_t packet_bytes = bytes < FP_VNET_HDR_BYTES ? 0 : bytes - FP_VNET_HDR_BYTES;
    inner.packet = frame + FP_VNET_HDR_BYTES;
    enum fp_verdict verdict = packet_bytes == 0 ? FP_DROP_TRUNCATED : fp_ip_check(inner.packet, packet_bytes, &inner.ip);
    if (FP_UNLIKELY(verdict != FP_ENCAPSULATED)) {
        fp_count_verdict(context->counters, verdict, 1, packet_bytes);
        return verdict;
    }
    memcpy(&inner.vnet, frame, sizeof inner.vnet);
    inner.bytes_max = context->mtu_bytes < FP_DATAGRAM_BYTES_MAX ? context->mtu_bytes : FP_DATAGRAM_BYTES_MAX;
    return inner.vnet.gso_type == FP_VNET_GSO_NONE ? take_packet(encap, context, &inner) : take_superpacket(encap, context, &inner);
}
