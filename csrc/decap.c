/*
 * decap.c: one received train becomes writes to the TUN device. Decides and counts; merging is coalesce.c's.
 *
 *   train -> split by segment size -> header check -> source and destination -> TTL, ECN -> coalesce
 *
 * Packets are changed where they lie (TTL, ECN) and stay there until reset, for the writes point at them. A packet that is not
 * delivered stays as it arrived.
 */
#include "coalesce.h"
#include "table.h"

enum { EXPIRED_MAX = 16 };

struct fp_decap {
    struct fp_coalesce coalesce;
    struct fp_count refused; /* of one train */
    uint32_t expired_count;
    struct iovec expired[EXPIRED_MAX];
};

/* What is the same for all packets of a train, and the addresses that were found good last: most trains are one flow. */
struct train {
    const struct fp_context *context;
    const struct fp_address *sender;
    unsigned outer_ecn;
    bool known4;
    uint64_t addresses4;       /* both, as they stand in the packet */
    const uint8_t *addresses6; /* both, in a packet of the train; NULL: none yet */
};

size_t fp_decap_bytes(void)
{
    return sizeof(struct fp_decap);
}

struct fp_decap *fp_decap_init(void *memory)
{
    struct fp_decap *decap = memory;
    fp_coalesce_init(&decap->coalesce);
    decap->refused = (struct fp_count){0, 0};
    decap->expired_count = 0;
    return decap;
}

struct fp_count fp_decap_refused(const struct fp_decap *decap)
{
    return decap->refused;
}

void fp_decap_reset(struct fp_decap *decap)
{
    fp_coalesce_reset(&decap->coalesce);
    decap->expired_count = 0;
}

size_t fp_decap_writes(struct fp_decap *decap, const struct fp_write **writes)
{
    fp_coalesce_finish(&decap->coalesce);
    *writes = decap->coalesce.writes;
    return decap->coalesce.count;
}

size_t fp_decap_expired(struct fp_decap *decap, const struct iovec **packets)
{
    *packets = decap->expired;
    return decap->expired_count;
}

FP_INLINE struct fp_leaf look_up(const struct fp_table *table, const uint8_t *address, const uint8_t version)
{
    return version == 4 ? fp_table_leaf4(table, fp_load32_be(address)) : fp_table_leaf6(table, address);
}

FP_INLINE enum fp_verdict check_source(const struct train *train, const uint8_t *source, const uint8_t version)
{
    const struct fp_table *table = train->context->table;
    if (FP_LIKELY(fp_leaf_is_at(table, look_up(table, source, version), train->sender)))
        return FP_DECAPSULATED;
    return fp_table_knows_address(table, train->sender) ? FP_DROP_SPOOFED : FP_DROP_UNKNOWN_PEER;
}

/* `addresses`: source and destination, one behind the other. */
FP_INLINE bool is_known(const struct train *train, const uint8_t *addresses, const uint8_t version)
{
    if (version == 4)
        return train->known4 && train->addresses4 == fp_load64(addresses);
    return train->addresses6 != NULL && memcmp(train->addresses6, addresses, 32) == 0;
}

FP_INLINE void remember(struct train *train, const uint8_t *addresses, const uint8_t version)
{
    if (version == 4) {
        train->known4 = true;
        train->addresses4 = fp_load64(addresses);
    } else {
        train->addresses6 = addresses; /* stay where they are until the train is done, and are never changed */
    }
}

FP_INLINE enum fp_verdict check_addresses(struct train *train, const uint8_t *addresses, const uint8_t version)
{
    const uint8_t *destination = addresses + fp_ip_addresses_bytes(version) / 2;
    if (FP_LIKELY(is_known(train, addresses, version)))
        return FP_DECAPSULATED;
    if (train->context->options & FP_OPT_SOURCE_CHECK) {
        enum fp_verdict verdict = check_source(train, addresses, version);
        if (verdict != FP_DECAPSULATED)
            return verdict;
    } else if (look_up(train->context->table, addresses, version).value == FP_HOP_LOCAL) {
        return FP_DROP_SPOOFED; /* no peer, NATed or not, has one of our own addresses */
    }
    if (look_up(train->context->table, destination, version).value != FP_HOP_LOCAL)
        return FP_DROP_NOT_LOCAL;
    remember(train, addresses, version);
    return FP_DECAPSULATED;
}

static void remember_expired(struct fp_decap *decap, uint8_t *packet, const struct fp_ip *ip)
{
    /* A bounded list: a flood of dying packets costs no more than a few answers. */
    if (decap->expired_count < EXPIRED_MAX)
        decap->expired[decap->expired_count++] = (struct iovec){packet, ip->total_bytes};
}

FP_INLINE void set_ecn(uint8_t *packet, const struct fp_ip *ip, unsigned ecn, const uint8_t version)
{
    uint8_t tos = (uint8_t)((ip->tos & ~3u) | ecn);
    if (version == 4)
        fp_ip_set_tos(packet, tos);
    else
        fp_ip6_set_tos(packet, tos);
}

FP_INLINE enum fp_verdict deliver(struct fp_decap *decap, const struct train *train, uint8_t *packet, struct fp_ip *ip,
                                  const uint8_t version)
{
    int ecn = fp_ecn_combine(ip->tos & 3, train->outer_ecn);
    if (FP_UNLIKELY(ecn < 0))
        return FP_DROP_ECN;
    if (FP_UNLIKELY(ip->ttl <= 1)) {
        remember_expired(decap, packet, ip);
        return FP_DROP_TTL;
    }
    if (FP_UNLIKELY((unsigned)ecn != (ip->tos & 3u)))
        set_ecn(packet, ip, (unsigned)ecn, version);
    fp_ip_age(packet, version);
    fp_coalesce_packet(&decap->coalesce, train->context->options, packet, ip);
    return FP_DECAPSULATED;
}

/* Written once, compiled for each family: `version` is a constant. */
FP_INLINE enum fp_verdict judge(struct fp_decap *decap, struct train *train, uint8_t *packet, struct fp_ip *ip, const uint8_t version)
{
    enum fp_verdict verdict = check_addresses(train, fp_ip_addresses(packet, version), version);
    return FP_LIKELY(verdict == FP_DECAPSULATED) ? deliver(decap, train, packet, ip, version) : verdict;
}

static void take_datagram(struct fp_decap *decap, struct train *train, uint8_t *packet, size_t bytes)
{
    struct fp_ip ip = {.total_bytes = 0};
    enum fp_verdict verdict = fp_ip_check(packet, bytes, &ip);
    if (FP_LIKELY(verdict == FP_ENCAPSULATED))
        verdict = FP_LIKELY(ip.version == 4) ? judge(decap, train, packet, &ip, 4) : judge(decap, train, packet, &ip, 6);
    if (FP_UNLIKELY(verdict != FP_DECAPSULATED)) {
        fp_count_verdict(train->context->counters, verdict, 1, ip.total_bytes != 0 ? ip.total_bytes : bytes);
        decap->refused.packets++;
        decap->refused.bytes += bytes;
    }
}

size_t fp_decap_train(struct fp_decap *decap, const struct fp_context *context, const struct fp_address *sender,
                      uint8_t outer_tos, uint8_t *train, size_t bytes, size_t segment_bytes)
{
    struct train state = {.context = context, .sender = sender, .outer_ecn = outer_tos & 3u, .known4 = false};
    size_t taken = 0;
    decap->refused = (struct fp_count){0, 0};
    if (segment_bytes == 0 || segment_bytes > bytes)
        segment_bytes = bytes;
    /* Each step takes a datagram, the last one what is left; one of no bytes at all is a packet too, a broken one. */
    do {
        if (!fp_coalesce_has_room(&decap->coalesce))
            return taken;
        size_t datagram = bytes - taken < segment_bytes ? bytes - taken : segment_bytes;
        take_datagram(decap, &state, train + taken, datagram);
        taken += datagram;
    } while (taken < bytes);
    return taken;
}
