/*
 * table_build.c: make a longest-prefix-match blob out of sorted lists of routes (IPv6: table6_build.c). No allocation, no recursion.
 *
 * Two passes of one sweep. Sorted by prefix and then length, routes nest: a stack of at most 33 open routes turns them into
 * ranges that cover all addresses, in order and without gaps. Ranges fill the root, and nodes where a /16 or a /24 is not of one piece.
 * The first pass only counts nodes and leaves, the second writes them.
 */
#include "table.h"

#include "heap_sort.h"

#include <errno.h>

#define ADDRESSES 0x100000000ull
#define ROOT_ADDRESSES ((uint64_t)FP_TABLE_ROOT << 16) /* those that the root reaches: all */

/* A node while its 256 entries arrive in order; values are hops as the routes name them, or lower nodes. */
struct draft {
    uint64_t begins[4];
    uint32_t values[256];
    uint32_t count; /* runs so far */
    uint32_t entry; /* entries so far */
};

struct builder {
    struct fp_table *table; /* NULL in the counting pass */
    uint32_t upper_nodes;
    uint32_t lower_nodes;
    uint32_t leaves;
    struct draft upper; /* entries of the current /16 */
    struct draft lower; /* entries of the current /24 */
};

static void draft_add(struct draft *draft, uint32_t value, uint32_t entries)
{
    if (draft->entry == 0) {
        memset(draft->begins, 0, sizeof draft->begins);
        draft->count = 0;
    }
    if (draft->count == 0 || draft->values[draft->count - 1] != value) {
        draft->begins[draft->entry >> 6] |= 1ull << (draft->entry & 63);
        draft->values[draft->count++] = value;
    }
    draft->entry += entries;
}

static void write_node(struct fp_table *table, uint32_t number, const struct draft *draft, uint32_t leaves_used)
{
    struct fp_table_node *node = (struct fp_table_node *)(void *)((uint8_t *)table + table->nodes_at) + number;
    uint32_t before = 0;
    memset(node, 0, sizeof *node);
    for (uint32_t word = 0; word < 4; word++) {
        node->begins[word] = draft->begins[word];
        node->before[word] = (uint8_t)before; /* at most 192 */
        before += fp_table_bits(draft->begins[word]);
    }
    size_t at = draft->count <= FP_TABLE_INLINE ? (size_t)((uint8_t *)node->inline_leaves - (uint8_t *)table)
                                                : table->leaves_at + sizeof(struct fp_leaf) * (size_t)leaves_used;
    struct fp_leaf *leaves = (struct fp_leaf *)(void *)((uint8_t *)table + at);
    node->leaves_at = (uint32_t)(at / sizeof(struct fp_leaf));
    for (uint32_t i = 0; i < draft->count; i++)
        leaves[i] = fp_table_leaf_of(table, draft->values[i]);
}

/* The full draft as one value: its only value, or a new node. */
static uint32_t draft_close(struct builder *builder, struct draft *draft, bool upper)
{
    draft->entry = 0;
    if (draft->count == 1)
        return draft->values[0];
    uint32_t number = upper ? builder->upper_nodes++ : builder->lower_nodes++;
    if (builder->table != NULL) {
        number += upper ? 0 : builder->table->upper_nodes;
        write_node(builder->table, number, draft, builder->leaves);
    }
    if (draft->count > FP_TABLE_INLINE)
        builder->leaves += draft->count;
    return FP_TABLE_TAG_NODE | number;
}

static void add_upper(struct builder *builder, uint64_t start, uint32_t value, uint32_t entries)
{
    draft_add(&builder->upper, value, entries);
    if (builder->upper.entry < 256)
        return;
    uint32_t closed = draft_close(builder, &builder->upper, true);
    if (builder->table != NULL)
        builder->table->root[start >> 16] = fp_table_leaf_of(builder->table, closed).value;
}

/* Addresses start..end-1 have this value. Each step takes as much as its level allows: at most 65,536 + 2 * 512 steps. */
static void add_range(struct builder *builder, uint64_t start, uint64_t end, uint32_t value)
{
    while (start < end) {
        if (start % 65536 == 0 && end - start >= 65536) {
            if (builder->table != NULL)
                builder->table->root[start >> 16] = fp_table_leaf_of(builder->table, value).value;
            start += 65536;
        } else if (start % 256 == 0 && end - start >= 256) {
            uint64_t slots = (end - start) / 256;
            uint64_t left = 256 - builder->upper.entry;
            slots = slots < left ? slots : left; /* a node ends with its /16 */
            add_upper(builder, start, value, (uint32_t)slots);
            start += slots * 256;
        } else {
            uint64_t left = 256 - start % 256;
            uint64_t slots = end - start < left ? end - start : left; /* a node ends with its /24 */
            draft_add(&builder->lower, value, (uint32_t)slots);
            if (builder->lower.entry == 256)
                add_upper(builder, start, draft_close(builder, &builder->lower, false), 1);
            start += slots;
        }
    }
}

struct open_route {
    uint64_t end;
    uint32_t value;
};

/* All ranges in order. The routes are valid, so each open one lies in the one below it: at most one for each length. */
static void sweep(struct builder *builder, const struct fp_route4 *routes, size_t n_routes)
{
    struct open_route stack[34] = {{ROOT_ADDRESSES, FP_HOP_NONE}};
    size_t top = 0;
    uint64_t done = 0;
    for (size_t i = 0; i <= n_routes; i++) {
        uint64_t start = i < n_routes ? routes[i].prefix : ROOT_ADDRESSES;
        while (stack[top].end <= start) {
            add_range(builder, done, stack[top].end, stack[top].value);
            done = stack[top].end;
            if (top == 0)
                return;
            top--;
        }
        add_range(builder, done, start, stack[top].value);
        done = start;
        uint64_t end = start + (ADDRESSES >> routes[i].prefix_len);
        stack[++top] = (struct open_route){end < ROOT_ADDRESSES ? end : ROOT_ADDRESSES, routes[i].hop};
    }
}

static bool route_before(const struct fp_route4 *a, const struct fp_route4 *b)
{
    return a->prefix != b->prefix ? a->prefix < b->prefix : a->prefix_len < b->prefix_len;
}

static bool routes_valid(const struct fp_route4 *routes, size_t n_routes, size_t n_hops)
{
    if (n_hops > FP_TABLE_HOPS_MAX)
        return false;
    for (size_t i = 0; i < n_routes; i++) {
        const struct fp_route4 *route = &routes[i];
        if (route->prefix_len > 32 || (route->hop >= n_hops && route->hop != FP_HOP_LOCAL))
            return false;
        if (route->prefix_len < 32 && (route->prefix << route->prefix_len) != 0)
            return false;
        if (route->prefix >> 16 >= FP_TABLE_ROOT)
            return false;
        if (i > 0 && !route_before(&routes[i - 1], route))
            return false;
    }
    return true;
}

/* What the counting passes have found. */
struct counted {
    struct builder v4;
    struct fp_draft6 v6;
};

static void count_all(struct counted *counted, const struct fp_routes *routes)
{
    memset(&counted->v4, 0, sizeof counted->v4);
    sweep(&counted->v4, routes->v4, routes->n_v4);
    fp_draft6_count(&counted->v6, routes->v6, routes->n_v6);
}

/* Where everything goes; 0 when it cannot be addressed in units of 4 bytes by 32 bits (leaves: of 8). */
static size_t lay_out(struct fp_table *header, const struct counted *counted, size_t n_hops)
{
    uint64_t at = sizeof *header;
    header->nodes_at = at;
    at += 64 * ((uint64_t)counted->v4.upper_nodes + counted->v4.lower_nodes);
    header->hops_at = at;
    at += sizeof(struct fp_hop) * (uint64_t)n_hops;
    header->ranges6_at = at;
    at += sizeof(struct fp_range6) * (uint64_t)counted->v6.ranges;
    header->leaves_at = at;
    at += sizeof(struct fp_leaf) * (uint64_t)counted->v4.leaves;
    header->by_address_at = at;
    at += 4 * (uint64_t)n_hops;
    header->slots6_at = at;
    at += 4 * ((uint64_t)counted->v6.slots + 1);
    at = (at + FP_TABLE_ALIGN - 1) / FP_TABLE_ALIGN * FP_TABLE_ALIGN;
    return at / 4 <= UINT32_MAX ? (size_t)at : 0;
}

static bool hop_before(const void *a, const void *b, const void *hops)
{
    const struct fp_hop *known = hops;
    return memcmp(&known[*(const uint32_t *)a], &known[*(const uint32_t *)b], sizeof known->address) < 0;
}

/* Write the hops' numbers into `order`, by address. */
static void sort_hops(uint32_t *order, const struct fp_hop *hops, size_t count)
{
    for (size_t i = 0; i < count; i++)
        order[i] = (uint32_t)i;
    fp_heap_sort(order, count, sizeof *order, hop_before, hops);
}

static uint32_t mtu_of(const struct fp_routes *routes)
{
    return routes->mtu_bytes != 0 ? routes->mtu_bytes : FP_DATAGRAM_BYTES_MAX;
}

static bool all_valid(const struct fp_routes *routes)
{
    return fp_table_mtu_fits(mtu_of(routes)) && routes_valid(routes->v4, routes->n_v4, routes->n_hops) && fp_routes6_valid(routes->v6, routes->n_v6, routes->n_hops);
}

size_t fp_table_bytes(const struct fp_routes *routes)
{
    if (!all_valid(routes))
        return 0;
    struct counted counted;
    struct fp_table header; /* only its offsets are written */
    count_all(&counted, routes);
    return lay_out(&header, &counted, routes->n_hops);
}

int fp_table_build(void *memory, size_t bytes, uint64_t generation, const struct fp_routes *routes)
{
    struct fp_table *table = memory;
    struct counted counted;
    if ((uintptr_t)memory % FP_TABLE_ALIGN != 0)
        return -EFAULT;
    if (!all_valid(routes))
        return -EINVAL;
    count_all(&counted, routes);
    /* The header alone must fit before its offsets may be written into it. */
    if (bytes < sizeof *table)
        return -ENOSPC;
    size_t needed = lay_out(table, &counted, routes->n_hops);
    if (needed == 0 || bytes < needed)
        return needed == 0 ? -EINVAL : -ENOSPC;

    table->magic = FP_TABLE_MAGIC;
    table->bytes = needed;
    table->generation = generation;
    table->upper_nodes = counted.v4.upper_nodes;
    table->lower_nodes = counted.v4.lower_nodes;
    table->leaves = counted.v4.leaves;
    table->hops = (uint32_t)routes->n_hops;
    table->mtu_bytes = mtu_of(routes);
    memset(table->reserved, 0, sizeof table->reserved);
    memset((uint8_t *)table + needed - FP_TABLE_ALIGN, 0, FP_TABLE_ALIGN); /* padding: equal routes give equal blobs */
    if (routes->n_hops > 0)
        memcpy((uint8_t *)table + table->hops_at, routes->hops, routes->n_hops * sizeof *routes->hops);
    sort_hops((uint32_t *)(void *)((uint8_t *)table + table->by_address_at), routes->hops, routes->n_hops);

    memset(&counted.v4, 0, sizeof counted.v4);
    counted.v4.table = table;
    sweep(&counted.v4, routes->v4, routes->n_v4);
    fp_draft6_write(table, &counted.v6, routes->v6, routes->n_v6);
    return 0;
}

static bool listed_before(const void *a, const void *b, const void *unused)
{
    (void)unused;
    return route_before(a, b);
}

void fp_routes_sort(struct fp_route4 *routes, size_t n_routes)
{
    fp_heap_sort(routes, n_routes, sizeof *routes, listed_before, NULL);
}
