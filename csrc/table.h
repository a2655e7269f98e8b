/*
 * table.h: the layout of the longest-prefix-match blob, shared by table.c, table6.c (look up, check) and table_build.c, table6_build.c.
 *
 *   | header | root: 65,536 values | nodes, 64 bytes each | hops | IPv6 ranges | leaves of big nodes | hops by address | IPv6 slots |
 *
 * IPv4. The root is indexed by the upper 16 bits of the address, a node of level 1 by the next 8, a node of level 2 by the last 8.
 * A node stands for 256 entries, stored as runs of equal values: a bit for each entry that begins a run, so the number of
 * bits up to an entry gives the place of its leaf. Up to three leaves lie in the node itself, so that a lookup in a small table touches
 * one cache line below the root; more lie in the area of leaves.
 *
 * IPv6. All addresses are cut into ranges of one value each, ascending; a range is known by its first address. The addresses from the
 * second range's to the last one's are also cut into slots of equal size, a power of two, at most 65,536; a slot has the number of the
 * range that its first address is in, so that a lookup searches between two slots only. Where nodes have subnets of one length next to each
 * other, as a network config makes them, that is one or two ranges; in the worst case the search is a binary one over all.
 *
 * A value is a hop with flags, FP_HOP_NONE or FP_HOP_LOCAL, or TAG_NODE with a node's number. A leaf is a value and the hop's IPv4 address
 * beside it: all that is asked of a peer for each packet (is it the sender, does it take ECN marks?) stands where the lookup ends, so
 * that a large table costs one cache line there and none among the hops, which are read once a send. Whoever has another address than an
 * IPv4 one, or a route so short that it ends in the root, has key 0: ask the hop.
 *
 * Places are offsets from the start of the blob; the machine's own byte order.
 */
#ifndef FLANPY_TABLE_H
#define FLANPY_TABLE_H

#include "wire.h"

/* Values of the root. The fuzzer's tables have fewer and know the lowest addresses alone, so that an execution takes microseconds. */
#ifndef FP_TABLE_ROOT
#define FP_TABLE_ROOT 65536u
#endif

enum {
    FP_TABLE_INLINE = 3, /* leaves that fit into a node */
    FP_TABLE_ALIGN = 64,
};

#define FP_TABLE_MAGIC 0x34656c6261746c66ull /* "fltable4"; reads differently on a machine of the other byte order */
#define FP_TABLE_TAG_MASK 0xc0000000u
#define FP_TABLE_TAG_NODE 0x80000000u
#define FP_TABLE_TAKES_ECN 0x01000000u /* beside a hop: it has FP_HOP_ECN */
#define FP_TABLE_HOPS_MAX 0x00ffffffu /* keeps hop numbers clear of the tags and flags and sizes clear of overflow */
#define FP_TABLE_ROUTES6_MAX 0x00ffffffu
#define FP_TABLE_SLOTS_MAX 65536u
#define FP_TABLE_MTU_MIN 68u /* RFC 791: every link takes that much */

/* An IPv6 address as a number. */
struct fp_key6 {
    uint64_t high;
    uint64_t low;
};

/* Where a lookup ends. */
struct fp_leaf {
    uint32_t value;
    uint32_t key; /* fp_table_key of the hop's address; 0: ask the hop, if there is one */
};

struct fp_range6 {
    struct fp_key6 first;
    struct fp_leaf leaf;
};
static_assert(sizeof(struct fp_range6) == 24, "ranges are part of the blob");

struct fp_table {
    uint64_t magic;
    uint64_t bytes; /* of the whole blob */
    uint64_t generation;
    uint32_t upper_nodes; /* level 1: the first ones; their values may name lower nodes */
    uint32_t lower_nodes; /* level 2: hold no further nodes */
    uint32_t leaves;      /* in the area of leaves */
    uint32_t hops;
    uint64_t nodes_at; /* byte offsets */
    uint64_t leaves_at;
    uint64_t hops_at;
    uint64_t by_address_at; /* u32 for each hop: hop numbers, ascending by address */
    uint64_t ranges6_at;    /* struct fp_range6 for each */
    uint64_t slots6_at;     /* u32 for each, and one more for the last range */
    struct fp_key6 base6;   /* first address of the first slot */
    uint32_t ranges6;       /* 0: no IPv6 route at all */
    uint32_t slots6;
    uint32_t shift6; /* a slot has 2^shift6 addresses */
    uint32_t mtu_bytes; /* largest inner packet */
    uint8_t reserved[128 - 120];
    uint32_t root[FP_TABLE_ROOT];
};
static_assert(offsetof(struct fp_table, root) == 128, "the root begins on a cache line");

struct fp_table_node {
    uint64_t begins[4]; /* bit i: entry i begins a run; entry 0 always does */
    uint8_t before[4];  /* bits set in the words before this one, so that a rank needs one word only */
    uint32_t leaves_at; /* of the first leaf, in units of 8 bytes from the start of the blob */
    struct fp_leaf inline_leaves[FP_TABLE_INLINE]; /* a level-1 node's may name lower nodes: key 0 */
};
static_assert(sizeof(struct fp_table_node) == 64, "a node is one cache line");
static_assert(offsetof(struct fp_table_node, inline_leaves) % sizeof(struct fp_leaf) == 0, "leaves are counted in units of their size");
static_assert(sizeof(struct fp_hop) == 24, "hops are part of the blob");

FP_INLINE bool fp_table_is_node(uint32_t value)
{
    return (value & FP_TABLE_TAG_MASK) == FP_TABLE_TAG_NODE;
}

FP_INLINE const struct fp_table_node *fp_table_nodes(const struct fp_table *table)
{
    return (const struct fp_table_node *)(const void *)((const uint8_t *)table + table->nodes_at);
}

FP_INLINE const struct fp_hop *fp_table_hops(const struct fp_table *table)
{
    return (const struct fp_hop *)(const void *)((const uint8_t *)table + table->hops_at);
}

FP_INLINE const uint32_t *fp_table_by_address(const struct fp_table *table)
{
    return (const uint32_t *)(const void *)((const uint8_t *)table + table->by_address_at);
}

/* Bits set, without asking for an instruction that old CPUs lack and without a call into the compiler's library. */
FP_INLINE uint32_t fp_table_bits(uint64_t word)
{
    word -= (word >> 1) & 0x5555555555555555ull;
    word = (word & 0x3333333333333333ull) + ((word >> 2) & 0x3333333333333333ull);
    word = (word + (word >> 4)) & 0x0f0f0f0f0f0f0f0full;
    return (uint32_t)((word * 0x0101010101010101ull) >> 56);
}

FP_INLINE struct fp_leaf fp_table_node_leaf(const struct fp_table *table, const struct fp_table_node *node, uint32_t entry)
{
    uint32_t word = entry >> 6;
    uint64_t up_to = node->begins[word] << (63 - (entry & 63));
    uint32_t rank = node->before[word] + fp_table_bits(up_to) - 1;
    return ((const struct fp_leaf *)(const void *)table)[node->leaves_at + rank];
}

/* What fp_table_lookup4 and fp_table_lookup6 find, with all that stands there. */
FP_INLINE struct fp_leaf fp_table_leaf4(const struct fp_table *table, uint32_t destination)
{
    uint32_t value = table->root[destination >> 16];
    if (!fp_table_is_node(value))
        return (struct fp_leaf){value, 0};
    const struct fp_table_node *nodes = fp_table_nodes(table);
    struct fp_leaf leaf = fp_table_node_leaf(table, &nodes[value & ~FP_TABLE_TAG_MASK], (destination >> 8) & 0xff);
    if (!fp_table_is_node(leaf.value))
        return leaf;
    return fp_table_node_leaf(table, &nodes[leaf.value & ~FP_TABLE_TAG_MASK], destination & 0xff);
}

struct fp_leaf fp_table_leaf6(const struct fp_table *table, const uint8_t *destination);

/* Not a hop's: FP_HOP_NONE or FP_HOP_LOCAL. */
FP_INLINE bool fp_leaf_is_no_hop(struct fp_leaf leaf)
{
    return (leaf.value & FP_TABLE_TAG_MASK) != 0;
}

/* The hop's number, FP_HOP_NONE or FP_HOP_LOCAL. */
FP_INLINE uint32_t fp_leaf_hop(struct fp_leaf leaf)
{
    return fp_leaf_is_no_hop(leaf) ? leaf.value : leaf.value & FP_TABLE_HOPS_MAX;
}

/* An IPv4 address by which a hop is known at once, in network byte order; 0: none, or 0.0.0.0. */
FP_INLINE uint32_t fp_table_key(const struct fp_address *address)
{
    bool mapped = fp_load64(address->bytes) == 0 && fp_load32_be(address->bytes + 8) == 0x0000ffff;
    return mapped ? fp_load32(address->bytes + 12) : 0;
}

/* Is this the leaf of a hop with this address? Equal keys are equal addresses; without one of both, the hop tells. */
FP_INLINE bool fp_leaf_is_at(const struct fp_table *table, struct fp_leaf leaf, const struct fp_address *address)
{
    uint32_t key = fp_table_key(address);
    if (FP_LIKELY(key != 0 && leaf.key != 0))
        return leaf.key == key;
    const struct fp_hop *hop = fp_table_hop(table, fp_leaf_hop(leaf)); /* NULL: nobody's, or our own */
    return hop != NULL && memcmp(&hop->address, address, sizeof *address) == 0;
}

/* What a leaf of this hop says (FP_HOP_NONE and FP_HOP_LOCAL have none); for those who build and check. */
FP_INLINE struct fp_leaf fp_table_leaf_of(const struct fp_table *table, uint32_t hop)
{
    if (hop >= table->hops)
        return (struct fp_leaf){hop, 0};
    const struct fp_hop *known = &fp_table_hops(table)[hop];
    return (struct fp_leaf){hop | (known->flags & FP_HOP_ECN ? FP_TABLE_TAKES_ECN : 0), fp_table_key(&known->address)};
}

/* ------------------------------------------------------------------------------------------------------------------ IPv6 */

FP_INLINE struct fp_key6 fp_key6_load(const uint8_t *address)
{
    return (struct fp_key6){fp_load64_be(address), fp_load64_be(address + 8)};
}

FP_INLINE bool fp_key6_less(struct fp_key6 a, struct fp_key6 b)
{
    return a.high != b.high ? a.high < b.high : a.low < b.low;
}

FP_INLINE struct fp_key6 fp_key6_minus(struct fp_key6 a, struct fp_key6 b)
{
    return (struct fp_key6){a.high - b.high - (a.low < b.low), a.low - b.low};
}

/* distance / 2^shift, or UINT64_MAX when that has more than 64 bits; shift is below 128. */
FP_INLINE uint64_t fp_key6_shifted(struct fp_key6 distance, uint32_t shift)
{
    if (shift >= 64)
        return distance.high >> (shift - 64);
    if (distance.high >> shift != 0)
        return UINT64_MAX;
    return shift == 0 ? distance.low : distance.high << (64 - shift) | distance.low >> shift;
}

FP_INLINE const struct fp_range6 *fp_table_ranges6(const struct fp_table *table)
{
    return (const struct fp_range6 *)(const void *)((const uint8_t *)table + table->ranges6_at);
}

FP_INLINE const uint32_t *fp_table_slots6(const struct fp_table *table)
{
    return (const uint32_t *)(const void *)((const uint8_t *)table + table->slots6_at);
}

FP_INLINE bool fp_table_mtu_fits(uint32_t mtu_bytes)
{
    return mtu_bytes >= FP_TABLE_MTU_MIN && mtu_bytes <= FP_DATAGRAM_BYTES_MAX;
}

/* For fp_table_check: is this what a lookup may return? Flags and key are the hop's, or nothing could be concluded from them. */
FP_INLINE bool fp_table_leaf_fits(const struct fp_table *table, struct fp_leaf leaf)
{
    uint32_t hop = fp_leaf_hop(leaf);
    struct fp_leaf right = fp_table_leaf_of(table, hop);
    return (hop == FP_HOP_NONE || hop == FP_HOP_LOCAL || hop < table->hops) && leaf.value == right.value && leaf.key == right.key;
}

bool fp_table6_fits(const struct fp_table *table); /* the IPv6 part, whose areas have been found to lie in the blob */

/* The IPv6 part of a table that is being built (table6_build.c). */
struct fp_draft6 {
    uint32_t ranges;
    uint32_t slots;
    uint32_t shift;
    struct fp_key6 base;
    struct fp_key6 last; /* first address of the last range */
};

bool fp_routes6_valid(const struct fp_route6 *routes, size_t n_routes, size_t n_hops);
/* How much room the routes need. */
void fp_draft6_count(struct fp_draft6 *draft, const struct fp_route6 *routes, size_t n_routes);
/* Fill the IPv6 areas, whose places stand in the header; same routes as counted. */
void fp_draft6_write(struct fp_table *table, const struct fp_draft6 *draft, const struct fp_route6 *routes, size_t n_routes);

#endif
