/*
 * peers.c: counters by peer in sets of a hash. The writer alone changes them; a place changes hands by its address: zeros, then new
 * figures, then the new address, so that a reader who finds an address finds figures of that peer behind it.
 */
#include "peers.h"
#include "wire.h"

struct fp_peer_counts {
    struct fp_peer_count by[FP_PEER_SETS][FP_PEER_WAYS];
};
static_assert(sizeof(struct fp_peer_count) == 64, "a place is one cache line");
static_assert((FP_PEER_SETS & (FP_PEER_SETS - 1)) == 0, "a set is chosen by a mask");

struct key {
    uint64_t halves[2];
};

size_t fp_peer_counts_bytes(void)
{
    return sizeof(struct fp_peer_counts);
}

FP_INLINE struct key key_of(const struct fp_address *address)
{
    return (struct key){{fp_load64(address->bytes), fp_load64(address->bytes + 8)}};
}

FP_INLINE size_t set_of(struct key key)
{
    uint64_t mixed = (key.halves[0] * 0x9e3779b97f4a7c15ull) ^ key.halves[1];
    mixed = (mixed ^ mixed >> 33) * 0xff51afd7ed558ccdull; /* neighbours differ in the last byte alone, which is the highest here */
    return (size_t)((mixed ^ mixed >> 33) * 0xc4ceb9fe1a85ec53ull >> 40) & (FP_PEER_SETS - 1);
}

FP_INLINE uint64_t peek(const uint64_t *word)
{
    return __atomic_load_n(word, __ATOMIC_RELAXED);
}

FP_INLINE bool is_of(const struct fp_peer_count *place, struct key key)
{
    return __atomic_load_n(&place->address[0], __ATOMIC_ACQUIRE) == key.halves[0] &&
           __atomic_load_n(&place->address[1], __ATOMIC_ACQUIRE) == key.halves[1];
}

static bool has_gone(const struct fp_peer_count *place, const struct fp_table *table)
{
    struct fp_address address;

    memcpy(address.bytes, place->address, sizeof(address.bytes));
    return !fp_table_knows_address(table, &address);
}

static void hand_over(struct fp_peer_count *place, struct key key)
{
    uint64_t *figures[] = {&place->address[0],        &place->address[1],      &place->sent.packets, &place->sent.bytes,
                           &place->received.packets, &place->received.bytes, &place->dropped_out,  &place->dropped_in};

    for (size_t i = 0; i < sizeof(figures) / sizeof(figures[0]); i++)
        __atomic_store_n(figures[i], 0, __ATOMIC_RELEASE);
    __atomic_store_n(&place->address[0], key.halves[0], __ATOMIC_RELEASE);
    __atomic_store_n(&place->address[1], key.halves[1], __ATOMIC_RELEASE);
}

/* A free place; else one of a peer that the table does not have any more, who may be back one day, so that it is the second choice. */
static struct fp_peer_count *take_place(struct fp_peer_count *set, const struct fp_table *table, struct key key)
{
    struct fp_peer_count *found = NULL;

    for (size_t way = 0; way < FP_PEER_WAYS && !found; way++) {
        if ((set[way].address[0] | set[way].address[1]) == 0)
            found = &set[way];
    }
    for (size_t way = 0; way < FP_PEER_WAYS && !found; way++) {
        if (has_gone(&set[way], table))
            found = &set[way];
    }
    if (found)
        hand_over(found, key);
    return found;
}

struct fp_peer_count *fp_peer_counts_of(struct fp_peer_counts *counts, const struct fp_table *table, const struct fp_address *address)
{
    struct key key = key_of(address);
    struct fp_peer_count *set = counts->by[set_of(key)];

    for (size_t way = 0; way < FP_PEER_WAYS; way++) {
        if (FP_LIKELY(is_of(&set[way], key)))
            return &set[way];
    }
    return fp_table_knows_address(table, address) ? take_place(set, table, key) : NULL;
}

static void add(struct fp_peer_count *sum, const struct fp_peer_count *place)
{
    sum->sent.packets += peek(&place->sent.packets);
    sum->sent.bytes += peek(&place->sent.bytes);
    sum->received.packets += peek(&place->received.packets);
    sum->received.bytes += peek(&place->received.bytes);
    sum->dropped_out += peek(&place->dropped_out);
    sum->dropped_in += peek(&place->dropped_in);
}

void fp_peer_counts_add(const struct fp_peer_counts *counts, const struct fp_address *addresses, size_t n, struct fp_peer_count *out)
{
    for (size_t i = 0; i < n; i++) {
        struct key key = key_of(&addresses[i]);
        const struct fp_peer_count *set = counts->by[set_of(key)];

        for (size_t way = 0; way < FP_PEER_WAYS; way++) {
            if (is_of(&set[way], key)) {
                add(&out[i], &set[way]);
                break;
            }
        }
    }
}
